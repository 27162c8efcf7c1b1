// SPDX-License-Identifier: Apache-2.0
// router_logits against autograd through the formula in float64, corners, and finite differences.
#include "weir/ops/router_logits.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <torch/torch.h>

#include <limits>

#include "support/gradcheck.h"
#include "support/router_logits_cases.h"

namespace weir::tests {
namespace {

using ops::router_logits;
using torch::Tensor;

const auto kDouble = torch::TensorOptions(torch::kDouble);
constexpr torch::Dtype kDtypes[] = {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf};
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kInfinity = std::numeric_limits<double>::infinity();

class RouterLogitsRandom : public ::testing::TestWithParam<unsigned> {};

TEST_P(RouterLogitsRandom, EqualsTheTextbook) {
  for (unsigned i = 0; i < 30; ++i) {
    for (const auto dtype : kDtypes) {
      check_case(random_router_logits_case(100 * GetParam() + i, dtype));
      if (HasFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, RouterLogitsRandom, ::testing::Range(0u, 5u));

RC_GTEST_PROP(RouterLogitsProperty, CosinesStayWithinTheScale, ()) {
  torch::manual_seed(*rc::gen::arbitrary<std::uint32_t>());
  const auto dtype = *rc::gen::element(torch::kDouble, torch::kFloat, torch::kBFloat16);
  const auto n = *rc::gen::inRange<std::int64_t>(1, 90),
             dim = *rc::gen::inRange<std::int64_t>(1, 200),
             routes = *rc::gen::inRange<std::int64_t>(1, 9);
  const double spread = *rc::gen::element(1e-6, 1.0, 1e6), scale = 8;
  const Tensor x = (torch::randn({2, n, dim}, kDouble) * spread).to(dtype);
  Tensor tokens = torch::randn({2, routes, dim}, kDouble) / spread;
  tokens.select(1, 0).copy_(x.select(1, 0));  // of these the cosine is 1
  const Tensor got = router_logits(x, tokens, {.cosine = true, .scale = scale}).to(torch::kDouble);
  RC_ASSERT(got.abs().max().item<double>() <= scale * (1 + kFloat32.weights));
  RC_ASSERT((got.select(1, 0).select(1, 0) - scale).abs().max().item<double>() <=
            scale * kFloat32.weights);
}

TEST(RouterLogits, LengthsHaveAFloor) {
  for (const auto dtype : kDtypes) {
    RouterLogitsCase c{torch::randn({1, 6, 20}, kDouble).to(dtype),
                       torch::randn({2, 20}).to(dtype),
                       {.cosine = true, .scale = 3}};
    c.x.select(1, 2).zero_();
    c.x.select(1, 4).fill_(dtype == torch::kHalf ? 0 : 1e-14);
    c.tokens.select(0, 1).zero_();
    // The gradient of a row below the floor is 1e12 times the token: no such float16 is finite.
    if (dtype != torch::kHalf) {
      check_case(c);
    } else {
      EXPECT_TRUE(torch::isfinite(router_logits(c.x, c.tokens, c.options)).all().item<bool>());
    }
  }
}

TEST(RouterLogits, NanAndInfinityStayInTheirRow) {
  torch::manual_seed(2);
  for (const auto dtype : kDtypes) {
    for (const bool cosine : {false, true}) {
      const Tensor plain = torch::randn({1, 11, 21}).to(dtype);
      const RouterLogitsCase c{plain.clone(), torch::rand({3, 21}) + 0.5, {.cosine = cosine}};
      c.x[0][3][20] = kNaN, c.x[0][9][0] = kInfinity;
      const Tensor upstream = torch::randn({1, 3, 11});
      for (const auto& got : {run(c, upstream), run_composite_pair(c, upstream)}) {
        const Tensor logits = got[0][0].t();  // (n, routes)
        EXPECT_TRUE(torch::isnan(logits[3]).all().item<bool>());
        EXPECT_TRUE(torch::equal(logits[9], torch::full({3}, kInfinity, logits.options())) ||
                    (cosine && torch::isnan(logits[9]).all().item<bool>()));
        EXPECT_EQ(torch::isfinite(logits).all(-1).sum().item<std::int64_t>(), 9);
        const Tensor finite = torch::isfinite(got[1][0]).all(-1);
        EXPECT_EQ(finite.sum().item<std::int64_t>(), cosine ? 9 : 11);
        EXPECT_FALSE(torch::isfinite(got[2]).all().item<bool>());
      }
    }
  }
}

TEST(RouterLogits, DenormalsCountAsZeroAndAreNotSlow) {
  const Tensor x = torch::full({1, 8, 64}, 1e-40), tokens = torch::full({2, 64}, 1e3);
  const Tensor got = router_logits(x, tokens);
  EXPECT_LE(got.abs().max().item<double>(), 1e-34);
  EXPECT_TRUE(torch::equal(router_logits(x, tokens, {.cosine = true}), torch::zeros({1, 2, 8})));
}

TEST(RouterLogits, ComputesTheWantedGradientsAlone) {
  torch::manual_seed(4);
  for (const bool cosine : {false, true}) {
    const RouterLogitsCase c{torch::randn({2, 40, 24}), torch::randn({3, 24}), {.cosine = cosine}};
    const Tensor upstream = torch::randn({2, 3, 40});
    const auto both = run(c, upstream);
    const Tensor x = c.x.clone().requires_grad_(true), tokens = c.tokens.clone();
    router_logits(x, tokens, c.options).backward(upstream);
    EXPECT_TRUE(torch::equal(x.grad(), both[1]));
    EXPECT_FALSE(tokens.grad().defined());
    const Tensor fixed = c.x.clone();
    tokens.requires_grad_(true);
    router_logits(fixed, tokens, c.options).backward(upstream);
    EXPECT_TRUE(torch::equal(tokens.grad(), both[2]));
  }
}

TEST(RouterLogits, LogitsMayBeOverwrittenWhereTheGradientDoesNotReadThem) {
  const Tensor x = torch::randn({1, 5, 8}).requires_grad_(true), tokens = torch::randn({2, 8});
  router_logits(x, tokens).mul_(2).sum().backward();
  expect_close("grad of x", x.grad(), 2 * tokens.sum(0).expand({1, 5, 8}), kFloat32.gradients);
}

// ---- finite differences

TEST(RouterLogitsGradcheck, FirstAndSecondDerivatives) {
  torch::manual_seed(7);
  for (const bool cosine : {false, true}) {
    for (const bool own : {false, true}) {
      const auto function = [&](const Tensors& in) {
        return router_logits(in[0], in[1], {.cosine = cosine, .scale = 1.3});
      };
      const Tensor tokens = own ? torch::randn({2, 3, 5}, kDouble) : torch::randn({3, 5}, kDouble);
      const Tensors inputs = {torch::randn({2, 6, 5}, kDouble), tokens};
      expect_gradients(function, inputs);
      const auto gradient = [&](const Tensors& in) {
        const auto grads = torch::autograd::grad({function(in).square().sum()}, in, {},
                                                 std::nullopt, /*create_graph=*/true);
        return torch::cat({grads[0].flatten(), grads[1].flatten()});
      };
      expect_gradients(gradient, inputs);
    }
  }
}

TEST(RouterLogitsGradcheck, OneTensorAsTokensAndRoutingTokens) {
  torch::manual_seed(8);
  const auto function = [](const Tensors& in) {
    return router_logits(in[0], in[0], {.cosine = true});
  };
  expect_gradients(function, {torch::randn({2, 4, 5}, kDouble)});
}

}  // namespace
}  // namespace weir::tests
