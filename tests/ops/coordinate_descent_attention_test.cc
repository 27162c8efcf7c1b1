// SPDX-License-Identifier: Apache-2.0
// coordinate_descent_attention against the plain formulation in float64, finite differences, and
// by its properties.
#include "weir/ops/coordinate_descent_attention.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "support/coordinate_descent_attention_cases.h"
#include "support/gradcheck.h"

namespace weir::tests {
namespace {

using ops::CoordinateDescentAttentionOptions;
using torch::kDouble;
using torch::Tensor;

TEST(CoordinateDescentAttention, EqualsThePlainFormulation) {
  for (unsigned seed = 0; seed < 320; ++seed) {
    check_case(random_choosing_case(seed, kDouble));
    if (HasFailure()) return;
  }
}

TEST(CoordinateDescentAttention, EqualsThePlainFormulationInFewerBits) {
  for (unsigned seed = 1000; seed < 1060; ++seed) {
    for (const auto dtype : {torch::kFloat, torch::kBFloat16, torch::kHalf}) {
      check_case(random_choosing_case(seed, dtype));
    }
    if (HasFailure()) return;
  }
}

TEST(CoordinateDescentAttention, ManyKeysInSeveralBlocks) {
  torch::manual_seed(1);
  for (const bool exact : {false, true}) {
    ChoosingCase c{torch::randn({1, 2, 150, 16}, kDouble), torch::randn({1, 1, 1500, 16}, kDouble),
                   torch::randn({1, 1, 1500, 8}, kDouble), torch::full({}, 5.3, kDouble)};
    c.options = {.causal = true,
                 .n_iters = 15,
                 .eps_init = 4.0,
                 .eps_decay = 0.7,
                 .solver = exact ? "exact" : "iterative"};
    check_case(c);
  }
}

TEST(CoordinateDescentAttention, GradientsByFiniteDifferences) {
  torch::manual_seed(2);
  for (const bool normalize : {false, true}) {
    for (const char* solver : {"iterative", "exact"}) {
      const CoordinateDescentAttentionOptions options = {.causal = true,
                                                         .nulls = 1,
                                                         .n_iters = 4,
                                                         .eps = 1.0,
                                                         .solver = solver,
                                                         .normalize = normalize};
      expect_gradients(
          [&](const Tensors& x) {
            return ops::coordinate_descent_attention(x[0], x[1], x[2], x[3], {}, options);
          },
          {torch::randn({1, 2, 4, 3}, kDouble), torch::randn({1, 1, 5, 3}, kDouble),
           torch::randn({1, 1, 5, 2}, kDouble), torch::rand({2, 4}, kDouble) + 0.6});
    }
  }
}

TEST(CoordinateDescentAttention, SecondDerivatives) {
  torch::manual_seed(3);
  const CoordinateDescentAttentionOptions options = {.causal = true, .n_iters = 3, .eps = 1.0};
  expect_gradients(
      [&](const Tensors& x) {
        const Tensor output =
            ops::coordinate_descent_attention(x[0], x[1], x[2], x[3], {}, options);
        const auto first =
            torch::autograd::grad({output.square().sum()}, {x[0], x[3]}, {}, std::nullopt,
                                  /*create_graph=*/true);
        return torch::cat({first[0].flatten(), first[1].flatten()});
      },
      {torch::randn({1, 1, 3, 2}, kDouble), torch::randn({1, 1, 3, 2}, kDouble),
       torch::randn({1, 1, 3, 2}, kDouble), torch::rand({3}, kDouble) + 0.6});
}

TEST(CoordinateDescentAttention, SaturatedRowsSumTheirValues) {
  torch::manual_seed(4);
  const Tensor query = torch::randn({1, 2, 3, 8}).requires_grad_(true),
               key = torch::randn({1, 2, 4, 8}).requires_grad_(true);
  const Tensor value = torch::randn({1, 2, 4, 5});
  const Tensor sum = value.sum(2, /*keepdim=*/true).expand({1, 2, 3, 5});
  for (const bool normalize : {false, true}) {  // as many keys as the budget: every weight is 1
    const Tensor output = ops::coordinate_descent_attention(
        query, key, value, 4.0, {}, {.solver = "exact", .normalize = normalize});
    const Tensor expected = normalize ? sum / 4 : sum;
    EXPECT_LE((output - expected).abs().max().item<double>(), kFloat32.weights);
    const auto grads = torch::autograd::grad({output.sum()}, {query, key});
    EXPECT_EQ(grads[0].abs().max().item<double>(), 0);
    EXPECT_EQ(grads[1].abs().max().item<double>(), 0);
  }
}

TEST(CoordinateDescentAttention, ExactWeightsSumToTheBudgetOrToTheVisibleKeys) {
  torch::manual_seed(8);
  for (const auto dtype : {kDouble, torch::kFloat}) {
    for (const std::int64_t n : {9, 700}) {
      const Tensor query = torch::randn({1, 2, n, 16}).to(dtype),
                   key = torch::randn({1, 2, n, 16}).to(dtype);
      const Tensor each = torch::eye(n, dtype).expand({1, 2, n, n});  // the weights themselves
      const Tensor weights = ops::coordinate_descent_attention(query, key, each, 5.3, {},
                                                               {.causal = true, .solver = "exact"});
      const Tensor sums = weights.to(kDouble).sum(-1);
      const Tensor visible = torch::arange(1, n + 1, kDouble).clamp_max(5.3);
      EXPECT_LE(((sums - visible) / visible).abs().max().item<double>(), 1e-6) << n;
    }
  }
}

TEST(CoordinateDescentAttention, WhatIsNotSeenNeverReachesAResult) {
  torch::manual_seed(5);
  const Tensor mask = torch::rand({2, 90}) < 0.6;
  mask.select(0, 1).fill_(false);  // queries that see nothing
  for (const auto dtype : {kDouble, torch::kFloat, torch::kBFloat16}) {
    for (const char* solver : {"iterative", "exact"}) {
      for (const bool normalize : {false, true}) {
        ChoosingCase c{torch::randn({2, 4, 70, 16}).to(dtype),
                       torch::randn({2, 2, 90, 16}).to(dtype),
                       torch::randn({2, 2, 90, 16}).to(dtype),
                       torch::full({}, 2.7, kDouble),
                       {mask}};
        c.options = {.causal = true, .eps = 0.5, .solver = solver, .normalize = normalize};
        const Tensor upstream = random_upstream(c);
        const ChoosingResult clean = with_gradients(c, upstream, attention_of);
        const Tensor away = mask.logical_not().view({2, 1, 90, 1});
        c.key = c.key.masked_fill(away, NAN), c.value = c.value.masked_fill(away, NAN);
        const ChoosingResult got = with_gradients(c, upstream, attention_of);
        for (std::size_t i = 0; i < got.size(); ++i)
          EXPECT_TRUE(torch::equal(got[i], clean[i])) << i;
        for (std::size_t i = 0; i < 4; ++i) {
          EXPECT_EQ(got[i].select(0, 1).abs().max().item<double>(), 0) << i;
        }
      }
    }
  }
}

TEST(CoordinateDescentAttention, AValueCountsWhereItsWeightIsNotZero) {
  torch::manual_seed(9);
  for (const std::int64_t m : {40, 600}) {  // a row per lane, and row by row
    for (const char* solver : {"iterative", "exact"}) {
      ChoosingCase c{3 * torch::randn({1, 2, 30, 8}, kDouble),
                     3 * torch::randn({1, 1, m, 8}, kDouble), torch::randn({1, 1, m, 4}, kDouble),
                     torch::full({}, 2.7, kDouble)};
      c.options = {.n_iters = 15, .eps = 0.01, .eps_init = 4.0, .eps_decay = 0.7, .solver = solver};
      const Tensor each = torch::eye(m, kDouble).view({1, 1, m, m});
      const Tensor weights =
          ops::coordinate_descent_attention(c.query, c.key, each, c.budget, {}, c.options);
      const Tensor counts = weights.select(3, 5) > 0;  // (1, 2, 30)
      ASSERT_TRUE(counts.any().item<bool>() && !counts.all().item<bool>());
      c.value.index_put_({0, 0, 5, 3}, NAN);
      const Tensor upstream = random_upstream(c);
      for (const ChoosingResult& got :
           {with_gradients(c, upstream, attention_of), composite_pair(c, upstream)}) {
        EXPECT_TRUE(got[0].select(3, 3).isnan().equal(counts)) << m << solver;
        EXPECT_FALSE(got[0].slice(3, 0, 3).isnan().any().item<bool>()) << m << solver;
        EXPECT_FALSE(got[1].masked_fill(counts.unsqueeze(-1), 0).isnan().any().item<bool>())
            << m << solver;
      }
    }
  }
}

TEST(CoordinateDescentAttention, WhatAMaskHidesFromAQueryNeverReachesIt) {
  torch::manual_seed(7);
  for (const std::int64_t m : {90, 600}) {  // a row per lane, and row by row
    for (const bool normalize : {false, true}) {
      const Tensor mask = torch::rand({70, m}) < 0.6;
      mask.select(1, 5).fill_(false).slice(0, 35).fill_(true);  // key 5: seen by the second half
      ChoosingCase c{torch::randn({1, 2, 70, 16}),
                     torch::randn({1, 2, m, 16}),
                     torch::randn({1, 2, m, 16}),
                     torch::full({}, 2.7),
                     {.mask = mask}};
      c.options = {.eps = 0.5, .normalize = normalize};
      const Tensor upstream = random_upstream(c);
      const ChoosingResult clean = with_gradients(c, upstream, attention_of);
      c.key.select(2, 5).fill_(NAN), c.value.select(2, 5).fill_(NAN);
      const ChoosingResult got = with_gradients(c, upstream, attention_of);
      for (const std::size_t i : {0, 1}) {  // output and query gradient
        EXPECT_TRUE(torch::equal(got[i].slice(2, 0, 35), clean[i].slice(2, 0, 35))) << m;
        EXPECT_TRUE(got[i].slice(2, 35).isnan().all().item<bool>()) << m;
      }
    }
  }
}

TEST(CoordinateDescentAttention, TheFutureDoesNotMoveABit) {
  torch::manual_seed(6);
  const Tensor query = torch::randn({1, 2, 100, 16}), key = torch::randn({1, 2, 103, 16}),
               value = torch::randn({1, 2, 103, 16});
  const CoordinateDescentAttentionOptions options = {.causal = true, .nulls = 3};
  const Tensor expected = ops::coordinate_descent_attention(query, key, value, 2.0, {}, options);
  for (const std::int64_t position : {1, 40, 64, 99}) {
    const Tensor other_key = key.clone(), other_value = value.clone();
    other_key.slice(2, 3 + position).fill_(NAN);
    other_value.slice(2, 3 + position).fill_(NAN);
    const Tensor got =
        ops::coordinate_descent_attention(query, other_key, other_value, 2.0, {}, options);
    EXPECT_TRUE(torch::equal(got.slice(2, 0, position), expected.slice(2, 0, position)));
    EXPECT_TRUE(got.slice(2, position).isnan().any().item<bool>());  // else this shows nothing
  }
}

}  // namespace
}  // namespace weir::tests
