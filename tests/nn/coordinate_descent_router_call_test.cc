// SPDX-License-Identifier: Apache-2.0
// CoordinateDescentRouter from its caller's side: random routes, dtypes, autocast, names, copies,
// messages.
#include <ATen/autocast_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "nn/module_contract.h"
#include "support/tolerance.h"
#include "weir/nn/coordinate_descent_router.h"

namespace weir::nn {
namespace {

using Options = CoordinateDescentRouterOptions;
using Inputs = CoordinateDescentRouterInputs;
using Outputs = CoordinateDescentRouterOutputs;

void expect_equal(const Outputs& a, const Outputs& b) {
  EXPECT_TRUE(a.indices->equal(*b.indices));
  EXPECT_TRUE(a.scores.equal(b.scores));
  EXPECT_TRUE(a.routed_tokens.equal(b.routed_tokens));
}

// ---- random routes

TEST(CoordinateDescentRouterCall, RandomRoutesFollowTheSeed) {
  CoordinateDescentRouter router(
      Options{.dim = 4, .straight_through = false, .num_routing_tokens = 2, .route_block_size = 8});
  const at::Tensor x = at::randn({3, 30, 4});
  const auto routed = [&](std::uint64_t seed, const Inputs& inputs) {
    torch::manual_seed(seed);
    return router(x, 6, inputs);
  };
  const Outputs out = routed(1, {.random_route = true});
  expect_equal(routed(1, {.random_route = true}), out);
  EXPECT_FALSE(routed(2, {.random_route = true}).indices->equal(*out.indices));
  EXPECT_FALSE(router(x, 6).indices->equal(*out.indices));
  EXPECT_FALSE(out.scores.requires_grad());
  EXPECT_LT(out.scores.min().item<double>(), 0) << "N(0, 1)";

  at::Tensor mask = at::ones({3, 30}, at::kBool);
  mask.slice(1, 0, 30, 2).fill_(false);
  const Outputs masked = routed(1, {.mask = mask, .random_route = true});
  EXPECT_TRUE(masked.scores.isfinite().all().item<bool>());
  EXPECT_TRUE((*masked.indices % 2 == 1).equal(*masked.routed_mask));
  EXPECT_TRUE(masked.routed_mask->narrow(2, 0, 6).all().item<bool>());

  CoordinateDescentRouter through(Options{.dim = 4});
  mask.narrow(1, 2, 28).fill_(false);
  const Outputs few = through->forward(x, 6, {.mask = mask, .random_route = true});
  EXPECT_TRUE(few.scores.equal(few.routed_mask->to(at::kFloat)));
}

// Not the similarities in disguise: every token is chosen equally often.
TEST(CoordinateDescentRouterCall, RandomRoutesAreUniform) {
  torch::manual_seed(0);
  CoordinateDescentRouter router(Options{.dim = 4});
  const at::Tensor x = at::randn({1, 10, 4}).expand({2000, 10, 4});
  const at::Tensor counts =
      router->forward(x, 3, {.random_route = true}).indices->flatten().bincount();
  EXPECT_LT((counts - 600).abs().max().item<std::int64_t>(), 100);  // five standard deviations
}

// ---- dtypes

TEST(CoordinateDescentRouterCall, SixteenBitTokensAreRoutedInFloat32) {
  torch::manual_seed(0);
  for (const auto& [dtype, tolerance] : {std::pair(at::kBFloat16, tests::kBFloat16.weights),
                                         std::pair(at::kHalf, tests::kFloat16.weights)}) {
    for (const bool cosine : {false, true}) {
      CoordinateDescentRouter router(Options{.dim = 64,
                                             .straight_through = false,
                                             .eps = 0.5,
                                             .num_routing_tokens = 2,
                                             .cosine_sim_routing = cosine});
      router->to(dtype);
      const at::Tensor x = at::randn({2, 300, 64}).to(dtype).requires_grad_();
      const Outputs out = router(x, 40);
      EXPECT_EQ(out.scores.scalar_type(), dtype);
      EXPECT_EQ(out.routed_tokens.scalar_type(), dtype);
      CoordinateDescentRouter wide(router->options);
      wide->routing_token.set_data(router->routing_token.detach().to(at::kFloat));
      const Outputs right = wide(x.detach().to(at::kFloat), 40);
      EXPECT_TRUE(out.indices->equal(*right.indices));
      EXPECT_LE(distance(out.scores, right.scores), tolerance);
      out.scores.sum().backward();
      EXPECT_EQ(x.grad().scalar_type(), dtype);
      EXPECT_EQ(router->routing_token.grad().scalar_type(), dtype);
    }
  }
}

TEST(CoordinateDescentRouterCall, AutocastChangesNothing) {
  torch::manual_seed(0);
  for (const bool external : {false, true}) {
    CoordinateDescentRouter router(Options{.dim = 64,
                                           .straight_through = false,
                                           .eps = 0.5,
                                           .learned_routing_tokens = external,
                                           .cosine_sim_routing = external});
    Inputs inputs;
    if (external) inputs.routing_tokens = at::randn({2, 64});
    const at::Tensor x = at::randn({2, 300, 64});
    const Outputs right = router(x, 40, inputs);
    at::autocast::set_autocast_enabled(at::kCPU, true);
    at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
    const Outputs out = router(x, 40, inputs);
    const bool is_on = at::matmul(x, x.transpose(1, 2)).scalar_type() == at::kBFloat16;
    at::autocast::set_autocast_enabled(at::kCPU, false);
    EXPECT_TRUE(is_on);
    expect_equal(out, right);
    EXPECT_EQ(out.scores.scalar_type(), at::kFloat);
  }
}

TEST(CoordinateDescentRouterCall, StraightThroughScoresAreExactlyOne) {
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    CoordinateDescentRouter router(Options{.dim = 8, .eps = 1});
    router->to(dtype);
    EXPECT_TRUE((router(at::randn({4, 300, 8}, dtype), 100).scores == 1).all().item<bool>());
  }
}

TEST(CoordinateDescentRouterCall, TakesTokensOfAnyStrides) {
  CoordinateDescentRouter router(Options{.dim = 8, .num_routing_tokens = 2});
  const at::Tensor x = at::randn({20, 8, 3}).permute({2, 0, 1});
  expect_equal(router(x, 5), router(x.contiguous(), 5));
  const at::Tensor slice = at::randn({3, 40, 8}).slice(1, 3, 40, 2);
  expect_equal(router(slice, 5), router(slice.contiguous(), 5));
}

// ---- the contract of modules

TEST(CoordinateDescentRouterCall, HasThePublishedNames) {
  EXPECT_THAT(parameter_names(*CoordinateDescentRouter(Options{.dim = 4, .num_routing_tokens = 3})),
              ::testing::ElementsAre("routing_token"));
  EXPECT_THAT(
      parameter_names(*CoordinateDescentRouter(Options{.dim = 4, .learned_routing_tokens = true})),
      ::testing::IsEmpty());
  CoordinateDescentRouter router(Options{.dim = 4, .num_routing_tokens = 3});
  EXPECT_EQ(router->routing_token.sizes(), at::IntArrayRef({3, 4}));
}

TEST(CoordinateDescentRouterCall, RoutingTokensStartNormal) {
  torch::manual_seed(0);
  CoordinateDescentRouter router(Options{.dim = 1000, .num_routing_tokens = 10});
  EXPECT_NEAR(router->routing_token.mean().item<double>(), 0, 0.05);
  EXPECT_NEAR(router->routing_token.std().item<double>(), 1, 0.05);
}

TEST(CoordinateDescentRouterCall, CopiesAgree) {
  CoordinateDescentRouter router(Options{.dim = 6, .straight_through = false, .eps = 1}),
      other(router->options);
  const at::Tensor x = at::randn({2, 9, 6});
  const Outputs expected = router(x, 4);
  const auto clone = std::dynamic_pointer_cast<CoordinateDescentRouterImpl>(router->clone());
  expect_equal(clone->forward(x, 4), expected);
  {
    torch::NoGradGuard no_grad;
    clone->routing_token.zero_();
  }
  expect_equal(router(x, 4), expected);
  std::stringstream archive;
  torch::save(router, archive);
  torch::load(other, archive);
  expect_equal(other(x, 4), expected);
}

TEST(CoordinateDescentRouterCall, StandsInAnAnyModule) {
  torch::nn::AnyModule any(CoordinateDescentRouter(Options{.dim = 6}));
  EXPECT_EQ(any.forward<Outputs>(at::randn({2, 9, 6}), NumTokens(4)).scores.size(1), 4);
}

TEST(CoordinateDescentRouterCall, PrintsItsOptions) {
  EXPECT_EQ(printed(CoordinateDescentRouter(Options{.dim = 4})),
            "weir::nn::CoordinateDescentRouter(dim=4, num_routing_tokens=1, eps=0.03, "
            "solver=iterative)");
  EXPECT_EQ(printed(CoordinateDescentRouter(Options{.dim = 4,
                                                    .num_routing_tokens = 2,
                                                    .learned_routing_tokens = true,
                                                    .cosine_sim_routing = true,
                                                    .route_block_size = 16})),
            "weir::nn::CoordinateDescentRouter(dim=4, learned_routing_tokens=true, "
            "num_routing_tokens=2, eps=0.03, solver=iterative, cosine_sim_scale=8, "
            "route_block_size=16)");
}

struct Refusal {
  Options options;
  const char* words;
};

TEST(CoordinateDescentRouterCall, RefusesOptionsThatDoNotFit) {
  const Refusal refusals[] = {
      {{.dim = 0}, "expected `dim` to be at least 1, but got 0."},
      {{.dim = 4, .n_iters = 0}, "expected `n_iters` to be at least 1, but got 0."},
      {{.dim = 4, .fetch_k_ratio = 0.5},
       "expected `fetch_k_ratio` to be finite and at least 1, but got 0.5."},
      {{.dim = 4, .eps = 0}, "expected `eps` to be finite and at least 1e-12, but got 0."},
      {{.dim = 4, .eps_decay = 2}, "expected `eps_decay` to lie in (0, 1], but got 2."},
      {{.dim = 4, .eps_init = -1}, "expected `eps_init` to be finite and positive, but got -1."},
      {{.dim = 4, .num_routing_tokens = 0},
       "expected `num_routing_tokens` to be at least 1, but got 0."},
      {{.dim = 4, .cosine_sim_scale = 0},
       "expected `cosine_sim_scale` to be finite and positive, but got 0."},
      {{.dim = 4, .route_block_size = 0},
       "expected `route_block_size` to be at least 1, but got 0."},
      {{.dim = 4, .select_by = "luck"},
       "expected `select_by` to be \"similarity\" or \"scores\", but got \"luck\"."},
      {{.dim = 4, .router_type = "sinkhorn"},
       "expected `router_type` to be \"coor_descent\" or \"cum_softmax\", but got \"sinkhorn\"."},
      {{.dim = 4, .select_by = "scores", .router_type = "cum_softmax"},
       "expected `select_by` \"similarity\" with `router_type` \"cum_softmax\", whose scores do "
       "not "
       "grow with similarity."},
      {{.dim = 4, .temperature = 0},
       "expected `temperature` to be finite and positive, but got 0."},
      {{.dim = 4, .solver = "newton"},
       "expected `solver` to be \"iterative\" or \"exact\", but got \"newton\"."},
  };
  for (const auto& [options, words] : refusals) {
    expect_refusal([&] { CoordinateDescentRouter router(options); },
                   std::string("weir::CoordinateDescentRouter: ") + words);
  }
}

TEST(CoordinateDescentRouterCall, RefusesArgumentsThatDoNotFit) {
  CoordinateDescentRouter own(Options{.dim = 4}),
      external(Options{.dim = 4, .num_routing_tokens = 2, .learned_routing_tokens = true});
  const at::Tensor x = at::randn({2, 5, 4});
  const auto refuses = [&](CoordinateDescentRouter& router, const at::Tensor& tokens,
                           const NumTokens& num_tokens, const Inputs& inputs,
                           const std::string& words) {
    expect_refusal([&] { router(tokens, num_tokens, inputs); },
                   "weir::CoordinateDescentRouter: " + words);
  };
  refuses(own, x[0], 2, {}, "expected `x` to have shape [batch, n, 4], but got [5, 4].");
  refuses(own, x, 0, {}, "expected `num_tokens` to be at least 1, but got 0.");
  refuses(own, x, torch::tensor({2, -1}, at::kLong), {},
          "expected `num_tokens` to be at least 0, but got -1.");
  refuses(own, x, torch::tensor({2, 1}, at::kInt), {},
          "expected `num_tokens` to be int64, but got Int.");
  refuses(own, x, torch::tensor({2}, at::kLong), {},
          "expected `num_tokens` to have shape [2], a number per entry of the batch, but got [1].");
  refuses(own, x, 2, {.mask = at::ones({2, 4}, at::kBool)},
          "expected `mask` to have shape [2, 5] like the tokens of `x`, but got [2, 4].");
  refuses(own, x, 2, {.routing_tokens = at::randn({2, 4})},
          "expected `routing_tokens` with `learned_routing_tokens`, and only then.");
  refuses(external, x, 2, {},
          "expected `routing_tokens` with `learned_routing_tokens`, and only then.");
  for (const at::Tensor& tokens : {at::randn({2, 4}), at::randn({2, 3, 4}), at::randn({3, 2, 4}),
                                   at::randn({2, 2, 5}), at::randn({4})}) {
    std::ostringstream shape;
    shape << tokens.sizes();
    refuses(external, x, 2, {.routing_tokens = tokens},
            "expected `routing_tokens` to have shape [2, 2, 4], but got " + shape.str() + ".");
  }
}

}  // namespace
}  // namespace weir::nn
