// SPDX-License-Identifier: Apache-2.0
// Random calls of coordinate_descent_attention with their gradients, and the plain formulation's
// answer to the same call: a product, the composite of coordinate_descent, a product.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "support/tolerance.h"
#include "weir/ops/coordinate_descent.h"
#include "weir/ops/coordinate_descent_attention.h"

namespace weir::tests {

struct ChoosingCase {
  torch::Tensor query, key, value, budget;
  ops::AttentionMasks masks = {};
  ops::CoordinateDescentAttentionOptions options = {};
};

/// Output, gradients of query, key, value and budget.
using ChoosingResult = std::vector<torch::Tensor>;

inline std::string describe(const ChoosingCase& c) {
  std::ostringstream text;
  const auto& o = c.options;
  text << c.query.scalar_type() << " query" << c.query.sizes() << " key" << c.key.sizes()
       << " value" << c.value.sizes() << " budget" << c.budget.sizes()
       << " key_mask=" << c.masks.key_mask.has_value() << " mask=" << c.masks.mask.has_value()
       << " causal=" << o.causal << " nulls=" << o.nulls << " n_iters=" << o.n_iters
       << " eps=" << o.eps << " eps_init=" << o.eps_init.value_or(0) << " eps_decay=" << o.eps_decay
       << ' ' << o.solver << " normalize=" << o.normalize << " scale=" << o.scale.value_or(0);
  return text.str();
}

/// bool, broadcasts to (batch, heads, n, m), pair by pair. The first `nulls` keys have no position;
/// the last query stands at the last key.
inline torch::Tensor visible_pairs(const ChoosingCase& c) {
  const std::int64_t n = c.query.size(2), m = c.key.size(2), nulls = c.options.nulls;
  torch::Tensor visible = torch::ones({c.query.size(0), 1, n, m}, torch::kBool);
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = nulls; c.options.causal && j < m; ++j) {
      const std::int64_t query_position = (m - nulls) - n + i, key_position = j - nulls;
      if (key_position > query_position) visible.select(3, j).select(2, i).fill_(false);
    }
  }
  const auto& masks = c.masks;
  if (masks.key_mask) visible = visible & masks.key_mask->view({c.query.size(0), 1, 1, m});
  return masks.mask ? visible & *masks.mask : visible;
}

inline torch::Tensor plain_attention(const ChoosingCase& c) {
  const auto& o = c.options;
  const std::int64_t group = c.key.size(1) == 0 ? 1 : c.query.size(1) / c.key.size(1);
  const auto wide = [&](const torch::Tensor& x) {
    return x.to(torch::kDouble).repeat_interleave(group, 1);
  };
  const double scale = o.scale.value_or(1 / std::sqrt(static_cast<double>(c.query.size(3))));
  const torch::Tensor scores =
      torch::matmul(c.query.to(torch::kDouble) * scale, wide(c.key).transpose(-2, -1));
  torch::Tensor weights = ops::coordinate_descent_composite(scores, c.budget, visible_pairs(c),
                                                            {.n_iters = o.n_iters,
                                                             .eps = o.eps,
                                                             .eps_init = o.eps_init,
                                                             .eps_decay = o.eps_decay,
                                                             .solver = o.solver});
  if (o.normalize) {
    const torch::Tensor total = weights.sum(-1, /*keepdim=*/true);
    weights = weights / total.masked_fill(total == 0, 1);
  }
  return torch::matmul(weights, wide(c.value)) + 0 * c.budget.sum();  // in the graph without pairs
}

/// call(case) on leaves, with the gradients of sum(output * upstream).
template <class Call>
ChoosingResult with_gradients(const ChoosingCase& c, const torch::Tensor& upstream,
                              const Call& call) {
  std::vector<torch::Tensor> leaves;
  for (const torch::Tensor& x : {c.query, c.key, c.value, c.budget}) {
    leaves.push_back(x.detach().requires_grad_(true));
  }
  const torch::Tensor output =
      call(ChoosingCase{leaves[0], leaves[1], leaves[2], leaves[3], c.masks, c.options});
  ChoosingResult result = {output.detach()};
  for (const torch::Tensor& x :
       torch::autograd::grad({output}, leaves, {upstream.to(output.scalar_type())})) {
    result.push_back(x);
  }
  return result;
}

inline torch::Tensor attention_of(const ChoosingCase& c) {
  return ops::coordinate_descent_attention(c.query, c.key, c.value, c.budget, c.masks, c.options);
}

/// The composite's private pair, through a dispatch key that has no kernel of its own.
inline ChoosingResult composite_pair(const ChoosingCase& c, const torch::Tensor& upstream) {
  using torch::Tensor;
  using Optional = std::optional<Tensor>;
  using Integers = torch::IntArrayRef;
  using Numbers = torch::ArrayRef<double>;
  using Forward = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                             const Tensor&, const Optional&, const Optional&,
                                             Integers, Numbers, std::string_view);
  using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Optional&,
      const Optional&, const Tensor&, Integers, Numbers, std::string_view);
  auto& dispatcher = c10::Dispatcher::singleton();
  const auto forward =
      dispatcher.findSchemaOrThrow("weir::_coordinate_descent_attention", "").typed<Forward>();
  const auto backward =
      dispatcher.findSchemaOrThrow("weir::_coordinate_descent_attention_backward", "")
          .typed<Backward>();
  const c10::DispatchKeySet no_kernel(c10::DispatchKey::XLA);
  const auto& o = c.options;
  const std::vector<std::int64_t> integers = {o.causal, o.nulls, o.n_iters, o.normalize};
  const std::vector<double> numbers = {
      o.eps, o.eps_init.value_or(o.eps), o.eps_decay,
      o.scale.value_or(1 / std::sqrt(static_cast<double>(c.query.size(3))))};
  const auto [output, trace] =
      forward.redispatch(no_kernel, c.query, c.key, c.value, c.budget, c.masks.key_mask,
                         c.masks.mask, integers, numbers, o.solver);
  const auto [query, key, value, budget] = backward.redispatch(
      no_kernel, upstream.to(output.scalar_type()), c.query, c.key, c.value, c.budget,
      c.masks.key_mask, c.masks.mask, trace, integers, numbers, o.solver);
  return {output, query, key, value,
          at::sum_to(budget, c.budget.sizes()).to(c.budget.scalar_type())};
}

