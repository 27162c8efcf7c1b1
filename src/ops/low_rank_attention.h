// SPDX-License-Identifier: Apache-2.0
// What the backends of low_rank_attention share: the rule of a call, the checked problem, and what
// follows the choice of keys.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "ops/top_k_attention.h"
#include "weir/ops/low_rank_attention.h"

namespace weir::ops {

/// The options of a call with their defaults filled in.
struct LowRankAttentionRule {
  std::int64_t k = 1;
  bool causal = false;
  double scale = 1, route_scale = 1;
  double eps = 0.1, k_ratio = 1.125;
  std::string score = "softmax";

  /// coordinate_descent: what the scores of a query add up to, if it keeps more keys.
  double budget() const { return static_cast<double>(k) / k_ratio; }
  bool descends() const { return score == "coordinate_descent"; }

  std::vector<std::int64_t> integers() const;
  std::vector<double> numbers() const;
  static LowRankAttentionRule of(at::IntArrayRef integers, at::ArrayRef<double> numbers,
                                 std::string_view score);
};

/// The arguments of one call, checked.
struct LowRankAttentionProblem {
  TopKAttentionProblem route;             ///< of the routing heads; they have no values
  BlockSparseAttentionProblem attention;  ///< of the others: sizes and scale
  LowRankAttentionRule rule;

  std::vector<c10::SymInt> weights_shape() const {
    return {attention.batch, attention.heads, attention.queries, route.kept};
  }
};

/// Tensors of one call that take a gradient, in the order of the operator's arguments.
struct LowRankAttentionOperands {
  const at::Tensor &route_query, &route_key, &query, &key, &value;
};

/// Checks all arguments; the first call of every backend. Throws c10::Error.
LowRankAttentionProblem low_rank_attention_problem(const LowRankAttentionOperands& operands,
                                                   const OptionalTensor& key_mask,
                                                   const OptionalTensor& mask,
                                                   at::IntArrayRef integers,
                                                   at::ArrayRef<double> numbers,
                                                   std::string_view score);

/// The private operator: output, indices of the kept keys (int32, ascending, then -1) and their
/// scores s, both (batch, route_heads, n, min(k, m)), and weights p (batch, heads, n, min(k, m)).
/// Scores and weights are float32 or float64, 0 in places that are left over.
using LowRankAttentionResult = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
LowRankAttentionResult route_and_attend_composite(
    const at::Tensor& route_query, const at::Tensor& route_key, const at::Tensor& query,
    const at::Tensor& key, const at::Tensor& value, const OptionalTensor& key_mask,
    const OptionalTensor& mask, at::IntArrayRef integers, at::ArrayRef<double> numbers,
    std::string_view score);

/// Gradients of route_query, route_key, query, key and value.
using LowRankAttentionGradients =
    std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
LowRankAttentionGradients attend_routed_backward_composite(
    const at::Tensor& grad, const at::Tensor& route_query, const at::Tensor& route_key,
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& indices, const at::Tensor& scores, const at::Tensor& weights,
    at::IntArrayRef integers, at::ArrayRef<double> numbers, std::string_view score);

/// Output, scores and weights given the indices of the routing heads, from ATen operators,
/// differentiable any number of times.
std::tuple<at::Tensor, at::Tensor, at::Tensor> attend_routed(
    const LowRankAttentionOperands& operands, const at::Tensor& indices,
    const LowRankAttentionRule& rule);

}  // namespace weir::ops
