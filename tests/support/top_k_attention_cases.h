// SPDX-License-Identifier: Apache-2.0
// Calls of top_k_attention with their gradients, by what serves the CPU and by what serves a device
// without a kernel, and the textbook's answer to the same call.
//
// In narrow types logits that are nearly equal may stand in another order than in the textbook.
// Random operands there are quarters between -2 and 2: their products are exact in every type, and
// often equal.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <string>
#include <vector>

#include "support/block_sparse_attention_cases.h"
#include "support/textbook_top_k_attention.h"
#include "weir/ops/top_k_attention.h"

namespace weir::tests {

/// Masks, causal and scale are those of `attention`.
struct TopKCase {
  AttentionCase attention;
  std::int64_t k = 1;

  double scale() const {
    const double dim = static_cast<double>(attention.query.size(-1));
    return attention.options.scale.value_or(1 / std::sqrt(dim));
  }
};

struct TopKResult {
  torch::Tensor output, indices, weights, query, key, value;  // the last three: gradients

  std::vector<torch::Tensor> all() const { return {output, indices, weights, query, key, value}; }
};

inline std::string describe(const TopKCase& c) {
  return describe(c.attention) + " k=" + std::to_string(c.k);
}

// ---- the private pair

using TopKForward = std::tuple<torch::Tensor, torch::Tensor, torch::Tensor>(
    const torch::Tensor&, const torch::Tensor&, const torch::Tensor&,
    const std::optional<torch::Tensor>&, const std::optional<torch::Tensor>&, std::int64_t, bool,
    double);
using TopKBackward = std::tuple<torch::Tensor, torch::Tensor, torch::Tensor>(
    const torch::Tensor&, const torch::Tensor&, const torch::Tensor&, const torch::Tensor&,
    const torch::Tensor&, const torch::Tensor&, double);

inline auto top_k_forward_operator() {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow("weir::_top_k_attention", "")
      .typed<TopKForward>();
}

/// Output, choice and the gradients of sum(output * upstream).
inline TopKResult run(const TopKCase& c, const torch::Tensor& upstream) {
  const AttentionCase& a = c.attention;
  std::vector<torch::Tensor> leaves;
  for (const torch::Tensor& x : {a.query, a.key, a.value}) {
    leaves.push_back(x.detach().requires_grad_(true));
  }
  const torch::Tensor output =
      ops::top_k_attention(leaves[0], leaves[1], leaves[2], c.k, {a.masks.key_mask, a.masks.mask},
                           {a.options.causal, a.options.scale});
  const auto grads = torch::autograd::grad({output}, leaves, {upstream.to(output.scalar_type())});
  const auto [same, indices, weights] = top_k_forward_operator().call(
      a.query, a.key, a.value, a.masks.key_mask, a.masks.mask, c.k, a.options.causal, c.scale());
  return {output.detach(), indices, weights, grads[0], grads[1], grads[2]};
}

/// The same from the composite's pair, through a dispatch key that has no kernel of its own.
inline TopKResult run_composite_pair(const TopKCase& c, const torch::Tensor& upstream) {
  const AttentionCase& a = c.attention;
  const c10::DispatchKeySet no_kernel(c10::DispatchKey::XLA);
  const auto [output, indices, weights] =
      top_k_forward_operator().redispatch(no_kernel, a.query, a.key, a.value, a.masks.key_mask,
                                          a.masks.mask, c.k, a.options.causal, c.scale());
  const auto backward = c10::Dispatcher::singleton()
                            .findSchemaOrThrow("weir::_top_k_attention_backward", "")
                            .typed<TopKBackward>();
  const auto [query, key, value] =
      backward.redispatch(no_kernel, upstream.to(output.scalar_type()), a.query, a.key, a.value,
                          indices, weights, c.scale());
  return {output, indices, weights, query, key, value};
}

inline TopKResult textbook_run(const TopKCase& c, const torch::Tensor& upstream) {
  const TextbookAttention t = textbook_of(c.attention);
  const auto rounded = elements<double>(upstream.to(c.attention.query.scalar_type()));
  const TextbookTopK result = textbook_top_k(t, c.k, rounded);
  const auto tensor = [](const std::vector<double>& x, torch::IntArrayRef shape) {
    return torch::tensor(x, torch::kDouble).view(shape);
  };
  const std::vector<std::int64_t> kept = {t.batch, t.heads, t.queries, std::min(c.k, t.keys)};
  return {tensor(result.output, {t.batch, t.heads, t.queries, t.value_dim}),
          tensor(result.indices, kept).to(torch::kInt),
          tensor(result.weights, kept),
          tensor(result.query, c.attention.query.sizes()),
          tensor(result.key, c.attention.key.sizes()),
          tensor(result.value, c.attention.value.sizes())};
}

// ---- comparison

inline void expect_results(const TopKResult& got, const TopKResult& expected, torch::Dtype dtype) {
  const Tolerance tolerance = tolerance_of(dtype);
  const Tolerance computed = tolerance_of(dtype == torch::kDouble ? torch::kDouble : torch::kFloat);
  EXPECT_EQ(got.output.scalar_type(), dtype);
  EXPECT_EQ(got.indices.scalar_type(), torch::kInt);
  EXPECT_TRUE(torch::equal(got.indices, expected.indices)) << "indices";
  expect_close("weights", got.weights, expected.weights, computed.weights);
  expect_close("output", got.output, expected.output, tolerance.weights);
  expect_close("grad of query", got.query, expected.query, tolerance.gradients);
  expect_close("grad of key", got.key, expected.key, tolerance.gradients);
  expect_close("grad of value", got.value, expected.value, tolerance.gradients);
}

inline void check_case(const TopKCase& c) {
  SCOPED_TRACE(describe(c));
  const torch::Tensor upstream = random_upstream(c.attention);
  const TopKResult expected = textbook_run(c, upstream);
  const torch::Dtype dtype = c.attention.query.scalar_type();
  {
    SCOPED_TRACE("composite");
    expect_results(run_composite_pair(c, upstream), expected, dtype);
  }
  SCOPED_TRACE("cpu");
  expect_results(run(c, upstream), expected, dtype);
}

// ---- random calls

/// Masks and strides as of block_sparse_attention; half of the float64 cases are quarters too.
inline TopKCase random_top_k_case(unsigned seed, torch::Dtype dtype) {
  AttentionDraw draw{std::mt19937(seed)};
  torch::manual_seed(seed);
  const std::int64_t batch = draw.of({1, 2}), kv_heads = draw.of({1, 2});
  const std::int64_t heads = kv_heads * draw.of({1, 1, 3});
  const std::int64_t n = draw.of({1, 5, 16, 33, 66, 131});
  const std::int64_t m = draw.one_in(2) ? n : draw.of({1, 7, 31, 64, 129, 500});
  const std::int64_t dim = draw.of({1, 8, 10, 64}), value_dim = draw.of({1, 5, 16, 64, 65});
  TopKCase c{{random_operand(draw, batch, heads, n, dim, dtype),
              random_operand(draw, batch, kv_heads, m, dim, dtype),
              random_operand(draw, batch, kv_heads, m, value_dim, dtype)}};
  AttentionCase& a = c.attention;
  if (dtype != torch::kDouble || draw.one_in(2)) {
    for (torch::Tensor* x : {&a.query, &a.key}) *x = (x->clamp(-2, 2) * 4).round() / 4;
    if (draw.one_in(3)) {  // keys that repeat
      a.key = a.key.index_select(2, torch::randint(0, (m + 2) / 3, {m}, torch::kLong));
    }
  }
  a.options.causal = draw.one_in(2);
  if (draw.one_in(3)) a.options.scale = static_cast<double>(draw.of({0, 1, -1})) * 0.3;
  if (draw.one_in(3)) a.masks.key_mask = torch::rand({batch, m}) < 0.7;
  if (draw.one_in(3)) a.masks.mask = random_mask(draw, a);
  c.k = draw.of({1, 1, 2, 7, 16, 40, m, m + 3});
  return c;
}

}  // namespace weir::tests
