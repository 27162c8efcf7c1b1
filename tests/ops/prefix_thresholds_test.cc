// SPDX-License-Identifier: Apache-2.0
// Thresholds of prefixes against the textbook of coordinate descent, finite differences and the
// composite.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "support/gradcheck.h"
#include "support/instruction_sets.h"
#include "support/message_of.h"
#include "support/textbook_coordinate_descent.h"
#include "support/tolerance.h"
#include "weir/ops/prefix_thresholds.h"

namespace weir::tests {
namespace {

using ops::CoordinateDescentOptions;
using ops::prefix_thresholds;
using ops::prefix_thresholds_composite;
using torch::Tensor;
using Lengths = std::vector<std::int64_t>;

CoordinateDescentOptions iterative() {
  return {.n_iters = 12, .eps = 0.3, .eps_init = 4.0, .eps_decay = 0.6};
}
CoordinateDescentOptions exact() { return {.eps = 0.3, .solver = "exact"}; }

double largest_difference(const Tensor& a, const Tensor& b) {
  return (a - b).abs().max().item<double>();
}

TEST(PrefixThresholds, AreThoseOfTheTextbook) {
  torch::manual_seed(1);
  const Lengths lengths = {1, 2, 16, 17, 63, 64, 65, 130};
  const Tensor scores = torch::randn({3, 130}, torch::kDouble);
  scores[1][5] = -INFINITY;
  const Tensor budgets = torch::rand({3, 8}, torch::kDouble) * 9 + 0.5;
  for_each_instruction_set([&] {
    const Tensor got = prefix_thresholds(scores, lengths, budgets, iterative());
    const auto single = prefix_thresholds(scores.to(torch::kFloat), lengths, budgets, iterative());
    for (std::int64_t r = 0; r < 3; ++r) {
      for (std::int64_t p = 0; p < 8; ++p) {
        TextbookRow row;
        row.budget = budgets[r][p].item<double>();
        for (std::int64_t j = 0; j < lengths[static_cast<std::size_t>(p)]; ++j) {
          row.scores.push_back(scores[r][j].item<double>());
          row.valid.push_back(std::isfinite(row.scores.back()));
          if (!row.valid.back()) row.scores.back() = 0;
        }
        const double a = textbook_forward(row, textbook_schedule(12, 0.3, 4.0, 0.6)).a.back();
        EXPECT_NEAR(got[r][p].item<double>(), a, kFloat64.weights * (1 + std::abs(a)));
        EXPECT_NEAR(single[r][p].item<double>(), a, kFloat32.weights * (1 + std::abs(a)));
      }
    }
  });
}

TEST(PrefixThresholds, ExactOnesFillTheBudget) {
  torch::manual_seed(2);
  const Lengths lengths = {5, 40, 200, 700};
  const Tensor scores = torch::randn({2, 700}, torch::kDouble) * 3;
  const Tensor budgets = torch::tensor({2.0, 7.5, 1.0, 60.0}, torch::kDouble);
  for_each_instruction_set([&] {
    const Tensor got = prefix_thresholds(scores, lengths, budgets, exact());
    for (std::size_t p = 0; p < lengths.size(); ++p) {
      const auto column = static_cast<std::int64_t>(p);
      const Tensor y =
          ((scores.narrow(1, 0, lengths[p]) + got.select(1, column).unsqueeze(1)).clamp_max(0) /
           0.3)
              .exp();
      EXPECT_LE(largest_difference(y.sum(1), budgets[column]), kFloat64.weights * 60);
    }
  });
}

TEST(PrefixThresholds, DoNotDependOnWhatComesBehind) {
  torch::manual_seed(3);
  const Tensor scores = torch::randn({2, 96});
  const Lengths lengths = {32, 64};
  for (const auto& options : {iterative(), exact()}) {
    const Tensor budgets = torch::tensor({4.0, 8.0});
    const Tensor before = prefix_thresholds(scores, lengths, budgets, options);
    Tensor other = scores.clone();
    other.narrow(1, 64, 32).mul_(-7);
    EXPECT_TRUE(torch::equal(before, prefix_thresholds(other, lengths, budgets, options)));
    EXPECT_TRUE(torch::equal(
        before.select(1, 0),
        prefix_thresholds(scores.narrow(1, 0, 32), {32}, budgets[0], options).select(1, 0)));
  }
}

TEST(PrefixThresholds, HaveTheGradientOfFiniteDifferences) {
  torch::manual_seed(4);
  const Lengths lengths = {3, 3, 17, 40};
  const Tensor budgets =
      torch::tensor({{1.0, 2.5, 3.0, 9.0}, {2.0, 1.5, 5.0, 4.0}}, torch::kDouble);
  for (const auto& options : {iterative(), exact()}) {
    expect_gradients(
        [&](const Tensors& in) { return prefix_thresholds(in[0], lengths, budgets, options); },
        {torch::randn({2, 40}, torch::kDouble)});
    expect_gradients(
        [&](const Tensors& in) {  // of the gradient
          const Tensor a = prefix_thresholds(in[0], lengths, budgets, options);
          return torch::autograd::grad({a.sin().sum()}, {in[0]}, {}, std::nullopt, true)[0];
        },
        {torch::randn({2, 40}, torch::kDouble)});
  }
}

TEST(PrefixThresholds, AgreeWithTheComposite) {
  torch::manual_seed(5);
  const Lengths lengths = {0, 1, 50, 200};
  for (const auto dtype : {torch::kFloat, torch::kDouble}) {
    const double tolerance = dtype == torch::kDouble ? kFloat64.gradients : kFloat32.gradients;
    for (const auto& options : {iterative(), exact()}) {
      const Tensor scores = torch::randn({2, 3, 200}, dtype).requires_grad_();
      const Tensor budgets = torch::tensor({1.0, 1.0, 6.0, 11.0});
      const Tensor got = prefix_thresholds(scores, lengths, budgets, options),
                   want = prefix_thresholds_composite(scores, lengths, budgets, options);
      const Tensor weights = torch::randn({2, 3, 2}, torch::kDouble);  // of those that are finite
      const auto grad_of = [&](const Tensor& a) {
        return torch::autograd::grad({(a.narrow(2, 2, 2) * weights).sum()}, {scores})[0];
      };
      EXPECT_LE(largest_difference(got.narrow(2, 2, 2), want.narrow(2, 2, 2)), tolerance);
      EXPECT_LE(largest_difference(grad_of(got), grad_of(want)), tolerance);
      EXPECT_TRUE(torch::equal(got.narrow(2, 0, 2), want.narrow(2, 0, 2)));
    }
  }
}

TEST(PrefixThresholds, OfSixteenBitScoresAreThoseInFloat) {
  const Tensor scores = torch::randn({2, 64}).to(torch::kBFloat16);
  const Tensor budget = torch::tensor({3.0});
  EXPECT_TRUE(torch::equal(prefix_thresholds(scores, {64}, budget, exact()),
                           prefix_thresholds(scores.to(torch::kFloat), {64}, budget, exact())));
}

TEST(PrefixThresholds, TakeEmptyTensors) {
  EXPECT_EQ(prefix_thresholds(torch::randn({0, 8}), {4, 8}, torch::ones({2}), exact()).sizes(),
            (std::vector<std::int64_t>{0, 2}));
  const Tensor scores = torch::randn({3, 8}).requires_grad_();
  const Tensor none = prefix_thresholds(scores, {}, torch::ones({0}), exact());
  EXPECT_EQ(none.sizes(), (std::vector<std::int64_t>{3, 0}));
  EXPECT_TRUE(torch::autograd::grad({none.sum()}, {scores})[0].eq(0).all().item<bool>());
}

TEST(PrefixThresholds, SayWhatWasExpectedAndFound) {
  const auto words = [](const Tensor& scores, Lengths lengths, const Tensor& budgets) {
    return message_of([&] { prefix_thresholds(scores, lengths, budgets); });
  };
  for (const torch::Device device : {torch::Device(torch::kCPU), torch::Device(torch::kMeta)}) {
    const Tensor scores = torch::zeros({3, 8}, device), one = torch::ones({1}, device);
    EXPECT_EQ(words(scores, {4, 2}, one),
              "weir::prefix_thresholds: expected `lengths` to ascend, but got [4, 2].");
    EXPECT_EQ(words(scores, {4, 9}, one),
              "weir::prefix_thresholds: expected `lengths` to lie between 0 and 8, the last "
              "dimension of `scores`, but got [4, 9].");
    EXPECT_EQ(words(scores, {4}, torch::ones({2}, device)),
              "weir::prefix_thresholds: expected `budgets` to broadcast to [3, 1], a number per "
              "row and prefix, but got [2].");
    EXPECT_EQ(words(scores, {4}, torch::ones({1}, torch::device(device).dtype(torch::kBool))),
              "weir::prefix_thresholds: expected `budgets` to be real numbers, but got Bool.");
    EXPECT_EQ(words(torch::zeros({3, 8}, torch::device(device).dtype(torch::kLong)), {4}, one),
              "weir::prefix_thresholds: expected `scores` to be floating point, but got Long.");
  }
  EXPECT_THAT(
      words(torch::zeros({3, 8}), {4}, torch::ones({1}, torch::kMeta)),
      ::testing::StartsWith("weir::prefix_thresholds: expected `budgets` on the device of"));
}

}  // namespace
}  // namespace weir::tests
