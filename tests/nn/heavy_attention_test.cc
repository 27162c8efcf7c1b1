// SPDX-License-Identifier: Apache-2.0
// HeavyAttention: equal to the formula, one head at a time; masks, routes, scores, positions,
// names, messages.
#include "weir/nn/heavy_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>

#include "nn/directional_gradients.h"
#include "nn/module_contract.h"
#include "support/tolerance.h"

namespace weir::nn {
namespace {

using Inputs = HeavyAttentionInputs;
using Options = HeavyAttentionOptions;

at::Tensor normed(const at::Tensor& x, const at::Tensor& gamma) {
  return x / x.norm(2, -1, true).clamp_min(1e-12) * std::sqrt(static_cast<double>(x.size(-1))) *
         gamma;
}

/// Half-split rotary embedding of rows (n, e) at `positions` (n).
at::Tensor turned(const at::Tensor& rows, const at::Tensor& positions, const at::Tensor& inv_freq) {
  const at::Tensor angles = at::cat({inv_freq, inv_freq}) * positions.unsqueeze(-1);
  const auto halves = rows.chunk(2, -1);
  return rows * angles.cos() + at::cat({-halves[1], halves[0]}, -1) * angles.sin();
}

/// Head by head and entry by entry of the batch, in ATen's dense operators.
at::Tensor plain(HeavyAttentionImpl& module, const at::Tensor& x, const Inputs& inputs) {
  const auto [batch, n, e] = std::tuple(x.size(0), x.size(1), module.options.dim_head);
  const at::Tensor context = inputs.context.value_or(x);
  const std::int64_t routes = context.dim() == 4 ? context.size(1) : 1;
  const auto of_route = [&](const at::Tensor& y, std::int64_t b, std::int64_t route, int dims) {
    return y.dim() == dims ? y[b][route] : y[b];
  };
  at::Tensor merged = at::zeros({batch, n, module.options.heads * e}, x.options());
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t h = 0; h < module.options.heads; ++h) {
      const std::int64_t route = h / (module.options.heads / routes);
      const at::Tensor tokens = normed(of_route(context, b, route, 4), module.norm->gamma);
      at::Tensor q =
          normed(x[b], module.norm->gamma).matmul(module.to_q->weight.narrow(0, h * e, e).t());
      if (inputs.normalized_scores_q) q = q * (*inputs.normalized_scores_q)[b].unsqueeze(-1);
      const auto weights = module.to_kv->weight.narrow(0, 2 * h * e, 2 * e).chunk(2, 0);
      at::Tensor k = tokens.matmul(weights[0].t()), v = tokens.matmul(weights[1].t());
      if (inputs.normalized_scores_kv) {
        const at::Tensor scores = of_route(*inputs.normalized_scores_kv, b, route, 3).unsqueeze(-1);
        v = v * scores;
        if (module.options.multiply_keys_by_score) k = k * scores;
      }
      if (inputs.inv_freq) {
        q = turned(q, (*inputs.positions_q)[b], *inputs.inv_freq);
        k = turned(k, of_route(*inputs.positions_kv, b, route, 3), *inputs.inv_freq);
      }
      k = at::cat({module.null_kv[0][h].unsqueeze(0), k});
      v = at::cat({module.null_kv[1][h].unsqueeze(0), v});
      at::Tensor logits = q.matmul(k.t()) / std::sqrt(static_cast<double>(e));
      if (inputs.mask) {
        const at::Tensor away = of_route(*inputs.mask, b, route, 3).logical_not();
        logits.narrow(1, 1, away.size(0))
            .masked_fill_(away, -std::numeric_limits<double>::infinity());
      }
      merged[b].narrow(-1, h * e, e).copy_(logits.softmax(-1).matmul(v));
    }
  }
  return merged.matmul(module.to_out->weight.t());
}

HeavyAttention small(bool multiply_keys_by_score = false) {
  torch::manual_seed(1);
  HeavyAttention module(Options{
      .dim = 12, .dim_head = 4, .heads = 6, .multiply_keys_by_score = multiply_keys_by_score});
  randomise(*module);
  module->to(at::kDouble);
  return module;
}

/// All inputs, of `routes` routes; 0: without a dimension of routes.
Inputs all_inputs(std::int64_t routes, std::int64_t n, std::int64_t m) {
  std::vector<std::int64_t> shape = {2, m};
  if (routes > 0) shape.insert(shape.begin() + 1, routes);
  auto with_features = shape;
  with_features.push_back(12);
  return {.context = at::randn(with_features, at::kDouble),
          .mask = at::rand(shape) < 0.7,
          .normalized_scores_kv = at::rand(shape, at::kDouble),
          .normalized_scores_q = at::rand({2, n}, at::kDouble),
          .inv_freq = at::tensor({1.0, 0.1}, at::kDouble),
          .positions_q = at::randint(50, {2, n}, at::kLong),
          .positions_kv = at::randint(50, shape, at::kLong)};
}

