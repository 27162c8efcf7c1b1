// SPDX-License-Identifier: Apache-2.0
// The grammar of attn_mode, and whether the other options fit it.
#include "nn/sparse_mode.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "nn/check.h"

namespace weir::nn {
namespace {

constexpr auto kName = "SparseAttention";

bool is_mode(const std::string& word) {
  return word == "all" || word == "local" || word == "strided" || word == "fixed" ||
         word == "custom";
}

SparseMode parse(const std::string& text) {
  const auto parts = split_modes(text, '+');
  for (const auto& part : parts) {
    TORCH_CHECK_VALUE(is_mode(part), "weir::", kName,
                      ": expected `attn_mode` to be \"all\", \"local\", \"strided\", \"fixed\" or "
                      "\"custom\", but got \"",
                      part, "\".");
  }
  if (parts.size() == 1) return {.mode = parts[0], .local = false};
  const bool local_first = parts[0] == "local";
  const auto& other = parts[local_first ? 1 : 0];
  TORCH_CHECK_VALUE(
      parts.size() == 2 && (local_first || parts[1] == "local") && other != "all" &&
          other != "local",
      "weir::", kName,
      ": expected a union to be \"local+strided\", \"local+fixed\" or \"local+custom\", but got \"",
      text, "\".");
  return {.mode = other, .local = true};
}

void check_fixed(const SparseAttentionOptions& options, std::int64_t heads) {
  const std::int64_t ctx = *options.local_attn_ctx;
  TORCH_CHECK_VALUE(ctx % options.block_size == 0, "weir::", kName,
                    ": expected `local_attn_ctx` to be a multiple of `block_size`, ",
                    options.block_size, ", but got ", ctx, ".");
  const std::int64_t blocks = ctx / options.block_size;
  TORCH_CHECK_VALUE(options.vertsize <= blocks && blocks % options.vertsize == 0, "weir::", kName,
                    ": expected `vertsize` to divide the ", blocks, " blocks of a chunk, but got ",
                    options.vertsize, ".");
  TORCH_CHECK_VALUE(options.num_verts * options.vertsize <= blocks, "weir::", kName,
                    ": expected `num_verts` * `vertsize` to be at most the ", blocks,
                    " blocks of a chunk, but got ", options.num_verts, " * ", options.vertsize,
                    ".");
  TORCH_CHECK_VALUE(heads % options.num_verts == 0, "weir::", kName,
                    ": expected `num_verts` to divide ",
                    heads == options.heads ? "`heads`, " : "the heads of a pattern, ", heads,
                    ", but got ", options.num_verts, ".");
}

void check_layout(const SparseAttentionOptions& options) {
  const auto& layout = options.layout;
  TORCH_CHECK_VALUE(!layout.empty() && !layout.front().empty(), "weir::", kName,
                    ": expected `layout` with `attn_mode` \"", options.attn_mode,
                    "\", but got none.");
  const std::size_t blocks = layout.front().size();
  const auto heads = static_cast<std::size_t>(options.heads);
  TORCH_CHECK_VALUE(layout.size() == blocks || layout.size() == blocks * heads, "weir::", kName,
                    ": expected `layout` to have as many rows as columns, ", blocks,
                    heads > 1 ? ", or `heads` times as many" : "", ", but got ", layout.size(),
                    ".");
  for (std::size_t row = 0; row < layout.size(); ++row) {
    TORCH_CHECK_VALUE(layout[row].size() == blocks, "weir::", kName, ": expected row ", row,
                      " of `layout` to have ", blocks, " columns like the first, but got ",
                      layout[row].size(), ".");
    const auto wrong = layout[row].find_first_not_of("10.");
    TORCH_CHECK_VALUE(wrong == std::string::npos, "weir::", kName,
                      ": expected `layout` to consist of '1', and '0' or '.', but row ", row,
                      " has '", layout[row].substr(wrong, 1), "'.");
  }
}

void check_sizes(const SparseAttentionOptions& options) {
  check_size(kName, "heads", options.heads);
  check_size(kName, "num_verts", options.num_verts);
  check_size(kName, "vertsize", options.vertsize);
  TORCH_CHECK_VALUE(options.block_size >= 1 && options.block_size <= 128, "weir::", kName,
                    ": expected `block_size` to lie in [1, 128], but got ", options.block_size,
                    ".");
}

}  // namespace

std::vector<std::string> split_modes(std::string_view text, char separator) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(separator, begin), text.size());
    std::string_view part = text.substr(begin, end - begin);
    while (part.starts_with(' ')) part.remove_prefix(1);
    while (part.ends_with(' ')) part.remove_suffix(1);
    parts.emplace_back(part);
    begin = end + 1;
  }
  return parts;
}

std::vector<SparseMode> checked_modes(const SparseAttentionOptions& options) {
  check_sizes(options);
  std::vector<SparseMode> modes;
  for (const auto& text : split_modes(options.attn_mode, ',')) modes.push_back(parse(text));
  const auto count = static_cast<std::int64_t>(modes.size());
  TORCH_CHECK_VALUE(options.heads % count == 0, "weir::", kName,
                    ": expected the number of patterns in `attn_mode` to divide `heads`, ",
                    options.heads, ", but got ", count, ".");
  bool custom = false;
  for (const auto& [mode, local] : modes) {
    custom |= mode == "custom";
    if (mode == "all" || (mode == "custom" && !local)) continue;
    TORCH_CHECK_VALUE(options.local_attn_ctx, "weir::", kName,
                      ": expected `local_attn_ctx` with `attn_mode` \"", options.attn_mode,
                      "\", but got none.");
    check_size(kName, "local_attn_ctx", *options.local_attn_ctx);
    if (mode == "fixed") check_fixed(options, options.heads / count);
  }
  if (custom) check_layout(options);
  TORCH_CHECK_VALUE(custom || options.layout.empty(), "weir::", kName,
                    ": expected `layout` only with `attn_mode` \"custom\", but `attn_mode` is \"",
                    options.attn_mode, "\".");
  return modes;
}

}  // namespace weir::nn
