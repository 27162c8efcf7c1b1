// SPDX-License-Identifier: Apache-2.0
// top_k_attention from ATen operators: the choice from dense logits and a stable sort, then
// attention over gathered keys and values, which alone is differentiated.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <limits>

#include "ops/block_sparse_attention_positions.h"
#include "ops/top_k_attention.h"

namespace weir::ops {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

at::ScalarType compute_of(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// The key head of each query head, (heads).
at::Tensor key_heads(const at::Tensor& query, const at::Tensor& key) {
  const std::int64_t heads = query.size(1);
  const std::int64_t group = heads / std::max<std::int64_t>(1, key.size(1));
  return at::arange(heads, query.options().dtype(at::kLong))
      .floor_divide(std::max<std::int64_t>(1, group));
}

/// Where the kept keys stand among all (batch * kv_heads * m); those of empty places at 0.
at::Tensor slots_of(const at::Tensor& indices, const at::Tensor& query, const at::Tensor& key) {
  const auto longs = query.options().dtype(at::kLong);
  const at::Tensor batch = at::arange(query.size(0), longs).view({-1, 1});
  const at::Tensor first = (batch * key.size(1) + key_heads(query, key)) * key.size(2);
  const at::Tensor slots = indices.to(at::kLong) + first.unsqueeze(-1).unsqueeze(-1);
  return slots.masked_fill(indices < 0, 0).flatten();
}

/// The rows of the kept keys or values, (batch, heads, n, kept, features), 0 in empty places.
at::Tensor rows_of(const at::Tensor& x, const at::Tensor& slots, const at::Tensor& indices) {
  std::vector<std::int64_t> shape = indices.sizes().vec();
  shape.push_back(x.size(-1));
  const at::Tensor rows = x.to(compute_of(x)).flatten(0, 2).index_select(0, slots).view(shape);
  return rows.masked_fill((indices < 0).unsqueeze(-1), 0);
}

TORCH_LIBRARY_IMPL(weir, CompositeExplicitAutograd, m) {
  m.impl("_top_k_attention", keep_and_attend_composite);
  m.impl("_top_k_attention_backward", attend_kept_backward_composite);
}

}  // namespace

at::Tensor choose_keys(const TopKAttentionProblem& problem, const at::Tensor& query,
                       const at::Tensor& key) {
  const auto& attention = problem.attention;
  const at::Tensor allowed =
      allowed_pairs(attention, attention_positions(attention, query.device()));
  const double scale = attention.rule.scale;
  const at::Tensor keys = key.to(attention.compute).index_select(1, key_heads(query, key));
  // Equal products stay equal: of the scale only the sign counts.
  const at::Tensor logits =
      at::matmul(query.to(attention.compute) * ((scale > 0) - (scale < 0)), keys.transpose(-2, -1))
          .masked_fill(allowed.logical_not(), -kInfinity);
  const auto [sorted, order] = at::sort(logits, /*stable=*/true, -1, /*descending=*/true);
  const std::int64_t kept = problem.kept.guard_int(__FILE__, __LINE__), m = key.size(2);
  const at::Tensor none = sorted.narrow(-1, 0, kept) == -kInfinity;
  const at::Tensor ascending =
      std::get<0>(at::sort(order.narrow(-1, 0, kept).masked_fill(none, m), -1));
  return ascending.masked_fill(ascending == m, -1).to(at::kInt);
}

at::Tensor kept_products(const at::Tensor& query, const at::Tensor& key,
                         const at::Tensor& indices) {
  const at::Tensor wide = query.to(compute_of(query)).unsqueeze(-2);
  return (wide * rows_of(key, slots_of(indices, query, key), indices)).sum(-1);
}

at::Tensor softmax_of_kept(const at::Tensor& logits, const at::Tensor& indices) {
  const at::Tensor empty = indices < 0;
  // A query that keeps nothing would be 0 / 0.
  const at::Tensor drop = empty & empty.all(-1, /*keepdim=*/true).logical_not();
  return at::softmax(logits.masked_fill(drop, -kInfinity), -1).masked_fill(empty, 0);
}

at::Tensor sum_of_kept(const at::Tensor& weights, const at::Tensor& rows,
                       const at::Tensor& indices) {
  return (weights.unsqueeze(-1) * rows_of(rows, slots_of(indices, weights, rows), indices)).sum(-2);
}

at::Tensor scatter_to_kept(const at::Tensor& weights, const at::Tensor& query,
                           const at::Tensor& like, const at::Tensor& indices) {
  const auto dtype = compute_of(query);
  const at::Tensor rows = (weights.unsqueeze(-1) * query.to(dtype).unsqueeze(-2))
                              .masked_fill((indices < 0).unsqueeze(-1), 0);
  return at::zeros(like.sizes(), like.options().dtype(dtype))
      .flatten(0, 2)
      .index_add(0, slots_of(indices, query, like), rows.flatten(0, 3))
      .view(like.sizes())
      .to(like.scalar_type());
}

std::tuple<at::Tensor, at::Tensor> attend_kept(const at::Tensor& query, const at::Tensor& key,
                                               const at::Tensor& value, const at::Tensor& indices,
                                               double scale) {
  const at::Tensor weights = softmax_of_kept(kept_products(query, key, indices) * scale, indices);
  return {sum_of_kept(weights, value, indices).to(query.scalar_type()), weights};
}

TopKAttentionResult keep_and_attend_composite(const at::Tensor& query, const at::Tensor& key,
                                              const at::Tensor& value,
                                              const OptionalTensor& key_mask,
                                              const OptionalTensor& mask, std::int64_t k,
                                              bool causal, double scale) {
  const auto problem = top_k_attention_problem(query, key, value, key_mask, mask, k, causal, scale);
  const at::Tensor indices = choose_keys(problem, query, key);
  const auto [output, weights] = attend_kept(query, key, value, indices, scale);
  return {output, indices, weights};
}

TopKAttentionGradients attend_kept_backward_composite(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& indices, const at::Tensor& weights, double scale) {
  const at::Tensor grads = kept_products(grad, value, indices);
  const at::Tensor mean = (weights * grads).sum(-1, /*keepdim=*/true);
  const at::Tensor of_logits = (weights * (grads - mean) * scale).masked_fill(indices < 0, 0);
  return {sum_of_kept(of_logits, key, indices).to(query.scalar_type()),
          scatter_to_kept(of_logits, query, key, indices),
          scatter_to_kept(weights, grad, value, indices)};
}

}  // namespace weir::ops
