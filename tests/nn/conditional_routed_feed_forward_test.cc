// SPDX-License-Identifier: Apache-2.0
// ConditionalRoutedFeedForward and the FeedForward of its branches: each token by its formula,
// gradients, masks, numbers of tokens, blocks, dtypes, names, copies, messages.
#include "weir/nn/conditional_routed_feed_forward.h"

#include <ATen/autocast_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "nn/directional_gradients.h"
#include "nn/module_contract.h"
#include "support/tolerance.h"

namespace weir::nn {
namespace {

using Options = ConditionalRoutedFeedForwardOptions;

constexpr std::int64_t kDim = 6;

/// One token (dim) through a branch, in scalar double.
at::Tensor by_formula(FeedForward& module, const at::Tensor& token) {
  const auto weights = module->named_parameters();
  const auto value = [&](const char* name) { return weights[name].detach().to(at::kDouble); };
  double square = 0;
  for (std::int64_t i = 0; i < kDim; ++i) square += std::pow(token[i].item<double>(), 2);
  const double length = std::max(std::sqrt(square), 1e-12);
  at::Tensor normed = at::empty({kDim}, at::kDouble);
  for (std::int64_t i = 0; i < kDim; ++i) {
    normed[i] = token[i].item<double>() / length * std::sqrt(kDim) * value("0.gamma")[i];
  }
  at::Tensor hidden = value("1.weight").mv(normed) + value("1.bias");
  for (std::int64_t i = 0; i < hidden.size(0); ++i) {
    const double h = hidden[i].item<double>();
    hidden[i] = h * 0.5 * (1 + std::erf(h / std::sqrt(2.0)));
  }
  return value("3.weight").mv(hidden) + value("3.bias");
}

ConditionalRoutedFeedForward doubles(const Options& options) {
  torch::manual_seed(0);
  ConditionalRoutedFeedForward module(options);
  randomise(*module);
  module->to(at::kDouble);
  return module;
}

at::Tensor some_mask(std::int64_t n) {
  at::Tensor mask = at::ones({2, n}, at::kBool);
  mask[1].slice(0, n / 2).fill_(false);
  return mask;
}

const Options kOptions = {.dim = kDim,
                          .num_heavy_tokens = 3,
                          .light_ff_mult = 0.75,
                          .heavy_ff_mult = 2.5,
                          .router_kwargs = {.eps = 1}};

/// light + score * heavy at what the router chose, token by token.
void expect_formula(ConditionalRoutedFeedForward& module, const at::Tensor& x,
                    const ConditionalRoutedFeedForwardInputs& inputs = {}) {
  torch::NoGradGuard no_grad;
  const auto routed = module->router->forward(
      x, inputs.num_heavy_tokens.value_or(module->options.num_heavy_tokens), {.mask = inputs.mask});
  at::Tensor expected = at::zeros_like(x);
  for (std::int64_t b = 0; b < x.size(0); ++b) {
    for (std::int64_t j = 0; j < x.size(1); ++j) {
      expected[b][j] = by_formula(module->light_ff, x[b][j]);
      if (!routed.indices) expected[b][j] += by_formula(module->heavy_ff, x[b][j]);
    }
    for (std::int64_t i = 0; routed.indices && i < routed.indices->size(1); ++i) {
      const auto index = (*routed.indices)[b][i].item<std::int64_t>();
      const bool kept = !routed.routed_mask || (*routed.routed_mask)[b][i].item<bool>();
      if (!kept) continue;
      expected[b][index] += routed.scores[b][i] * by_formula(module->heavy_ff, x[b][index]);
    }
  }
  EXPECT_LE(distance(module->forward(x, inputs), expected), tests::kFloat64.weights);
}

TEST(FeedForward, IsTheFormula) {
  torch::manual_seed(0);
  FeedForward module({.dim = kDim, .mult = 1.5});
  randomise(*module);
  module->to(at::kDouble);
  at::Tensor x = at::randn({2, 3, kDim}, at::kDouble);
  x[0][1].zero_();
  x[0][2].mul_(1e-15);  // shorter than the bound on the norm
  const at::Tensor out = module(x);
  for (std::int64_t b = 0; b < 2; ++b) {
    for (std::int64_t j = 0; j < 3; ++j) {
      EXPECT_LE(distance(out[b][j], by_formula(module, x[b][j])), tests::kFloat64.weights);
    }
  }
  EXPECT_EQ(module->hidden(), 9);
  EXPECT_THAT(parameter_names(*module),
              ::testing::ElementsAre("0.gamma", "1.weight", "1.bias", "3.weight", "3.bias"));
  EXPECT_THAT(printed(module), ::testing::StartsWith("weir::nn::FeedForward(dim=6, hidden=9)("));
}

TEST(FeedForward, Messages) {
  expect_refusal([] { FeedForward module({.dim = 0}); },
                 "weir::FeedForward: expected `dim` to be at least 1, but got 0.");
  expect_refusal(
      [] { FeedForward module({.dim = 4, .mult = 0.1}); },
      "weir::FeedForward: expected `dim` * `mult` to lie in [1, 1073741824], but got 4 * "
      "0.1.");
  FeedForward module({.dim = 4});
  expect_refusal(
      [&] {
        module(at::randn({2, 5}));
      },
      "weir::FeedForward: expected the last dimension of `x` to be 4, but got [2, 5].");
}

TEST(ConditionalRoutedFeedForward, IsTheFormula) {
  for (const bool through : {true, false}) {
    for (const std::optional<std::int64_t> block :
         {std::optional<std::int64_t>(), std::optional<std::int64_t>(4)}) {
      Options options = kOptions;
      options.router_straight_through = through;
      options.router_kwargs.route_block_size = block;
      auto module = doubles(options);
      for (const std::int64_t n : {0, 1, 3, 4, 9}) {
        const at::Tensor x = at::randn({2, n, kDim}, at::kDouble);
        expect_formula(module, x);
        expect_formula(module, x, {.mask = some_mask(n)});
        expect_formula(module, x, {.num_heavy_tokens = 5});
        expect_formula(module, x, {.num_heavy_tokens = torch::tensor({1, 4}, at::kLong)});
      }
      EXPECT_EQ(module(at::randn({0, 9, kDim}, at::kDouble)).sizes(),
                at::IntArrayRef({0, 9, kDim}));
    }
  }
}

TEST(ConditionalRoutedFeedForward, GradientsAreRight) {
  for (const std::int64_t n : {9, 3}) {
    Options options = kOptions;
    options.router_straight_through = false;
    auto module = doubles(options);
    const at::Tensor x = at::randn({2, n, kDim}, at::kDouble).requires_grad_();
    const at::Tensor probe = at::randn({2, n, kDim}, at::kDouble), mask = some_mask(n);
    std::vector<at::Tensor> leaves = {x};
    for (const auto& item : module->named_parameters()) {
      if (n > 3 || item.key() != "router.routing_token") leaves.push_back(item.value());
    }
    expect_directional_gradients([&] { return (module->forward(x, {.mask = mask}) * probe).sum(); },
                                 leaves);
    (module->forward(x, {.mask = mask}) * probe).sum().backward();
    if (n > 3) expect_gradients_everywhere(*module);
  }
}

TEST(ConditionalRoutedFeedForward, EntriesOfABatchAreApart) {
  auto module = doubles(kOptions);
  const at::Tensor x = at::randn({2, 9, kDim}, at::kDouble);
  at::Tensor changed = x.clone();
  changed[1].add_(1);
  EXPECT_TRUE(module(changed)[0].equal(module(x)[0]));
  EXPECT_LE(distance(module(x.narrow(0, 1, 1))[0], module(x)[1]), tests::kFloat64.weights);
}

TEST(ConditionalRoutedFeedForward, WorksUnderAutocastAndInSixteenBits) {
  torch::manual_seed(0);
  ConditionalRoutedFeedForward module(kOptions);
  const at::Tensor x = at::randn({2, 9, kDim});
  const at::Tensor right = module(x);
  for (const std::int64_t heavy : {3, 9}) {
    const ConditionalRoutedFeedForwardInputs inputs = {.num_heavy_tokens = heavy};
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    const at::Tensor out = module->forward(x, inputs);
    at::autocast::set_autocast_enabled(at::kCPU, false);
    EXPECT_EQ(out.scalar_type(), at::kFloat);
    EXPECT_GT(distance(out, module->forward(x, inputs)), 0);
    EXPECT_LE(distance(out, module->forward(x, inputs)), 0.05);  // of the same computation
  }
  module->to(at::kBFloat16);
  const at::Tensor half = module(x.to(at::kBFloat16));
  EXPECT_EQ(half.scalar_type(), at::kBFloat16);
  EXPECT_LE(distance(half, right), 0.05);
}

TEST(ConditionalRoutedFeedForward, HasThePublishedNames) {
  EXPECT_THAT(parameter_names(*ConditionalRoutedFeedForward(kOptions)),
              ::testing::ElementsAre("router.routing_token", "light_ff.0.gamma",
                                     "light_ff.1.weight", "light_ff.1.bias", "light_ff.3.weight",
                                     "light_ff.3.bias", "heavy_ff.0.gamma", "heavy_ff.1.weight",
                                     "heavy_ff.1.bias", "heavy_ff.3.weight", "heavy_ff.3.bias"));
  EXPECT_THAT(
      printed(ConditionalRoutedFeedForward(kOptions)),
      ::testing::StartsWith("weir::nn::ConditionalRoutedFeedForward(dim=6, num_heavy_tokens=3)("));
}

TEST(ConditionalRoutedFeedForward, CopiesAgree) {
  expect_copies_agree(ConditionalRoutedFeedForward(kOptions),
                      ConditionalRoutedFeedForward(kOptions), at::randn({2, 9, kDim}));
}

TEST(ConditionalRoutedFeedForward, HandsItsKwargsToTheRouter) {
  Options options = kOptions;
  options.router_straight_through = false;
  options.router_kwargs = {.n_iters = 3,
                           .fetch_k_ratio = 2,
                           .eps = 0.5,
                           .eps_decay = 0.9,
                           .eps_init = 1.0,
                           .cosine_sim_routing = true,
                           .cosine_sim_scale = 3,
                           .route_block_size = 8,
                           .select_by = "scores",
                           .solver = "exact",
                           .router_type = "coor_descent",
                           .temperature = 0.5};
  const ConditionalRoutedFeedForward module(options);
  const CoordinateDescentRouterOptions& router = module->router->options;
  EXPECT_FALSE(router.straight_through);
  EXPECT_EQ(router.n_iters, 3);
  EXPECT_EQ(router.fetch_k_ratio, 2);
  EXPECT_EQ(router.eps, 0.5);
  EXPECT_EQ(router.eps_decay, 0.9);
  EXPECT_EQ(router.eps_init, 1.0);
  EXPECT_TRUE(router.cosine_sim_routing);
  EXPECT_EQ(router.cosine_sim_scale, 3);
  EXPECT_EQ(router.route_block_size, 8);
  EXPECT_EQ(router.select_by, "scores");
  EXPECT_EQ(router.solver, "exact");
  EXPECT_EQ(router.temperature, 0.5);
  options.router_kwargs = {.router_type = "cum_softmax"};
  EXPECT_EQ(ConditionalRoutedFeedForward(options)->router->options.router_type, "cum_softmax");
  const CoordinateDescentRouterOptions plain, handed = RouterKwargs().router(0, true);
  EXPECT_EQ(plain.eps, handed.eps);
  EXPECT_EQ(plain.eps_init, handed.eps_init);
  EXPECT_EQ(plain.fetch_k_ratio, handed.fetch_k_ratio);
}

TEST(ConditionalRoutedFeedForward, Messages) {
  const auto refuses = [](const Options& options, const std::string& words) {
    expect_refusal([&] { ConditionalRoutedFeedForward module(options); }, words);
  };
  const std::string name = "weir::ConditionalRoutedFeedForward: ";
  refuses({.num_heavy_tokens = 2}, name + "expected `dim` to be at least 1, but got 0.");
  refuses({.dim = 4}, name + "expected `num_heavy_tokens` to be at least 1, but got 0.");
  refuses({.dim = 4, .num_heavy_tokens = 2, .light_ff_mult = 0.1},
          name + "expected `dim` * `light_ff_mult` to lie in [1, 1073741824], but got 4 * 0.1.");
  refuses({.dim = 4, .num_heavy_tokens = 2, .heavy_ff_mult = -1},
          name + "expected `dim` * `heavy_ff_mult` to lie in [1, 1073741824], but got 4 * -1.");
  refuses({.dim = 4, .num_heavy_tokens = 2, .router_kwargs = {.eps = 0}},
          "weir::CoordinateDescentRouter: expected `eps` to be finite and at least 1e-12, but got "
          "0.");
  ConditionalRoutedFeedForward module(kOptions);
  const at::Tensor x = at::randn({2, 5, kDim});
  expect_refusal([&] { module(x[0]); },
                 name + "expected `x` to have shape [batch, n, 6], but got [5, 6].");
  expect_refusal(
      [&] {
        module->forward(x, {.mask = at::ones({2, 4}, at::kBool)});
      },
      name +
          "expected `mask` to have shape [2, 5] like the tokens of `x`, but got [2, "
          "4].");
  expect_refusal([&] { module->forward(x, {.num_heavy_tokens = 0}); },
                 "weir::CoordinateDescentRouter: expected `num_tokens` to be at least 1, but got "
                 "0.");
}

}  // namespace
}  // namespace weir::nn
