// SPDX-License-Identifier: Apache-2.0
// weir inspect: how dense an attention pattern is, and a picture of its blocks.
#include <cstdio>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "cli/errors.h"
#include "cli/verbs.h"
#include "config/atomic_file.h"
#include "config/error.h"
#include "weir/nn/sparse_attention.h"

namespace weir::cli {
namespace {

constexpr std::int64_t kLongest = 16384;  // every pair is looked at

struct InspectArguments {
  nn::SparseAttentionOptions options;
  std::int64_t n = 1024, ctx = 0;
  bool all_directions = false;
  std::string out;
};

/// The pairs that one head allows, counted per block.
struct BlockCounts {
  std::int64_t blocks = 0;            // per side
  std::vector<std::int64_t> allowed;  // [blocks, blocks]

  std::int64_t active() const {
    std::int64_t count = 0;
    for (const std::int64_t pairs : allowed) count += pairs > 0;
    return count;
  }
  std::int64_t pairs() const {
    std::int64_t sum = 0;
    for (const std::int64_t pairs : allowed) sum += pairs;
    return sum;
  }
};

bool near(const ops::BlockSparseAttentionOptions& options, std::int64_t i, std::int64_t j) {
  if (options.causal && j > i) return false;
  return (!options.window || std::abs(i - j) < *options.window) && (i - j) % options.stride == 0;
}

BlockCounts count_blocks(const nn::SparsePattern& pattern, std::int64_t head, std::int64_t n) {
  const std::int64_t size = pattern.options.block_size;
  BlockCounts counts = {.blocks = (n + size - 1) / size, .allowed = {}};
  counts.allowed.resize(static_cast<std::size_t>(counts.blocks * counts.blocks));
  at::Tensor layout;
  if (pattern.layout) {
    layout = (pattern.layout->dim() == 2 ? *pattern.layout : pattern.layout->select(0, head))
                 .contiguous();
  }
  const bool* active = layout.defined() ? layout.const_data_ptr<bool>() : nullptr;
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < n; ++j) {
      const std::int64_t block = i / size * counts.blocks + j / size;
      if (active != nullptr && !active[block]) continue;
      counts.allowed[static_cast<std::size_t>(block)] += near(pattern.options, i, j);
    }
  }
  return counts;
}

/// One square per head; a block is the darker the more of its pairs are allowed.
std::string draw(const std::vector<BlockCounts>& heads, std::int64_t block_size) {
  constexpr std::int64_t kSide = 512, kGap = 24;
  const std::int64_t blocks = heads.front().blocks;
  const double cell = static_cast<double>(kSide) / static_cast<double>(blocks);
  std::ostringstream svg;
  const auto width = static_cast<std::int64_t>(heads.size()) * (kSide + kGap) - kGap;
  svg << "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"-1 -1 " << width + 2 << ' '
      << kSide + 2 << "\" fill=\"#1f4e79\">\n";
  for (std::size_t h = 0; h < heads.size(); ++h) {
    const auto left = static_cast<double>(static_cast<std::int64_t>(h) * (kSide + kGap));
    svg << "<rect x=\"" << left << "\" y=\"0\" width=\"" << kSide << "\" height=\"" << kSide
        << "\" fill=\"none\" stroke=\"#999\"/>\n";
    for (std::int64_t i = 0; i < blocks; ++i) {
      for (std::int64_t j = 0; j < blocks; ++j) {
        const std::int64_t pairs = heads[h].allowed[static_cast<std::size_t>(i * blocks + j)];
        if (pairs == 0) continue;
        const double share =
            static_cast<double>(pairs) / static_cast<double>(block_size * block_size);
        svg << "<rect x=\"" << left + static_cast<double>(j) * cell << "\" y=\""
            << static_cast<double>(i) * cell << "\" width=\"" << cell << "\" height=\"" << cell
            << "\" opacity=\"" << 0.2 + 0.8 * share << "\"/>\n";
      }
    }
  }
  svg << "</svg>\n";
  return svg.str();
}

double percent(std::int64_t part, std::int64_t whole) {
  return 100.0 * static_cast<double>(part) / static_cast<double>(whole);
}

int inspect(InspectArguments arguments) {
  auto& options = arguments.options;
  if (arguments.ctx > 0) options.local_attn_ctx = arguments.ctx;
  options.causal = !arguments.all_directions;
  const std::int64_t n = arguments.n;
  if (n < 1 || n > kLongest) {
    throw config::Error("--n: expected 1 to " + std::to_string(kLongest) + ", but got " +
                        std::to_string(n));
  }
  nn::SparsePattern pattern;
  try {
    pattern = nn::sparse_pattern(options, n);
  } catch (const c10::Error& error) {
    throw config::Error(error.what_without_backtrace());
  }
  const bool per_head = pattern.layout && pattern.layout->dim() == 3;
  std::vector<BlockCounts> heads;
  for (std::int64_t head = 0; head < (per_head ? options.num_verts : 1); ++head) {
    heads.push_back(count_blocks(pattern, head, n));
    const BlockCounts& counts = heads.back();
    const std::int64_t all = counts.blocks * counts.blocks;
    if (per_head)
      std::printf("heads %lld + %lld i: ", static_cast<long long>(head),
                  static_cast<long long>(options.num_verts));
    std::printf("%lld of %lld blocks (%.1f %%), %lld of %lld pairs (%.1f %%)\n",
                static_cast<long long>(counts.active()), static_cast<long long>(all),
                percent(counts.active(), all), static_cast<long long>(counts.pairs()),
                static_cast<long long>(n * n), percent(counts.pairs(), n * n));
  }
  if (!arguments.out.empty()) config::write_file(arguments.out, draw(heads, options.block_size));
  return kOk;
}

}  // namespace

void add_inspect(CLI::App& program, Session& session) {
  auto* verb =
      program.add_subcommand("inspect", "Count and draw the blocks of an attention pattern");
  const auto arguments = std::make_shared<InspectArguments>();
  auto& options = arguments->options;
  verb->add_option("--pattern", options.attn_mode, "all, local, strided or fixed")->required();
  verb->add_option("--n", arguments->n, "Positions, at most 16384")->capture_default_str();
  verb->add_option("--local-attn-ctx", arguments->ctx,
                   "Window of local, distance of strided, chunk of fixed");
  verb->add_option("--block-size", options.block_size, "Positions per block")
      ->capture_default_str();
  verb->add_option("--heads", options.heads, "Heads")->capture_default_str();
  verb->add_option("--num-verts", options.num_verts, "fixed: groups of heads")
      ->capture_default_str();
  verb->add_option("--vertsize", options.vertsize, "fixed: blocks per summary")
      ->capture_default_str();
  verb->add_flag("--bidirectional", arguments->all_directions, "Later positions too");
  verb->add_option("--out", arguments->out, "Draw it: an SVG file");
  verb->allow_extras();
  verb->callback([verb, arguments, &session] {
    refuse_overrides(*verb, session.overrides);
    refuse_leftovers(*verb, {});
    session.exit_code = inspect(*arguments);
  });
}

}  // namespace weir::cli
