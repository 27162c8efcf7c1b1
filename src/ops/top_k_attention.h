// SPDX-License-Identifier: Apache-2.0
// What the backends of top_k_attention share: the checked problem, and attention over keys that are
// already chosen.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <cstdint>
#include <tuple>
#include <vector>

#include "ops/block_sparse_attention.h"
#include "weir/ops/top_k_attention.h"

namespace weir::ops {

/// The arguments of one call, checked. Which keys are visible is a pattern of
/// block_sparse_attention.
struct TopKAttentionProblem {
  BlockSparseAttentionProblem attention;
  c10::SymInt kept;  ///< min(k, m)

  std::vector<c10::SymInt> kept_shape() const {
    return {attention.batch, attention.heads, attention.queries, kept};
  }
};

/// Checks all arguments; the first call of every backend. Throws c10::Error.
TopKAttentionProblem top_k_attention_problem(const at::Tensor& query, const at::Tensor& key,
                                             const at::Tensor& value,
                                             const OptionalTensor& key_mask,
                                             const OptionalTensor& mask, std::int64_t k,
                                             bool causal, double scale);

/// The private operator: output, indices of the kept keys (int32, ascending, then -1) and their
/// weights (float32 or float64, then 0), both (batch, heads, n, min(k, m)).
using TopKAttentionResult = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
TopKAttentionResult keep_and_attend_composite(const at::Tensor& query, const at::Tensor& key,
                                              const at::Tensor& value,
                                              const OptionalTensor& key_mask,
                                              const OptionalTensor& mask, std::int64_t k,
                                              bool causal, double scale);

/// Gradients of query, key and value.
using TopKAttentionGradients = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
TopKAttentionGradients attend_kept_backward_composite(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& indices, const at::Tensor& weights, double scale);

/// Output and weights of softmax attention over the keys in `indices`, from ATen operators,
/// differentiable any number of times.
std::tuple<at::Tensor, at::Tensor> attend_kept(const at::Tensor& query, const at::Tensor& key,
                                               const at::Tensor& value, const at::Tensor& indices,
                                               double scale);

// ---- the composite's pieces. `indices` are int32 (batch, heads, n, kept), -1 in places that are
// left over; rows of keys or values are (batch, kv_heads, m, features). Results are of the computed
// type unless said otherwise.

/// The choice: indices of the largest <q_i, k_j> sign(scale).
at::Tensor choose_keys(const TopKAttentionProblem& problem, const at::Tensor& query,
                       const at::Tensor& key);

/// (batch, heads, n, kept): <q_i, k_j>. What left over places have is unspecified.
at::Tensor kept_products(const at::Tensor& query, const at::Tensor& key, const at::Tensor& indices);

/// Softmax over the kept, 0 in left over places.
at::Tensor softmax_of_kept(const at::Tensor& logits, const at::Tensor& indices);

/// (batch, heads, n, features): sum over the kept of weight times row. Weights of left over places
/// are 0.
at::Tensor sum_of_kept(const at::Tensor& weights, const at::Tensor& rows,
                       const at::Tensor& indices);

/// Its transpose: the rows of all queries, each times its weights, added up at the kept keys. Of
/// the shape and dtype of `like`.
at::Tensor scatter_to_kept(const at::Tensor& weights, const at::Tensor& query,
                           const at::Tensor& like, const at::Tensor& indices);

}  // namespace weir::ops
