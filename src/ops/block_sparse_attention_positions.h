// SPDX-License-Identifier: Apache-2.0
// Where the queries and keys of an attention stand, as tensors: for the composite.
#pragma once

#include <ATen/core/Tensor.h>

#include "ops/block_sparse_attention.h"

namespace weir::ops {

/// int64, broadcasting to (n, m), or (batch, 1, n, m) with documents.
struct AttentionPositions {
  at::Tensor query_row;  ///< row of the query in its sequence, (..., n, 1)
  at::Tensor query;      ///< its position among the keys of its sequence, (..., n, 1)
  at::Tensor key;        ///< position of the key in its sequence, (..., 1, m)
  OptionalTensor query_sequence, key_sequence;  ///< numbers of the sequences, when packed
};

AttentionPositions attention_positions(const BlockSparseAttentionProblem& problem,
                                       at::Device device);

/// bool, (n, m) with the leading dimensions its masks need.
at::Tensor allowed_pairs(const BlockSparseAttentionProblem& problem,
                         const AttentionPositions& positions);

/// (batch, heads, n, m) float64: 0 where a weight is dropped, else 1 / (1 - dropout). The same
/// numbers that the kernels draw: kernels/dropout.h.
at::Tensor dropout_factors(const BlockSparseAttentionProblem& problem, const at::Tensor& seed);

}  // namespace weir::ops
