// SPDX-License-Identifier: Apache-2.0
// Calls of low_rank_attention with their gradients, by what serves the CPU and by what serves a
// device without a kernel, and the textbook's answer to the same call. Routing operands are
// quarters where those of top_k_attention are.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <string>
#include <vector>

#include "support/textbook_low_rank_attention.h"
#include "support/top_k_attention_cases.h"
#include "weir/ops/low_rank_attention.h"

namespace weir::tests {

/// Masks, causal, k and the routing scale are those of `route`, whose value is its key: nothing
/// reads it. `attention` has the other scale.
struct LowRankCase {
  TopKCase route, attention;
  std::string score = "softmax";
  double eps = 0.1, k_ratio = 1.125;

  std::vector<torch::Tensor> operands() const {
    return {route.attention.query, route.attention.key, attention.attention.query,
            attention.attention.key, attention.attention.value};
  }
  ops::AttentionMasks masks() const {
    return {route.attention.masks.key_mask, route.attention.masks.mask};
  }
  ops::LowRankAttentionOptions options() const {
    return {route.attention.options.causal,
            attention.attention.options.scale,
            route.attention.options.scale,
            score,
            eps,
            k_ratio};
  }
  std::vector<std::int64_t> integers() const { return {route.k, route.attention.options.causal}; }
  std::vector<double> numbers() const { return {attention.scale(), route.scale(), eps, k_ratio}; }
};

/// A call of these operands: route_query, route_key, query, key, value.
inline LowRankCase low_rank_case(const std::vector<torch::Tensor>& x, std::int64_t k) {
  return {{{x[0], x[1], x[1]}, k}, {{x[2], x[3], x[4]}, k}};
}

struct LowRankResult {
  torch::Tensor output, indices, scores, weights;
  std::vector<torch::Tensor> grads;  // of route_query, route_key, query, key and value

