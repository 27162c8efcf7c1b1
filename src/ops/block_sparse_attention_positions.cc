// SPDX-License-Identifier: Apache-2.0
#include "ops/block_sparse_attention_positions.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/searchsorted.h>

#include <tuple>

#include "kernels/dropout.h"

namespace weir::ops {
namespace {

using Problem = BlockSparseAttentionProblem;

at::Tensor as_rows(const at::Tensor& x) { return x.unsqueeze(-1); }
at::Tensor as_columns(const at::Tensor& x) { return x.unsqueeze(-2); }

struct Side {
  at::Tensor sequence, row;  // of each position
};

Side packed_side(const at::Tensor& cu_seqlens, const at::Tensor& positions) {
  const at::Tensor ends = cu_seqlens.to(at::kLong).slice(0, 1);
  const at::Tensor starts = cu_seqlens.to(at::kLong).slice(0, 0, -1);
  const at::Tensor sequence =
      at::searchsorted(ends.contiguous(), positions, /*out_int32=*/false, /*right=*/true);
  return {.sequence = sequence, .row = positions - starts.index_select(0, sequence)};
}

/// Runs of equal ids, (batch, 1, n).
Side document_side(const at::Tensor& ids, const at::Tensor& positions) {
  const at::Tensor first = at::ones_like(ids.slice(1, 0, 1), at::kBool);
  const at::Tensor change = at::cat({first, ids.slice(1, 1) != ids.slice(1, 0, -1)}, 1);
  const at::Tensor start =
      std::get<0>(positions.expand_as(change).masked_fill(change.logical_not(), 0).cummax(1));
  return {.sequence = change.cumsum(1).unsqueeze(1), .row = (positions - start).unsqueeze(1)};
}

/// Which key slots of a layout's block rows are active: (n, m) with leading dimensions.
at::Tensor allowed_by_layout(const Problem& problem, const at::Tensor& layout,
                             const AttentionPositions& positions) {
  const std::int64_t size = problem.rule.block_size;
  const at::Tensor row = positions.query_row.floor_divide(size),
                   column = positions.key.floor_divide(size);
  TORCH_CHECK_VALUE(row.numel() == 0 || column.numel() == 0 ||
                        (row.max().item<std::int64_t>() < layout.size(-2) &&
                         column.max().item<std::int64_t>() < layout.size(-1)),
                    "weir::block_sparse_attention: expected `layout` to have the blocks of the ",
                    "longest sequence, but got ", layout.sizes(), ".");
  const at::Tensor slots = row * layout.size(-1) + column;  // (..., n, m)
  const at::Tensor flat = layout.flatten(-2).index_select(-1, slots.flatten());
  if (layout.dim() == 2) return flat.view(slots.sizes());
  const std::int64_t heads = layout.size(0), n = slots.size(-2), m = slots.size(-1);
  if (slots.dim() == 2) return flat.view({heads, n, m});
  return flat.view({heads, slots.size(0), n, m}).transpose(0, 1);
}

/// 32 well-mixed bits of 32 (held in int64): kernels::mix32.
at::Tensor mix32(at::Tensor x) {
  constexpr std::int64_t kLow = 0xFFFFFFFF;
  const auto fold = [](const at::Tensor& bits, std::int64_t by) {
    return bits.bitwise_xor(bits.bitwise_right_shift(at::Scalar(by)));
  };
  x = fold(x.bitwise_and(kLow), 16);
  x = fold((x * std::int64_t{kernels::kMix1}).bitwise_and(kLow), 15);
  return fold((x * std::int64_t{kernels::kMix2}).bitwise_and(kLow), 16);
}

}  // namespace

AttentionPositions attention_positions(const Problem& problem, at::Device device) {
  const auto options = at::TensorOptions(at::kLong).device(device);
  const at::Tensor i = at::arange(at::Scalar(problem.queries), options);
  const at::Tensor j = at::arange(at::Scalar(problem.keys), options);
  const auto& tensors = problem.tensors;
  AttentionPositions at;
  if (tensors.document_ids) {
    const Side side = document_side(*tensors.document_ids, i);
    at.query_row = at.query = as_rows(side.row), at.key = as_columns(side.row);
    at.query_sequence = as_rows(side.sequence), at.key_sequence = as_columns(side.sequence);
  } else if (tensors.cu_seqlens) {
    const at::Tensor cu = tensors.cu_seqlens->to(at::kLong);
    const at::Tensor cu_k = tensors.cu_seqlens_k.value_or(cu).to(at::kLong);
    const Side queries = packed_side(cu, i), keys = packed_side(cu_k, j);
    const at::Tensor offset = cu_k.diff() - cu.diff();
    at.query_row = as_rows(queries.row), at.key = as_columns(keys.row);
    at.query = as_rows(queries.row + offset.index_select(0, queries.sequence));
    at.query_sequence = as_rows(queries.sequence), at.key_sequence = as_columns(keys.sequence);
  } else {
    at.query_row = as_rows(i), at.key = as_columns(j);
    at.query = at.query_row + problem.rule.offset;
  }
  return at;
}

at::Tensor allowed_pairs(const Problem& problem, const AttentionPositions& positions) {
  const auto& [rule, tensors] = std::tie(problem.rule, problem.tensors);
  const at::Tensor distance = positions.query - positions.key;
  const at::Tensor start = positions.query - positions.query.remainder(rule.bucket);
  const at::Tensor first = start - rule.behind, last = start + (rule.bucket - 1 + rule.ahead);
  at::Tensor allowed = (positions.key >= first) & (positions.key <= last);
  if (rule.causal) allowed = allowed & (distance >= 0);
  if (rule.prefix > 0) allowed = allowed | (positions.key < rule.prefix);
  if (rule.stride > 1) allowed = allowed & (distance.remainder(rule.stride) == 0);
  if (tensors.layout) allowed = allowed & allowed_by_layout(problem, *tensors.layout, positions);
  if (rule.local > 0) {
    const at::Tensor near = distance < rule.local;
    allowed = allowed | (near & (rule.causal ? distance >= 0 : distance > -rule.local));
  }
  if (positions.query_sequence) {
    allowed = allowed & (*positions.query_sequence == *positions.key_sequence);
  }
  if (tensors.key_mask) allowed = allowed & tensors.key_mask->unsqueeze(1).unsqueeze(1);
  return tensors.mask ? allowed & *tensors.mask : allowed;
}

at::Tensor dropout_factors(const Problem& problem, const at::Tensor& seed) {
  constexpr std::int64_t kLow = 0xFFFFFFFF;
  const auto options = at::TensorOptions(at::kLong).device(seed.device());
  const auto count = [&](const c10::SymInt& size) { return at::arange(at::Scalar(size), options); };
  const at::Tensor low = seed.bitwise_and(kLow), high = seed.bitwise_right_shift(32);
  const at::Tensor head = count(problem.batch * problem.heads);
  const at::Tensor keys =  // (batch, heads, 1, 1)
      mix32(mix32(low.bitwise_xor((head * std::int64_t{kernels::kHeads}).bitwise_and(kLow))) + high)
          .view_symint({problem.batch, problem.heads, 1, 1});
  const at::Tensor rows = mix32(keys.bitwise_xor(as_rows(count(problem.queries))));
  const at::Tensor bits =
      mix32(rows + (count(problem.keys) * std::int64_t{kernels::kColumns}).bitwise_and(kLow));
  const double dropout = problem.rule.dropout;
  return (bits >= static_cast<std::int64_t>(kernels::dropout_threshold(dropout))).to(at::kDouble) /
         (1 - dropout);
}

}  // namespace weir::ops
