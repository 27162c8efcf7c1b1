// SPDX-License-Identifier: Apache-2.0
// Operands on the CPU of the attention operators that keep k keys per query: pointers to results,
// and gradients of keys and values that add up in parts.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdint>

#include "kernels/top_k_attention.h"
#include "ops/block_sparse_attention_operands.h"

namespace weir::ops {

/// Where the gradients of `x`, keys or values, add up: one part per key_parts, rows in whole
/// vectors, in the computed type.
inline at::Tensor sums_of_parts(const kernels::BlockSparseAttentionShape& shape,
                                const at::Tensor& x) {
  return at::empty(
      {shape.key_parts, x.size(0), x.size(1), x.size(2), kernels::top_k_attention_row(x.size(-1))},
      x.options().dtype(x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat));
}

/// Elementary steps of one call of the backward, over `kept` keys of each query.
inline std::int64_t backward_cost(const kernels::BlockSparseAttentionShape& shape,
                                  std::int64_t kept) {
  const std::int64_t queries = shape.heads * shape.queries;  // of one batch entry
  return queries * kept * (shape.dim + shape.value_dim) /
         std::max<std::int64_t>(1, 4 * shape.kv_heads * shape.key_parts);
}

}  // namespace weir::ops