  std::vector<torch::Tensor> all() const {
    std::vector<torch::Tensor> all = {output, indices, scores, weights};
    all.insert(all.end(), grads.begin(), grads.end());
    return all;
  }
};

inline std::string describe(const LowRankCase& c) {
  return "route " + describe(c.route) + "; " + describe(c.attention) + " " + c.score +
         " eps=" + std::to_string(c.eps) + " k_ratio=" + std::to_string(c.k_ratio);
}

inline torch::Tensor random_upstream(const LowRankCase& c) {
  return random_upstream(c.attention.attention);
}

// ---- the private pair

using LowRankForward = std::tuple<torch::Tensor, torch::Tensor, torch::Tensor, torch::Tensor>(
    const torch::Tensor&, const torch::Tensor&, const torch::Tensor&, const torch::Tensor&,
    const torch::Tensor&, const std::optional<torch::Tensor>&, const std::optional<torch::Tensor>&,
    torch::IntArrayRef, torch::ArrayRef<double>, std::string_view);
using LowRankBackward =
    std::tuple<torch::Tensor, torch::Tensor, torch::Tensor, torch::Tensor, torch::Tensor>(
        const torch::Tensor&, const torch::Tensor&, const torch::Tensor&, const torch::Tensor&,
        const torch::Tensor&, const torch::Tensor&, const torch::Tensor&, const torch::Tensor&,
        const torch::Tensor&, torch::IntArrayRef, torch::ArrayRef<double>, std::string_view);

inline auto low_rank_forward_operator() {
  return c10::Dispatcher::singleton()
      .findSchemaOrThrow("weir::_low_rank_attention", "")
      .typed<LowRankForward>();
}

/// Output, choice and the gradients of sum(output * upstream).
inline LowRankResult run(const LowRankCase& c, const torch::Tensor& upstream) {
  const std::vector<torch::Tensor> x = c.operands();
  std::vector<torch::Tensor> leaves;
  for (const torch::Tensor& operand : x) leaves.push_back(operand.detach().requires_grad_(true));
  const torch::Tensor output = ops::low_rank_attention(
      leaves[0], leaves[1], leaves[2], leaves[3], leaves[4], c.route.k, c.masks(), c.options());
  const auto grads = torch::autograd::grad({output}, leaves, {upstream.to(output.scalar_type())});
  const auto [same, indices, scores, weights] =
      low_rank_forward_operator().call(x[0], x[1], x[2], x[3], x[4], c.masks().key_mask,
                                       c.masks().mask, c.integers(), c.numbers(), c.score);
  return {output.detach(), indices, scores, weights, grads};
}

/// The same from the composite's pair, through a dispatch key that has no kernel of its own.
inline LowRankResult run_composite_pair(const LowRankCase& c, const torch::Tensor& upstream) {
  const std::vector<torch::Tensor> x = c.operands();
  const c10::DispatchKeySet no_kernel(c10::DispatchKey::XLA);
  const auto [output, indices, scores, weights] = low_rank_forward_operator().redispatch(
      no_kernel, x[0], x[1], x[2], x[3], x[4], c.masks().key_mask, c.masks().mask, c.integers(),
      c.numbers(), c.score);
  const auto backward = c10::Dispatcher::singleton()
                            .findSchemaOrThrow("weir::_low_rank_attention_backward", "")
                            .typed<LowRankBackward>();
  const auto [route_query, route_key, query, key, value] =
      backward.redispatch(no_kernel, upstream.to(output.scalar_type()), x[0], x[1], x[2], x[3],
                          x[4], indices, scores, weights, c.integers(), c.numbers(), c.score);
  return {output, indices, scores, weights, {route_query, route_key, query, key, value}};
}

inline LowRankResult textbook_run(const LowRankCase& c, const torch::Tensor& upstream) {
  const TextbookAttention route = textbook_of(c.route.attention),
                          t = textbook_of(c.attention.attention);
  const auto rounded = elements<double>(upstream.to(c.attention.attention.query.scalar_type()));
  const TextbookScore score = {c.score == "coordinate_descent", c.eps,
                               static_cast<double>(c.route.k) / c.k_ratio};
  const TextbookLowRank result = textbook_low_rank(route, t, c.route.k, score, rounded);
  const auto tensor = [](const std::vector<double>& x, torch::IntArrayRef shape) {
    return torch::tensor(x, torch::kDouble).view(shape);
  };
  const std::int64_t places = std::min(c.route.k, t.keys);
  const std::vector<std::int64_t> kept = {t.batch, route.heads, t.queries, places};
  const auto x = c.operands();
  return {tensor(result.output, {t.batch, t.heads, t.queries, t.value_dim}),
          tensor(result.indices, kept).to(torch::kInt),
          tensor(result.scores, kept),
          tensor(result.weights, {t.batch, t.heads, t.queries, places}),
          {tensor(result.route_query, x[0].sizes()), tensor(result.route_key, x[1].sizes()),
           tensor(result.query, x[2].sizes()), tensor(result.key, x[3].sizes()),
           tensor(result.value, x[4].sizes())}};
}

// ---- comparison

inline void expect_results(const LowRankResult& got, const LowRankResult& expected,
                           const LowRankCase& c) {
  const torch::Dtype dtype = c.attention.attention.query.scalar_type();
  const Tolerance tolerance = tolerance_of(dtype);
  const Tolerance computed = tolerance_of(dtype == torch::kDouble ? torch::kDouble : torch::kFloat);
  // Coordinate descent divides the rounding of its logits by eps.
  const double factor = c.score == "softmax" ? 1 : kComputedLogits;
  EXPECT_EQ(got.output.scalar_type(), dtype);
  EXPECT_EQ(got.indices.scalar_type(), torch::kInt);
  EXPECT_TRUE(torch::equal(got.indices, expected.indices)) << "indices";
  expect_close("scores", got.scores, expected.scores, factor * computed.weights);
  expect_close("weights", got.weights, expected.weights, computed.weights);
  expect_close("output", got.output, expected.output, tolerance.weights);
  const char* names[] = {"grad of route_query", "grad of route_key", "grad of query", "grad of key",
                         "grad of value"};
  for (std::size_t i = 0; i < std::size(names); ++i) {
    expect_close(names[i], got.grads[i], expected.grads[i],
                 (i < 2 ? factor : 1) * tolerance.gradients);
  }
}

inline void check_case(const LowRankCase& c) {
  SCOPED_TRACE(describe(c));
  const torch::Tensor upstream = random_upstream(c);
  const LowRankResult expected = textbook_run(c, upstream);
  {
    SCOPED_TRACE("composite");
    expect_results(run_composite_pair(c, upstream), expected, c);
  }
  SCOPED_TRACE("cpu");
  expect_results(run(c, upstream), expected, c);
}

// ---- random calls

/// Heads that share key heads and routing heads in any way. No budget of coordinate descent is a
/// whole number: where it is, entries at the threshold may count as saturated or not.
inline LowRankCase random_low_rank_case(unsigned seed, torch::Dtype dtype) {
  AttentionDraw draw{std::mt19937(seed)};
  torch::manual_seed(seed);
  const std::int64_t batch = draw.of({1, 2}), route_kv_heads = draw.of({1, 2});
  const std::int64_t route_heads = route_kv_heads * draw.of({1, 1, 3});
  const std::int64_t heads = route_heads * draw.of({1, 2, 3});
  std::vector<std::int64_t> divisors;
  for (std::int64_t d = 1; d <= heads; ++d) {
    if (heads % d == 0) divisors.push_back(d);
  }
  const std::int64_t kv_heads = draw.of(divisors);
  const std::int64_t n = draw.of({1, 5, 16, 33, 66, 131});
  const std::int64_t m = draw.one_in(2) ? n : draw.of({1, 7, 31, 64, 129, 500});
  const std::int64_t route_dim = draw.of({1, 4, 10, 16}), dim = draw.of({1, 8, 10, 64}),
                     value_dim = draw.of({1, 5, 16, 64, 65});
  const auto operand = [&](std::int64_t count, std::int64_t length, std::int64_t features) {
    return random_operand(draw, batch, count, length, features, dtype);
  };
  LowRankCase c = low_rank_case(
      {operand(route_heads, n, route_dim), operand(route_kv_heads, m, route_dim),
       operand(heads, n, dim), operand(kv_heads, m, dim), operand(kv_heads, m, value_dim)},
      draw.of({1, 1, 2, 7, 16, 40, m, m + 3}));
  AttentionCase& a = c.route.attention;
  if (dtype != torch::kDouble || draw.one_in(2)) {
    for (torch::Tensor* x : {&a.query, &a.key}) *x = (x->clamp(-2, 2) * 4).round() / 4;
    if (draw.one_in(3)) {  // keys that repeat
      a.key = a.key.index_select(2, torch::randint(0, (m + 2) / 3, {m}, torch::kLong));
    }
  }
  a.options.causal = draw.one_in(2);
  if (draw.one_in(3)) a.options.scale = static_cast<double>(draw.of({0, 1, -1})) * 0.3;
  if (draw.one_in(3)) c.attention.attention.options.scale = -0.2;
  if (draw.one_in(3)) a.masks.key_mask = torch::rand({batch, m}) < 0.7;
  if (draw.one_in(3)) a.masks.mask = random_mask(draw, a);
  if (draw.one_in(2)) {
    c.score = "coordinate_descent";
    c.eps = draw.one_in(2) ? 0.1 : 0.7;
    c.k_ratio = draw.one_in(3) ? 1.0 : draw.one_in(2) ? 1.3125 : 3.0625;
  }
  return c;
}

}  // namespace weir::tests