inline Tolerance choosing_tolerance(torch::Dtype dtype) {
  if (dtype == torch::kDouble) return kFloat64;
  const Tolerance computed = {kFloat32.weights * kComputedLogits,
                              kFloat32.gradients * kComputedLogits};
  if (dtype == torch::kFloat) return computed;
  const Tolerance rounded = dtype == torch::kBFloat16 ? kBFloat16 : kFloat16;
  return {rounded.weights + computed.weights, rounded.gradients + computed.gradients};
}

inline void expect_results(const ChoosingResult& got, const ChoosingResult& expected,
                           torch::Dtype dtype) {
  const char* names[] = {"output", "query", "key", "value", "budget"};
  const Tolerance tolerance = choosing_tolerance(dtype);
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_EQ(got[i].sizes(), expected[i].sizes()) << names[i];
    EXPECT_EQ(got[i].scalar_type(), i < 4 ? dtype : expected[i].scalar_type()) << names[i];
    if (got[i].numel() == 0) continue;
    const torch::Tensor wide = expected[i].to(torch::kDouble);
    const double scale = std::max(1.0, wide.abs().max().item<double>());
    const double error = (got[i].to(torch::kDouble) - wide).abs().max().item<double>();
    EXPECT_LE(error, (i == 0 ? tolerance.weights : tolerance.gradients) * scale) << names[i];
  }
}

inline torch::Tensor random_upstream(const ChoosingCase& c) {
  return torch::randn({c.query.size(0), c.query.size(1), c.query.size(2), c.value.size(3)})
      .to(c.query.scalar_type());
}

/// What serves the CPU and what serves a device without a kernel against the plain formulation.
inline void check_case(const ChoosingCase& c) {
  SCOPED_TRACE(describe(c));
  const torch::Tensor upstream = random_upstream(c);
  const ChoosingResult expected = with_gradients(c, upstream, plain_attention);
  {
    SCOPED_TRACE("composite");
    expect_results(composite_pair(c, upstream), expected, c.query.scalar_type());
  }
  SCOPED_TRACE("cpu");
  expect_results(with_gradients(c, upstream, attention_of), expected, c.query.scalar_type());
}

inline ChoosingCase random_choosing_case(unsigned seed, torch::Dtype dtype) {
  std::mt19937 random(seed);
  torch::manual_seed(seed);
  const auto of = [&](const std::vector<double>& choices) {
    return choices[random() % choices.size()];
  };
  const auto size = [&](const std::vector<double>& choices) {
    return static_cast<std::int64_t>(of(choices));
  };
  const std::int64_t batch = size({1, 2}), kv_heads = size({1, 2}),
                     heads = kv_heads * size({1, 1, 3}), n = size({1, 5, 16, 33, 70}),
                     m = random() % 2 == 0 ? n : size({1, 7, 16, 31, 64, 97, 130, 530}),
                     dim = size({1, 6, 8, 10, 64}), value_dim = size({1, 5, 16, 64, 65});
  const auto operand = [&](std::int64_t h, std::int64_t length, std::int64_t features) {
    const std::int64_t layout = size({0, 1, 2});  // transposed, expanded, every second feature
    if (layout == 0) return torch::randn({batch, length, h, features}).to(dtype).transpose(1, 2);
    if (layout == 1) {
      return torch::randn({batch, 1, length, features}).to(dtype).expand({batch, h, length, -1});
    }
    return torch::randn({batch, h, length, 2 * features}).to(dtype).slice(3, 0, 2 * features, 2);
  };
  ChoosingCase c{
      operand(heads, n, dim), operand(kv_heads, m, dim), operand(kv_heads, m, value_dim), {}};
  const std::vector<std::vector<std::int64_t>> shapes = {
      {}, {n}, {heads, 1}, {batch, 1, 1}, {batch, heads, n}};
  // Not whole numbers: where a budget is the number of visible keys, the threshold is a tie.
  c.budget =
      (torch::rand(shapes[random() % shapes.size()], torch::kDouble) + of({0.05, 1.05, 6.05}));
  if (random() % 3 == 0) {
    c.masks.key_mask = torch::rand({batch, m}) < 0.7;
    if (random() % 4 == 0) c.masks.key_mask->select(0, 0).fill_(false);
  }
  if (random() % 3 == 0) {
    const std::vector<std::vector<std::int64_t>> pairs = {
        {n, m}, {batch, 1, n, m}, {heads, 1, m}, {batch, heads, n, m}};
    c.masks.mask = torch::rand(pairs[random() % pairs.size()]) < 0.7;
  }
  c.options = {.causal = random() % 2 == 0,
               .nulls = size({0, 0, 1, 3, 100}),
               .n_iters = size({1, 2, 5, 15, 50}),
               .eps = of({0.1, 0.5, 1}),
               .eps_decay = of({1, 0.7}),
               .solver = random() % 3 == 0 ? "exact" : "iterative",
               .normalize = random() % 2 == 0};
  if (random() % 2 == 0) c.options.eps_init = 4;
  if (random() % 3 == 0) c.options.scale = of({0, 0.3, -0.3});
  return c;
}

}  // namespace weir::tests
