// SPDX-License-Identifier: Apache-2.0
// Modes as layouts and rules of block_sparse_attention, and the same rules by position.
#include "weir/nn/sparse_pattern.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/where.h>

#include <algorithm>

#include "nn/sparse_mode.h"

namespace weir::nn {
namespace {

using at::indexing::Slice;

std::int64_t blocks_of(std::int64_t n, std::int64_t size) { return (n + size - 1) / size; }

/// Blocks of the query's own chunk and the summaries of all chunks: (blocks, blocks), or per head.
at::Tensor fixed_layout(const SparseAttentionOptions& options, std::int64_t heads, std::int64_t n) {
  const std::int64_t chunk = *options.local_attn_ctx / options.block_size;
  const at::Tensor blocks = at::arange(blocks_of(n, options.block_size), at::kLong);
  const at::Tensor chunks = blocks.div(chunk, "floor");
  const at::Tensor own = chunks.unsqueeze(1) == chunks.unsqueeze(0);
  // Counted from the end of a chunk, summary v is blocks v * vertsize to (v + 1) * vertsize - 1.
  const at::Tensor summary = (chunk - 1 - blocks.remainder(chunk)).div(options.vertsize, "floor");
  if (options.num_verts == 1) return own | (summary == 0).unsqueeze(0);
  const at::Tensor mine = at::arange(heads, at::kLong).remainder(options.num_verts);
  return own.unsqueeze(0) | (summary.unsqueeze(0) == mine.unsqueeze(1)).unsqueeze(1);
}

/// The rows of `options.layout` that concern these heads and positions.
at::Tensor custom_layout(const SparseAttentionOptions& options, std::int64_t first_head,
                         std::int64_t heads, std::int64_t n) {
  const auto columns = static_cast<std::int64_t>(options.layout.front().size());
  const auto rows = static_cast<std::int64_t>(options.layout.size());
  TORCH_CHECK_VALUE(n <= columns * options.block_size, "weir::SparseAttention: expected at most ",
                    columns * options.block_size, " positions, ", columns,
                    " blocks of `layout`, but got ", n, ".");
  const bool per_head = rows != columns;
  const std::int64_t first_row = per_head ? first_head * columns : 0;
  at::Tensor layout = at::empty({per_head ? heads * columns : columns, columns}, at::kBool);
  bool* cell = layout.mutable_data_ptr<bool>();
  for (std::int64_t row = 0; row < layout.size(0); ++row) {
    for (const char c : options.layout[static_cast<std::size_t>(first_row + row)]) {
      *cell++ = c == '1';
    }
  }
  if (per_head) layout = layout.view({heads, columns, columns});
  const std::int64_t count = blocks_of(n, options.block_size);
  return layout.narrow(-2, 0, count).narrow(-1, 0, count);
}

}  // namespace

std::vector<SparsePattern> sparse_patterns(const SparseAttentionOptions& options, std::int64_t n) {
  const auto modes = checked_modes(options);
  const std::int64_t heads = options.heads / static_cast<std::int64_t>(modes.size());
  std::vector<SparsePattern> patterns;
  for (const auto& [mode, local] : modes) {
    SparsePattern& pattern = patterns.emplace_back();
    pattern.first_head = static_cast<std::int64_t>(patterns.size() - 1) * heads;
    pattern.heads = heads;
    pattern.options = {.block_size = options.block_size, .causal = options.causal};
    if (mode == "local") pattern.options.window = options.local_attn_ctx;
    if (mode == "strided") pattern.options.stride = *options.local_attn_ctx;
    if (mode == "fixed") pattern.layout = fixed_layout(options, heads, n);
    if (mode == "custom") pattern.layout = custom_layout(options, pattern.first_head, heads, n);
    if (local) pattern.options.local = *options.local_attn_ctx;
  }
  return patterns;
}

at::Tensor allowed(const SparsePattern& pattern, const at::Tensor& queries,
                   const at::Tensor& keys) {
  const auto& options = pattern.options;
  const at::Tensor i = queries.unsqueeze(1).unsqueeze(3);  // (batch, 1, m, 1)
  const at::Tensor j = keys.unsqueeze(1).unsqueeze(2);     // (batch, 1, 1, slots)
  const at::Tensor distance = i - j;                       // (batch, 1, m, slots)
  at::Tensor seen = j >= 0;
  if (options.stride > 1) seen = seen & (distance.remainder(options.stride) == 0);
  if (options.window) seen = seen & (distance.abs() < *options.window);
  if (pattern.layout) {
    const at::Tensor rows = queries.div(options.block_size, "floor").unsqueeze(2);
    const at::Tensor columns = keys.clamp_min(0).div(options.block_size, "floor").unsqueeze(1);
    const at::Tensor layout = pattern.layout->to(keys.device());
    seen = seen & (layout.dim() == 2 ? layout.index({rows, columns}).unsqueeze(1)
                                     : layout.index({Slice(), rows, columns}).transpose(0, 1));
  }
  if (options.local > 0) seen = seen | ((distance.abs() < options.local) & (j >= 0));
  if (options.causal) return seen & (distance >= 0);
  return seen.expand({keys.size(0), -1, queries.size(1), keys.size(1)});
}

SparseReach::SparseReach(SparsePattern pattern, std::int64_t n)
    : pattern_(std::move(pattern)), n_(n) {
  if (!pattern_.layout) return;
  const at::Tensor layout =  // (blocks, blocks)
      pattern_.layout->dim() == 2 ? *pattern_.layout : pattern_.layout->any(0);
  const at::Tensor rows = at::arange(layout.size(0), at::kLong).unsqueeze(1);
  last_row_ = at::where(layout, rows, rows.new_full({}, -1)).amax(0);
}

at::Tensor SparseReach::operator()(const at::Tensor& next, const at::Tensor& keys) const {
  const auto& options = pattern_.options;
  const at::Tensor from = next.unsqueeze(1);  // (batch, 1)
  // The first query at or behind `next` a multiple of the stride away.
  const at::Tensor first = from + (keys - from).remainder(options.stride);
  at::Tensor seen = first < n_;
  if (options.window) seen = seen & (first - keys < *options.window);
  if (last_row_.defined()) {
    const at::Tensor columns = keys.clamp_min(0).div(options.block_size, "floor");
    seen = seen &
           (last_row_.to(keys.device()).index({columns}) >= from.div(options.block_size, "floor"));
  }
  if (options.local > 0) seen = seen | (from - keys < options.local);
  return seen & (from < n_) & (keys >= 0);
}

}  // namespace weir::nn
