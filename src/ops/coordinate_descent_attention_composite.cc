// SPDX-License-Identifier: Apache-2.0
// coordinate_descent_attention from ATen operators, dense: the logits of every pair, the composite
// of coordinate_descent, a product. What is not finite is taken out before the products, since
// 0 * NaN = NaN. It comes back as NaN weights of exactly the queries that see such a key, and as
// NaN results where such a value has a weight.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/isfinite.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <limits>

#include "ops/attention_heads.h"
#include "ops/coordinate_descent_attention.h"

namespace weir::ops {
namespace {

using Problem = CoordinateDescentAttentionProblem;

/// The operands in the dtype of the computation, finite, with the key heads repeated.
struct Dense {
  at::Tensor visible;                   // bool, broadcasts to logits
  at::Tensor query;                     // (batch, heads, n, dim), times scale
  at::Tensor key;                       // (batch, heads, m, dim)
  at::Tensor value;                     // (batch, heads, m, value_dim)
  at::Tensor logits;                    // (batch, heads, n, m); NaN for the queries that see NaN
  std::optional<at::Tensor> bad_value;  // bool, like value: not finite. None: nothing
};

/// bool, broadcasts to (batch, heads, n, m): the keys that a query sees.
at::Tensor visible_keys(const Problem& problem, const at::Tensor& query,
                        const OptionalTensor& key_mask, const OptionalTensor& mask) {
  const std::int64_t n = problem.queries.guard_int(__FILE__, __LINE__),
                     m = problem.keys.guard_int(__FILE__, __LINE__);
  const auto options = query.options().dtype(at::kLong);
  const at::Tensor keys = at::arange(m, options);
  at::Tensor visible = at::ones({1, 1, n, m}, query.options().dtype(at::kBool));
  if (problem.rule.causal) {
    const at::Tensor last = at::arange(m - n, m, options).unsqueeze(-1);  // (n, 1)
    visible = visible & ((keys <= last) | (keys < problem.rule.nulls));
  }
  if (key_mask) visible = visible & key_mask->unsqueeze(1).unsqueeze(1);
  return mask ? visible & *mask : visible;
}

Dense prepare(const Problem& problem, const at::Tensor& query, const at::Tensor& key,
              const at::Tensor& value, const OptionalTensor& key_mask, const OptionalTensor& mask) {
  const auto bad = [](const at::Tensor& x) { return at::isfinite(x).logical_not(); };
  const at::Tensor bad_query = bad(query), bad_key = bad(key), bad_value = bad(value);
  const at::Tensor bad_keys = bad_key.any(-1, /*keepdim=*/true).transpose(-2, -1);
  const auto clean = [&](const at::Tensor& x, const at::Tensor& away) {
    return x.to(problem.compute).masked_fill(away, 0);
  };
  Dense dense;
  dense.visible = visible_keys(problem, query, key_mask, mask);
  const at::Tensor poisoned =  // (batch, heads, n, 1)
      (dense.visible & repeat_heads(problem.heads, bad_keys)).any(-1, /*keepdim=*/true) |
      bad_query.any(-1, /*keepdim=*/true);
  dense.query = clean(query, bad_query) * problem.rule.scale;
  dense.key = repeat_heads(problem.heads, clean(key, bad_key));
  dense.value = repeat_heads(problem.heads, clean(value, bad_value));
  if (bad_value.any().item<bool>()) dense.bad_value = repeat_heads(problem.heads, bad_value);
  dense.logits = at::matmul(dense.query, dense.key.transpose(-2, -1))
                     .masked_fill(poisoned, std::numeric_limits<double>::quiet_NaN());
  return dense;
}

std::tuple<at::Tensor, at::Tensor> weights_of(const Problem& problem, const Dense& dense,
                                              const at::Tensor& budget) {
  const auto& rule = problem.rule;
  return coordinate_descent_composite_forward(dense.logits, budget, dense.visible, rule.n_iters,
                                              rule.eps, rule.eps_init, rule.eps_decay, rule.solver);
}

/// Weights below the normal numbers are 0 in the kernel.
at::Tensor counts(const at::Tensor& weights) {
  return weights >= (weights.scalar_type() == at::kDouble ? std::numeric_limits<double>::min()
                                                          : std::numeric_limits<float>::min());
}

/// `result`, NaN where `bad` (of a column of it) meets a weight that is not 0.
at::Tensor poisoned(const at::Tensor& result, const at::Tensor& weights, const at::Tensor& bad) {
  const at::Tensor meets = at::matmul(counts(weights).to(weights.dtype()), bad.to(weights.dtype()));
  return result.masked_fill(meets > 0, std::numeric_limits<double>::quiet_NaN());
}

/// 1 / sum of the weights, (batch, heads, n, 1); 0 where there are none.
at::Tensor inverse_total(const at::Tensor& weights) {
  const at::Tensor total = weights.sum(-1, /*keepdim=*/true);
  const at::Tensor none = total == 0;
  return total.masked_fill(none, 1).reciprocal().masked_fill(none, 0);
}

TORCH_LIBRARY_IMPL(weir, CompositeExplicitAutograd, m) {
  m.impl("_coordinate_descent_attention", coordinate_descent_attention_composite_forward);
  m.impl("_coordinate_descent_attention_backward", coordinate_descent_attention_composite_backward);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> coordinate_descent_attention_composite_forward(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& budget, const OptionalTensor& key_mask, const OptionalTensor& mask,
    at::IntArrayRef integers, at::ArrayRef<double> numbers, std::string_view solver) {
  const Problem problem = coordinate_descent_attention_problem(query, key, value, budget, key_mask,
                                                               mask, integers, numbers, solver);
  const Dense dense = prepare(problem, query, key, value, key_mask, mask);
  auto [weights, trace] = weights_of(problem, dense, budget);
  if (problem.rule.normalize) weights = weights * inverse_total(weights);
  at::Tensor output = at::matmul(weights, dense.value);
  if (dense.bad_value) output = poisoned(output, weights, *dense.bad_value);
  return {output.to(query.scalar_type()), trace};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>
coordinate_descent_attention_composite_backward(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& budget, const OptionalTensor& key_mask, const OptionalTensor& mask,
    const at::Tensor& trace, at::IntArrayRef integers, at::ArrayRef<double> numbers,
    std::string_view solver) {
  const Problem problem = coordinate_descent_attention_problem(query, key, value, budget, key_mask,
                                                               mask, integers, numbers, solver);
  const auto& rule = problem.rule;
  const Dense dense = prepare(problem, query, key, value, key_mask, mask);
  if (dense.logits.sym_numel() == 0) {
    const auto zeros = [](const at::Tensor& x) {
      return at::zeros_symint(x.sym_sizes(), x.options());
    };
    return {zeros(query), zeros(key), zeros(value),
            at::zeros_symint(problem.row_shape(), trace.options())};
  }
  at::Tensor weights = std::get<0>(weights_of(problem, dense, budget));
  const at::Tensor upstream = grad.to(problem.compute);
  at::Tensor grad_weights = at::matmul(upstream, dense.value.transpose(-2, -1));
  if (dense.bad_value) {
    const at::Tensor bad = dense.bad_value->any(-1).unsqueeze(-2);  // (batch, heads, 1, m)
    grad_weights =
        grad_weights.masked_fill(bad & counts(weights), std::numeric_limits<double>::quiet_NaN());
  }
  if (rule.normalize) {
    const at::Tensor inverse = inverse_total(weights);
    weights = weights * inverse;
    grad_weights = (grad_weights - (weights * grad_weights).sum(-1, /*keepdim=*/true)) * inverse;
  }
  const auto [grad_logits, grad_budget] = coordinate_descent_composite_backward(
      grad_weights, dense.logits, budget, dense.visible, trace, rule.n_iters, rule.eps,
      rule.eps_init, rule.eps_decay, rule.solver);
  const auto to_keys = [&](const at::Tensor& pairs, const at::Tensor& rows) {
    return sum_heads(problem.kv_heads, at::matmul(pairs.transpose(-2, -1), rows));
  };
  const auto narrow = [&](const at::Tensor& x) { return x.to(query.scalar_type()); };
  return {narrow(at::matmul(grad_logits, dense.key) * rule.scale),
          narrow(to_keys(grad_logits, dense.query)), narrow(to_keys(weights, upstream)),
          grad_budget};
}

}  // namespace weir::ops
