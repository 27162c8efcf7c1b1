// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention from ATen operators, dense: every pair's logit is computed, and those that
// are not allowed are dropped. What is not finite is taken out before the products, since
// 0 * NaN = NaN, and put back as a NaN in the log-sum-exp of exactly the queries that attend it.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <torch/library.h>

#include <limits>

#include "ops/block_sparse_attention.h"

namespace weir::ops {
namespace {

using Problem = BlockSparseAttentionProblem;
using OptionalTensor = std::optional<at::Tensor>;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// The operands in the dtype of the computation, finite, with the key heads repeated.
struct Dense {
  at::Tensor allowed;   // bool, (n, m) with the leading dimensions its masks need
  at::Tensor empty;     // bool (..., n, 1): no key is allowed
  at::Tensor poisoned;  // bool (..., n, 1): something that is not finite is attended
  at::Tensor query;     // (batch, heads, n, dim), times scale; 0 where empty
  at::Tensor key;       // (batch, heads, m, dim)
  at::Tensor value;     // (batch, heads, m, value_dim)
};

/// bool (n, m): what causal, window, stride and prefix allow.
at::Tensor allowed_positions(const Problem& problem, at::Device device) {
  const auto options = at::TensorOptions(at::kLong).device(device);
  const at::Tensor i = at::arange(at::Scalar(problem.queries), options).unsqueeze(-1);
  const at::Tensor j = at::arange(at::Scalar(problem.keys), options);
  const at::Tensor distance = i - j + at::Scalar(problem.keys - problem.queries);
  at::Tensor near = at::ones_like(distance, at::kBool);
  if (problem.causal) near = near & (distance >= 0);
  if (problem.window > 0) near = near & (distance < problem.window) & (distance > -problem.window);
  if (problem.prefix > 0) near = near | (j < problem.prefix);
  return problem.stride == 1 ? near : near & (distance.remainder(problem.stride) == 0);
}

at::Tensor allowed_pairs(const Problem& problem, const OptionalTensor& layout,
                         const OptionalTensor& key_mask, const OptionalTensor& mask,
                         at::Device device) {
  at::Tensor allowed = allowed_positions(problem, device);
  if (layout) {
    const auto options = at::TensorOptions(at::kLong).device(device);
    const auto blocks = [&](const c10::SymInt& positions) {
      return at::arange(at::Scalar(positions), options).floor_divide(problem.block_size);
    };
    allowed =
        allowed &
        layout->index_select(-2, blocks(problem.queries)).index_select(-1, blocks(problem.keys));
  }
  if (key_mask) allowed = allowed & key_mask->unsqueeze(1).unsqueeze(1);
  return mask ? allowed & *mask : allowed;
}

/// (batch, kv_heads, ...) -> (batch, heads, ...): query head h reads key head h / (heads/kv_heads).
at::Tensor repeat_heads(const Problem& problem, const at::Tensor& x) {
  if (problem.heads == problem.kv_heads) return x;
  const c10::SymInt group = problem.heads / problem.kv_heads;
  return x.unsqueeze(2)
      .expand_symint({problem.batch, problem.kv_heads, group, x.sym_size(2), x.sym_size(3)})
      .flatten(1, 2);
}

/// The transpose of `repeat_heads`.
at::Tensor sum_heads(const Problem& problem, const at::Tensor& x) {
  if (problem.heads == problem.kv_heads) return x;
  const c10::SymInt group = problem.heads / problem.kv_heads;
  return x.view_symint({problem.batch, problem.kv_heads, group, x.sym_size(2), x.sym_size(3)})
      .sum(2);
}

Dense prepare(const Problem& problem, const at::Tensor& query, const at::Tensor& key,
              const at::Tensor& value, const OptionalTensor& layout, const OptionalTensor& key_mask,
              const OptionalTensor& mask) {
  const auto bad = [](const at::Tensor& x) { return at::isfinite(x).logical_not(); };
  const at::Tensor bad_query = bad(query), bad_key = bad(key), bad_value = bad(value);
  const at::Tensor bad_keys =
      (bad_key.any(-1, /*keepdim=*/true) | bad_value.any(-1, /*keepdim=*/true)).transpose(-2, -1);
  Dense dense;
  dense.allowed = allowed_pairs(problem, layout, key_mask, mask, query.device());
  dense.empty = dense.allowed.any(-1, /*keepdim=*/true).logical_not();
  dense.poisoned = (dense.allowed & repeat_heads(problem, bad_keys)).any(-1, /*keepdim=*/true) |
                   bad_query.any(-1, /*keepdim=*/true);
  dense.query = query.to(problem.compute).masked_fill(bad_query | dense.empty, 0) * problem.scale;
  dense.key = repeat_heads(problem, key.to(problem.compute).masked_fill(bad_key, 0));
  dense.value = repeat_heads(problem, value.to(problem.compute).masked_fill(bad_value, 0));
  return dense;
}

/// (batch, heads, n, m), -inf where not allowed; 0 throughout a row without allowed keys.
at::Tensor logits(const Dense& dense) {
  const at::Tensor drop = (dense.allowed | dense.empty).logical_not();
  return at::matmul(dense.query, dense.key.transpose(-2, -1)).masked_fill(drop, -kInfinity);
}

TORCH_LIBRARY_IMPL(weir, CompositeExplicitAutograd, m) {
  m.impl("_block_sparse_attention", block_sparse_attention_composite_forward);
  m.impl("_block_sparse_attention_backward", block_sparse_attention_composite_backward);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> block_sparse_attention_composite_forward(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const OptionalTensor& layout, const OptionalTensor& key_mask, const OptionalTensor& mask,
    std::int64_t block_size, bool causal, std::optional<std::int64_t> window, std::int64_t stride,
    std::int64_t prefix, std::optional<double> scale) {
  const Problem problem = block_sparse_attention_problem(
      query, key, value, layout, key_mask, mask, block_size, causal, window, stride, prefix, scale);
  const Dense dense = prepare(problem, query, key, value, layout, key_mask, mask);
  const at::Tensor exponents = logits(dense);
  const at::Tensor lse =
      at::logsumexp(exponents, -1, /*keepdim=*/true).masked_fill(dense.poisoned, kNaN);
  const at::Tensor weights = (exponents - lse).exp().masked_fill(dense.allowed.logical_not(), 0);
  return {at::matmul(weights, dense.value).to(query.scalar_type()),
          lse.masked_fill(dense.empty, -kInfinity).squeeze(-1)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> block_sparse_attention_composite_backward(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& /*output*/, const at::Tensor& lse, const OptionalTensor& layout,
    const OptionalTensor& key_mask, const OptionalTensor& mask, std::int64_t block_size,
    bool causal, std::optional<std::int64_t> window, std::int64_t stride, std::int64_t prefix,
    std::optional<double> scale) {
  const Problem problem = block_sparse_attention_problem(
      query, key, value, layout, key_mask, mask, block_size, causal, window, stride, prefix, scale);
  const Dense dense = prepare(problem, query, key, value, layout, key_mask, mask);
  const at::Tensor drop = dense.allowed.logical_not();
  const at::Tensor safe_lse = lse.unsqueeze(-1).masked_fill(dense.empty, 0);
  const at::Tensor weights = (logits(dense) - safe_lse).exp().masked_fill(drop, 0);
  const at::Tensor upstream = grad.to(problem.compute).masked_fill(dense.empty, 0);
  const at::Tensor grad_weights = at::matmul(upstream, dense.value.transpose(-2, -1));
  const at::Tensor mean = (weights * grad_weights).sum(-1, /*keepdim=*/true);
  const at::Tensor grad_logits = (weights * (grad_weights - mean)).masked_fill(drop, 0);
  const auto transposed = [](const at::Tensor& x) { return x.transpose(-2, -1); };
  const auto narrow = [&](const at::Tensor& x) { return x.to(query.scalar_type()); };
  return {narrow(at::matmul(grad_logits, dense.key) * problem.scale),
          narrow(sum_heads(problem, at::matmul(transposed(grad_logits), dense.query))),
          narrow(sum_heads(problem, at::matmul(transposed(weights), upstream)))};
}

}  // namespace weir::ops