TEST(HeavyAttention, IsTheFormula) {
  for (const bool keys : {false, true}) {
    HeavyAttention module = small(keys);
    for (const std::int64_t routes : {0, 1, 2, 3, 6}) {
      for (const auto& [n, m] : {std::pair<std::int64_t, std::int64_t>{5, 7}, {1, 1}, {3, 0}}) {
        const at::Tensor x = at::randn({2, n, 12}, at::kDouble);
        const Inputs inputs = all_inputs(routes, n, m);
        EXPECT_LE(distance(module->forward(x, inputs), plain(*module, x, inputs)),
                  tests::kFloat64.weights)
            << routes;
      }
    }
    const at::Tensor x = at::randn({2, 6, 12}, at::kDouble);
    EXPECT_LE(distance(module->forward(x), plain(*module, x, {})), tests::kFloat64.weights);
  }
}

TEST(HeavyAttention, PositionsCountFromZeroWithoutAny) {
  HeavyAttention module = small();
  const at::Tensor x = at::randn({2, 4, 12}, at::kDouble);
  Inputs inputs = all_inputs(3, 4, 5);
  inputs.positions_q = at::arange(4).expand({2, 4});
  inputs.positions_kv = at::arange(5).expand({2, 3, 5});
  const at::Tensor expected = module->forward(x, inputs);
  inputs.positions_q = inputs.positions_kv = std::nullopt;
  EXPECT_TRUE(module->forward(x, inputs).equal(expected));
}

TEST(HeavyAttention, GradientsAreRight) {
  HeavyAttention module = small(true);
  const at::Tensor x = at::randn({2, 3, 12}, at::kDouble).requires_grad_(),
                   probe = at::randn({2, 3, 12}, at::kDouble);
  Inputs inputs = all_inputs(2, 3, 4);
  std::vector<at::Tensor> leaves = module->parameters();
  for (auto* input : {&inputs.context, &inputs.normalized_scores_kv, &inputs.normalized_scores_q}) {
    (*input)->requires_grad_();
    leaves.push_back(**input);
  }
  leaves.push_back(x);
  expect_directional_gradients([&] { return (module->forward(x, inputs) * probe).sum(); }, leaves);
}

TEST(HeavyAttention, WhatIsMaskedIsNeverRead) {
  HeavyAttention module = small();
  const at::Tensor x = at::randn({2, 3, 12}, at::kDouble);
  const Inputs inputs = all_inputs(2, 3, 6);
  const at::Tensor expected = module->forward(x, inputs);
  inputs.context->masked_fill_(inputs.mask->logical_not().unsqueeze(-1), NAN);
  EXPECT_TRUE(module->forward(x, inputs).equal(expected));
}

TEST(HeavyAttention, HasThePublishedNames) {
  EXPECT_THAT(parameter_names(*small()),
              ::testing::UnorderedElementsAre("null_kv", "norm.gamma", "to_q.weight",
                                              "to_kv.weight", "to_out.weight"));
}

TEST(HeavyAttention, CopiesAgree) {
  const Options options = {.dim = 12, .dim_head = 4, .heads = 2};
  expect_copies_agree(HeavyAttention(options), HeavyAttention(options), at::randn({2, 5, 12}));
}

TEST(HeavyAttention, RefusesWhatDoesNotFit) {
  const std::string name = "weir::HeavyAttention: expected ";
  expect_refusal([] { HeavyAttention module(Options{.dim = 0}); },
                 name + "`dim` to be at least 1, but got 0.");
  HeavyAttention module = small();
  const at::Tensor x = at::randn({2, 3, 12}, at::kDouble);
  const auto refuses = [&](const Inputs& inputs, const std::string& words) {
    expect_refusal([&] { module->forward(x, inputs); }, name + words);
  };
  refuses({.context = at::randn({2, 3, 11})},
          "`context` to have shape [2, m, 12] or [2, routes, m, 12], but got [2, 3, 11].");
  refuses({.context = at::randn({2, 4, 3, 12}, at::kDouble)},
          "the routes of `context` to divide `heads`, 6, but got 4.");
  refuses({.mask = at::ones({2, 3})}, "`mask` to be bool (true = keep), but got Float.");
  refuses({.mask = at::ones({2, 4}, at::kBool)},
          "`mask` to have shape [2, 1, 3] like the tokens of `context`, but got [2, 4].");
  refuses({.normalized_scores_q = at::ones({3, 2})},
          "`normalized_scores_q` to have shape [2, 3] like the tokens of `x`, but got [3, 2].");
}

TEST(L2RMSNorm, IsTheFormula) {
  torch::manual_seed(2);
  L2RMSNorm norm(5);
  randomise(*norm);
  const at::Tensor x = at::randn({3, 5});
  x[1].zero_();
  EXPECT_LE(distance(norm(x), normed(x, norm->gamma)), tests::kFloat32.weights);
  EXPECT_EQ(norm(x)[1].abs().max().item<double>(), 0);
  EXPECT_LE(distance(norm(x.to(at::kHalf)), normed(x, norm->gamma)), 2e-3);
  EXPECT_EQ(norm(x.to(at::kHalf)).scalar_type(), at::kHalf);
}

}  // namespace
}  // namespace weir::nn
