// SPDX-License-Identifier: Apache-2.0
// weir inspect: how dense an attention pattern is, and a picture of its blocks.
#include <algorithm>
#include <cstdio>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "cli/errors.h"
#include "cli/verbs.h"
#include "config/atomic_file.h"
#include "config/error.h"
#include "weir/nn/sparse_pattern.h"

namespace weir::cli {
namespace {

constexpr std::int64_t kLongest = 16384;  // every pair is looked at

struct InspectArguments {
  nn::SparseAttentionOptions options;
  std::int64_t n = 1024, ctx = 0;
  bool all_directions = false;
  std::string out;
};

/// The pairs that some heads allow, all of them the same, counted per block.
struct BlockCounts {
  std::string heads;                  // "" for all of them, else "heads 0, 2"
  std::int64_t blocks = 0;            // per side
  std::vector<std::int64_t> allowed;  // [blocks, blocks]

  std::int64_t active() const {
    return std::count_if(allowed.begin(), allowed.end(), [](std::int64_t n) { return n > 0; });
  }
  std::int64_t pairs() const {
    std::int64_t sum = 0;
    for (const std::int64_t pairs : allowed) sum += pairs;
    return sum;
  }
};

/// Counts the pairs of `pattern`, whose layout (blocks, blocks), if any, is that of one head.
std::vector<std::int64_t> count_blocks(const nn::SparsePattern& pattern, std::int64_t n) {
  const auto& options = pattern.options;
  const std::int64_t size = options.block_size, blocks = (n + size - 1) / size;
  std::vector<std::int64_t> counts(static_cast<std::size_t>(blocks * blocks));
  const at::Tensor layout = pattern.layout ? pattern.layout->contiguous() : at::Tensor();
  const bool* active = layout.defined() ? layout.const_data_ptr<bool>() : nullptr;
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < (options.causal ? i + 1 : n); ++j) {
      const std::int64_t block = i / size * blocks + j / size, distance = std::abs(i - j);
      counts[static_cast<std::size_t>(block)] +=
          distance < options.local ||
          ((active == nullptr || active[block]) && distance % options.stride == 0 &&
           (!options.window || distance < *options.window));
    }
  }
  return counts;
}

std::string listed(const std::vector<std::int64_t>& heads) {
  std::string text = heads.size() == 1 ? "head " : "heads ";
  for (const std::int64_t& head : heads) {
    text += (&head == &heads.front() ? "" : ", ") + std::to_string(head);
  }
  return text;
}

/// The heads that see the same pairs together, in the order of their first.
std::vector<BlockCounts> count_heads(const nn::SparseAttentionOptions& options, std::int64_t n) {
  std::vector<BlockCounts> all;
  for (const nn::SparsePattern& pattern : nn::sparse_patterns(options, n)) {
    const bool per_head = pattern.layout && pattern.layout->dim() == 3;
    std::vector<nn::SparsePattern> kinds;
    std::vector<std::vector<std::int64_t>> heads;
    for (std::int64_t head = 0; head < pattern.heads; ++head) {
      nn::SparsePattern mine = pattern;
      if (per_head) mine.layout = pattern.layout->select(0, head);
      const auto same = std::find_if(kinds.begin(), kinds.end(), [&](const auto& other) {
        return !per_head || other.layout->equal(*mine.layout);
      });
      heads.resize(std::max(heads.size(), static_cast<std::size_t>(same - kinds.begin()) + 1));
      heads[static_cast<std::size_t>(same - kinds.begin())].push_back(pattern.first_head + head);
      if (same == kinds.end()) kinds.push_back(std::move(mine));
    }
    for (std::size_t i = 0; i < kinds.size(); ++i) {
      const bool every = std::ssize(heads[i]) == options.heads;
      all.push_back({.heads = every ? "" : listed(heads[i]),
                     .blocks = (n + options.block_size - 1) / options.block_size,
                     .allowed = count_blocks(kinds[i], n)});
    }
  }
  return all;
}

constexpr std::int64_t kSide = 512, kGap = 24, kCaption = 28;  // of a picture

/// One square, its left edge at `left`: a block is the darker the more of its pairs are allowed.
void draw_square(const BlockCounts& counts, std::int64_t left, std::int64_t block_size,
                 std::ostream& svg) {
  const double cell = static_cast<double>(kSide) / static_cast<double>(counts.blocks);
  svg << "<rect x=\"" << left << "\" y=\"0\" width=\"" << kSide << "\" height=\"" << kSide
      << "\" fill=\"none\" stroke=\"#999\"/>\n";
  for (std::int64_t i = 0; i < counts.blocks; ++i) {
    for (std::int64_t j = 0; j < counts.blocks; ++j) {
      const std::int64_t pairs = counts.allowed[static_cast<std::size_t>(i * counts.blocks + j)];
      if (pairs == 0) continue;
      const double share =
          static_cast<double>(pairs) / static_cast<double>(block_size * block_size);
      svg << "<rect x=\"" << static_cast<double>(left) + static_cast<double>(j) * cell << "\" y=\""
          << static_cast<double>(i) * cell << "\" width=\"" << cell << "\" height=\"" << cell
          << "\" opacity=\"" << 0.2 + 0.8 * share << "\"/>\n";
    }
  }
  if (counts.heads.empty()) return;
  svg << "<text x=\"" << left << "\" y=\"" << kSide + kCaption - 6
      << "\" font-family=\"sans-serif\" font-size=\"20\">" << counts.heads << "</text>\n";
}

/// One square per kind of head, with a caption where there are several.
std::string draw(const std::vector<BlockCounts>& all, std::int64_t block_size) {
  std::ostringstream svg;
  const auto width = std::ssize(all) * (kSide + kGap) - kGap;
  svg << "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"-1 -1 " << width + 2 << ' '
      << kSide + 2 + (all.size() > 1 ? kCaption : 0) << "\" fill=\"#1f4e79\">\n";
  for (std::size_t i = 0; i < all.size(); ++i) {
    draw_square(all[i], static_cast<std::int64_t>(i) * (kSide + kGap), block_size, svg);
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
  std::vector<BlockCounts> all;
  try {
    all = count_heads(options, n);
  } catch (const c10::Error& error) {
    throw config::Error(error.what_without_backtrace());
  }
  for (const BlockCounts& counts : all) {
    const std::int64_t blocks = counts.blocks * counts.blocks;
    if (!counts.heads.empty()) std::printf("%s: ", counts.heads.c_str());
    std::printf("%lld of %lld blocks (%.1f %%), %lld of %lld pairs (%.1f %%)\n",
                static_cast<long long>(counts.active()), static_cast<long long>(blocks),
                percent(counts.active(), blocks), static_cast<long long>(counts.pairs()),
                static_cast<long long>(n * n), percent(counts.pairs(), n * n));
  }
  if (!arguments.out.empty()) config::write_file(arguments.out, draw(all, options.block_size));
  return kOk;
}

}  // namespace

void add_inspect(CLI::App& program, Session& session) {
  auto* verb =
      program.add_subcommand("inspect", "Count and draw the blocks of an attention pattern");
  const auto arguments = std::make_shared<InspectArguments>();
  auto& options = arguments->options;
  verb->add_option("--pattern", options.attn_mode,
                   "all, local, strided, fixed, custom; local+strided in one head, local,strided "
                   "in different heads")
      ->required();
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
  verb->add_option("--layout", options.layout, "custom: its rows of blocks, such as 1.. 11. 1.1");
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
