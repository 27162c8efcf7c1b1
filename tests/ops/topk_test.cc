// SPDX-License-Identifier: Apache-2.0
// topk: golden numbers, the hard selection of torch, the gradient of coordinate_descent, masks,
// messages.
#include "weir/ops/topk.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "support/gradcheck.h"
#include "support/tolerance.h"
#include "weir/ops/coordinate_descent.h"

namespace weir::tests {
namespace {

using ops::TopkResult;
using torch::Tensor;

TEST(Topk, PublishedNumbers) {
  const Tensor scores = torch::tensor({0.3, -1.2, 2.0, 0.7, 0.1, 1.1}, torch::kDouble);
  const TopkResult result = ops::topk(scores, 2, std::nullopt, {.n_iters = 20, .eps = 1.0});
  EXPECT_TRUE(torch::allclose(result.values, torch::tensor({2.0, 1.1}, torch::kDouble), 0, 1e-12));
  EXPECT_TRUE(torch::equal(result.indices, torch::tensor({2, 5}, torch::kLong)));
  EXPECT_TRUE(torch::allclose(result.coor_descent_values,
                              torch::tensor({1.0, 0.4830382163}, torch::kDouble), 0, 1e-10));
  EXPECT_TRUE(torch::equal(result.gates, torch::ones({2}, torch::kDouble)));
}

TEST(Topk, SelectsWhatTorchSelects) {
  torch::manual_seed(1);
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
    const Tensor scores = torch::randperm(3 * 50).view({3, 50}).to(dtype);
    const auto [values, indices] = at::topk(scores, 7);
    for (const bool plain : {false, true}) {
      const TopkResult result = ops::topk(scores, 7, std::nullopt, {.non_differentiable = plain});
      EXPECT_TRUE(torch::equal(result.indices, indices));
      EXPECT_TRUE(torch::equal(result.values, values));
      EXPECT_EQ(result.gates.defined(), !plain);
      EXPECT_EQ(result.coor_descent_values.defined(), !plain);
    }
  }
}

TEST(Topk, GradientIsIdentityPlusScoresTimesSoftTopk) {
  torch::manual_seed(2);
  const Tensor scores = torch::randn({4, 12}, torch::kDouble).requires_grad_(true);
  const TopkResult result = ops::topk(scores, 3, std::nullopt, {.n_iters = 8, .eps = 1.0});
  const Tensor upstream = torch::randn({4, 3}, torch::kDouble);
  const Tensor got = torch::autograd::grad({result.values}, {scores}, {upstream})[0];
  const Tensor weights =
      ops::coordinate_descent(scores, 3 * 9.0 / 8, std::nullopt, {.n_iters = 8, .eps = 1.0});
  const Tensor composed =
      scores.gather(-1, result.indices) +
      scores.detach().gather(-1, result.indices) * weights.gather(-1, result.indices);
  const Tensor expected = torch::autograd::grad({composed}, {scores}, {upstream})[0];
  EXPECT_LE((got - expected).abs().max().item<double>(), kFloat64.gradients);
  EXPECT_GT((got != 0).sum(-1).min().item<std::int64_t>(),
            3);  // dense: it reaches entries not chosen
}

TEST(Topk, MaskedEntriesAreNeverChosenBeforeValidOnes) {
  torch::manual_seed(3);
  const Tensor scores = torch::randn({64, 20}).requires_grad_(true);
  const Tensor mask = torch::rand({64, 20}) < 0.4;
  for (const std::string solver : {"iterative", "exact"}) {
    const TopkResult result = ops::topk(scores, 6, mask, {.solver = solver});
    const Tensor valid = mask.gather(-1, result.indices);
    const Tensor number = mask.sum(-1).clamp_max(6);
    EXPECT_TRUE(torch::equal(valid.sum(-1), number));
    EXPECT_TRUE(torch::equal(result.gates, valid.to(torch::kFloat)));
    EXPECT_TRUE((result.values.masked_select(~valid) == -std::numeric_limits<float>::max())
                    .all()
                    .item<bool>());
    const Tensor grad =
        torch::autograd::grad({result.values.masked_fill(~valid, 0).sum()}, {scores}, {}, true)[0];
    EXPECT_TRUE(grad.isfinite().all().item<bool>());
    EXPECT_TRUE((grad.masked_select(~mask) == 0).all().item<bool>());
  }
}

TEST(Topk, BudgetIsCappedAtTheRow) {
  const Tensor scores = torch::randn({2, 5}, torch::kDouble);
  const TopkResult result = ops::topk(scores, 5, std::nullopt, {.solver = "exact"});
  EXPECT_TRUE(torch::equal(result.coor_descent_values, torch::ones({2, 5}, torch::kDouble)));
}

TEST(Topk, SaysWhatWasExpectedAndFound) {
  const auto message = [](const auto& call) -> std::string {
    try {
      call();
    } catch (const c10::Error& error) {
      return error.what_without_backtrace();
    }
    return "no error";
  };
  const Tensor scores = torch::zeros({2, 5});
  EXPECT_EQ(
      message([&] { ops::topk(scores, 6); }),
      "weir::topk: expected `k` to lie in [1, 5], the length of a row of `scores`, but got 6.");
  EXPECT_EQ(
      message([&] { ops::topk(scores, 0); }),
      "weir::topk: expected `k` to lie in [1, 5], the length of a row of `scores`, but got 0.");
  EXPECT_EQ(message([&] { ops::topk(scores, 2, std::nullopt, {.coor_descent_k_ratio = 0.5}); }),
            "weir::topk: expected `coor_descent_k_ratio` to be at least 1, but got 0.5.");
  EXPECT_EQ(message([&] {
              ops::topk(scores, 2, torch::ones({2}, torch::kBool), {.non_differentiable = true});
            }),
            "weir::topk: expected `mask` to broadcast to [2, 5] like `scores`, but got [2].");
  EXPECT_EQ(message([&] { ops::topk(scores, 2, torch::ones({5})); }),
            "weir::topk: expected `mask` to be bool (true = keep), but got Float.");
  EXPECT_EQ(message([&] { ops::topk(torch::zeros({}), 1); }),
            "weir::topk: expected `scores` to have at least 1 dimension, but got a 0-dimensional "
            "tensor.");
  EXPECT_EQ(message([&] { ops::topk(torch::zeros({3}, torch::kLong), 1); }),
            "weir::topk: expected `scores` to be floating point, but got Long.");
}

}  // namespace
}  // namespace weir::tests
