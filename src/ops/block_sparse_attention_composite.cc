// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention from ATen operators, dense: every pair's logit is computed, and those that
// are not allowed are dropped. What is not finite is taken out before the products, since
// 0 * NaN = NaN, and put back as a NaN in the log-sum-exp of exactly the queries that attend it.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <limits>

#include "ops/attention_heads.h"
#include "ops/block_sparse_attention_positions.h"
#include "kernels/block_sparse_attention.h"
#include "ops/block_sparse_attention.h"

namespace weir::ops {
namespace {

using Problem = BlockSparseAttentionProblem;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// The operands in the dtype of the computation, finite, with the key heads repeated.
struct Dense {
  at::Tensor allowed;          // bool, (n, m) with the leading dimensions its masks need
  at::Tensor empty;            // bool (..., n, 1): no key is allowed
  at::Tensor poisoned;         // bool (..., n, 1): something that is not finite is attended
  at::Tensor query;            // (batch, heads, n, dim), rotated, times scale; 0 where empty
  at::Tensor key;              // (batch, heads, m, dim), rotated
  at::Tensor value;            // (batch, heads, m, value_dim)
  OptionalTensor bias, slots;  // (heads, n, m) and where its entries stand in the bias
  OptionalTensor self;         // bool (n, m): the pairs of constant logit
  OptionalTensor dropout;      // (batch, heads, n, m): factors of the weights
};

/// Pairs features i and i + dim / 2 of x (..., n, dim) and multiplies them with the matrix
/// [c -s; s c] of their row in `table`; `direction` -1: with its transpose.
at::Tensor rotate(const at::Tensor& x, const OptionalTensor& table, double direction = 1) {
  if (!table) return x;
  const auto halves = x.chunk(2, -1), parts = table->chunk(2, -1);
  const at::Tensor cosine = parts[0], sine = parts[1] * direction;
  return at::cat({halves[0] * cosine - halves[1] * sine, halves[1] * cosine + halves[0] * sine},
                 -1);
}

void add_pair_terms(const Problem& problem, const OptionalTensor& bias,
                    const AttentionPositions& positions, Dense& dense) {
  const auto& [rule, tensors] = std::tie(problem.rule, problem.tensors);
  if (bias) {
    const std::int64_t rows = bias->size(1), columns = bias->size(2);
    const at::Tensor row = positions.query.remainder(rows);
    const at::Tensor first = positions.query - row - rule.bias_behind;
    const at::Tensor column = (positions.key - first).clamp(0, columns - 1);  // else not allowed
    dense.slots = (row * columns + column).flatten();                         // (n * m)
    dense.bias = bias->to(problem.compute)
                     .flatten(1)
                     .index_select(1, *dense.slots)
                     .view({bias->size(0), row.size(0), column.size(1)});
  }
  if (rule.self_last) dense.self = positions.query == positions.key;
  if (tensors.dropout_seed) {
    dense.dropout = dropout_factors(problem, *tensors.dropout_seed).to(problem.compute);
  }
}

Dense prepare(const Problem& problem, const at::Tensor& query, const at::Tensor& key,
              const at::Tensor& value, const OptionalTensor& bias) {
  const auto bad = [](const at::Tensor& x) { return at::isfinite(x).logical_not(); };
  const at::Tensor bad_query = bad(query), bad_key = bad(key), bad_value = bad(value);
  const at::Tensor bad_keys =
      (bad_key.any(-1, /*keepdim=*/true) | bad_value.any(-1, /*keepdim=*/true)).transpose(-2, -1);
  const AttentionPositions positions = attention_positions(problem, query.device());
  const auto clean = [&](const at::Tensor& x, const at::Tensor& away) {
    return x.to(problem.compute).masked_fill(away, 0);
  };
  Dense dense;
  dense.allowed = allowed_pairs(problem, positions);
  dense.empty = dense.allowed.any(-1, /*keepdim=*/true).logical_not();
  dense.poisoned =
      (dense.allowed & repeat_heads(problem.heads, bad_keys)).any(-1, /*keepdim=*/true) |
      bad_query.any(-1, /*keepdim=*/true);
  dense.query = rotate(clean(query, bad_query | dense.empty), problem.tensors.query_rotation) *
                problem.rule.scale;
  dense.key =
      repeat_heads(problem.heads, rotate(clean(key, bad_key), problem.tensors.key_rotation));
  dense.value = repeat_heads(problem.heads, clean(value, bad_value));
  add_pair_terms(problem, bias, positions, dense);
  return dense;
}

/// (batch, heads, n, m), -inf where not allowed; 0 throughout a row without allowed keys.
at::Tensor logits(const Dense& dense) {
  const at::Tensor drop = (dense.allowed | dense.empty).logical_not();
  at::Tensor result = at::matmul(dense.query, dense.key.transpose(-2, -1));
  if (dense.bias) result = result + *dense.bias;
  if (dense.self) result = result.masked_fill(*dense.self, kernels::kSelfLogit);
  return result.masked_fill(drop, -kInfinity);
}

at::Tensor grad_of_bias(const Problem& problem, const Dense& dense, const at::Tensor& grad_logits) {
  if (!dense.bias) return at::empty({0}, problem.bias.value_or(grad_logits).options());
  const at::Tensor& bias = *problem.bias;
  return at::zeros({bias.size(0), bias.size(1) * bias.size(2)}, grad_logits.options())
      .index_add(1, *dense.slots, grad_logits.sum(0).flatten(1))
      .view(bias.sizes())
      .to(bias.scalar_type());
}

TORCH_LIBRARY_IMPL(weir, CompositeExplicitAutograd, m) {
  m.impl("_block_sparse_attention", attend_composite);
  m.impl("_block_sparse_attention_backward", attend_composite_backward);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> attend_composite(const at::Tensor& query, const at::Tensor& key,
                                                    const at::Tensor& value,
                                                    const OptionalTensor& bias,
                                                    const c10::List<OptionalTensor>& tensors,
                                                    at::IntArrayRef integers,
                                                    at::ArrayRef<double> numbers) {
  const Problem problem =
      block_sparse_attention_problem(query, key, value, bias, tensors, integers, numbers);
  const Dense dense = prepare(problem, query, key, value, bias);
  const at::Tensor exponents = logits(dense);
  const at::Tensor lse =
      at::logsumexp(exponents, -1, /*keepdim=*/true).masked_fill(dense.poisoned, kNaN);
  at::Tensor weights = (exponents - lse).exp().masked_fill(dense.allowed.logical_not(), 0);
  if (dense.dropout) weights = weights * *dense.dropout;
  return {at::matmul(weights, dense.value).to(query.scalar_type()),
          lse.masked_fill(dense.empty, -kInfinity).squeeze(-1)};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> attend_composite_backward(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const OptionalTensor& bias, const at::Tensor& /*output*/, const at::Tensor& lse,
    const c10::List<OptionalTensor>& tensors, at::IntArrayRef integers,
    at::ArrayRef<double> numbers) {
  const Problem problem =
      block_sparse_attention_problem(query, key, value, bias, tensors, integers, numbers);
  const Dense dense = prepare(problem, query, key, value, bias);
  const at::Tensor drop = dense.allowed.logical_not();
  const at::Tensor safe_lse = lse.unsqueeze(-1).masked_fill(dense.empty, 0);
  const at::Tensor weights = (logits(dense) - safe_lse).exp().masked_fill(drop, 0);
  const at::Tensor upstream = grad.to(problem.compute).masked_fill(dense.empty, 0);
  at::Tensor grad_weights = at::matmul(upstream, dense.value.transpose(-2, -1));
  if (dense.dropout) grad_weights = grad_weights * *dense.dropout;
  const at::Tensor mean = (weights * grad_weights).sum(-1, /*keepdim=*/true);
  at::Tensor grad_logits = (weights * (grad_weights - mean)).masked_fill(drop, 0);
  if (dense.self) grad_logits = grad_logits.masked_fill(*dense.self, 0);
  const at::Tensor kept = dense.dropout ? weights * *dense.dropout : weights;
  const auto transposed = [](const at::Tensor& x) { return x.transpose(-2, -1); };
  const auto narrow = [&](const at::Tensor& x) { return x.to(query.scalar_type()); };
  const at::Tensor grad_key =
      sum_heads(problem.kv_heads, at::matmul(transposed(grad_logits), dense.query));
  return {narrow(rotate(at::matmul(grad_logits, dense.key) * problem.rule.scale,
                        problem.tensors.query_rotation, -1)),
          narrow(rotate(grad_key, problem.tensors.key_rotation, -1)),
          narrow(sum_heads(problem.kv_heads, at::matmul(transposed(kept), upstream))),
          grad_of_bias(problem, dense, grad_logits)};
}

}  // namespace weir::ops
