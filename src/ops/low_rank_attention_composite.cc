// SPDX-License-Identifier: Apache-2.0
// low_rank_attention from ATen operators: the choice of top_k_attention by the routing heads, then
// attention over gathered keys and values, which alone is differentiated.
#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include "ops/attention_heads.h"
#include "ops/low_rank_attention.h"
#include "weir/ops/coordinate_descent.h"

namespace weir::ops {
namespace {

using Operands = LowRankAttentionOperands;
using Rule = LowRankAttentionRule;

at::Tensor scores_of(const at::Tensor& logits, const at::Tensor& indices, const Rule& rule) {
  if (!rule.descends()) return softmax_of_kept(logits, indices);
  return coordinate_descent(logits, rule.budget(), indices >= 0,
                            {.eps = rule.eps, .solver = "exact"});
}

/// Gradients of the scores to those of the routing logits.
at::Tensor scores_backward(const at::Tensor& grads, const at::Tensor& scores, const Rule& rule) {
  if (!rule.descends()) {
    return scores * (grads - (scores * grads).sum(-1, /*keepdim=*/true));
  }
  const at::Tensor saturated = scores >= 1;
  const at::Tensor live = scores.masked_fill(saturated, 0);
  const at::Tensor mass = live.sum(-1, /*keepdim=*/true);
  const at::Tensor mean =
      ((grads.masked_fill(saturated, 0) * live).sum(-1, /*keepdim=*/true) / mass)
          .masked_fill(mass == 0, 0);
  return (live / rule.eps * (grads - mean)).masked_fill(saturated, 0);
}

TORCH_LIBRARY_IMPL(weir, CompositeExplicitAutograd, m) {
  m.impl("_low_rank_attention", route_and_attend_composite);
  m.impl("_low_rank_attention_backward", attend_routed_backward_composite);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor> attend_routed(const Operands& operands,
                                                             const at::Tensor& indices,
                                                             const Rule& rule) {
  const auto& [route_query, route_key, query, key, value] = operands;
  const c10::SymInt heads = query.sym_size(1);
  const at::Tensor kept = repeat_heads(heads, indices);
  const at::Tensor scores =
      scores_of(kept_products(route_query, route_key, indices) * rule.route_scale, indices, rule);
  // In this order exactly 1, or NaN.
  const at::Tensor straight_through = 1 + (scores - scores.detach());
  const at::Tensor weights = softmax_of_kept(kept_products(query, key, kept) * rule.scale, kept) *
                             repeat_heads(heads, straight_through);
  return {sum_of_kept(weights, value, kept).to(query.scalar_type()), scores, weights};
}

LowRankAttentionResult route_and_attend_composite(
    const at::Tensor& route_query, const at::Tensor& route_key, const at::Tensor& query,
    const at::Tensor& key, const at::Tensor& value, const OptionalTensor& key_mask,
    const OptionalTensor& mask, at::IntArrayRef integers, at::ArrayRef<double> numbers,
    std::string_view score) {
  const Operands operands = {route_query, route_key, query, key, value};
  const auto problem =
      low_rank_attention_problem(operands, key_mask, mask, integers, numbers, score);
  const at::Tensor indices = choose_keys(problem.route, route_query, route_key);
  const auto [output, scores, weights] = attend_routed(operands, indices, problem.rule);
  return {output, indices, scores, weights};
}

LowRankAttentionGradients attend_routed_backward_composite(
    const at::Tensor& grad, const at::Tensor& route_query, const at::Tensor& route_key,
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& indices, const at::Tensor& scores, const at::Tensor& weights,
    at::IntArrayRef integers, at::ArrayRef<double> numbers, std::string_view score) {
  const Rule rule = low_rank_attention_problem({route_query, route_key, query, key, value},
                                               std::nullopt, std::nullopt, integers, numbers, score)
                        .rule;
  const at::Tensor kept = repeat_heads(query.sym_size(1), indices), empty = indices < 0;
  auto [grad_query, grad_key, grad_value] =
      attend_kept_backward_composite(grad, query, key, value, kept, weights, rule.scale);
  const at::Tensor of_scores =
      sum_heads(indices.sym_size(1), weights * kept_products(grad, value, kept))
          .masked_fill(empty, 0);
  const at::Tensor of_logits =
      (scores_backward(of_scores, scores, rule) * rule.route_scale).masked_fill(empty, 0);
  return {sum_of_kept(of_logits, route_key, indices).to(route_query.scalar_type()),
          scatter_to_kept(of_logits, route_query, route_key, indices), grad_query, grad_key,
          grad_value};
}

}  // namespace weir::ops
