// SPDX-License-Identifier: Apache-2.0
// Every message of coordinate_descent, on CPU and on Meta: the checks stand behind the dispatcher.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "support/message_of.h"
#include "weir/ops/coordinate_descent.h"

namespace weir::tests {
namespace {

using ops::coordinate_descent;
using ops::CoordinateDescentOptions;
using torch::Tensor;

struct Bad {
  std::string words;
  std::vector<std::int64_t> scores = {3, 8};
  torch::Dtype dtype = torch::kFloat;
  std::vector<std::int64_t> budget = {};
  torch::Dtype budget_dtype = torch::kFloat;
  std::vector<std::int64_t> mask = {8};
  torch::Dtype mask_dtype = torch::kBool;
  CoordinateDescentOptions options = {};
};

class CoordinateDescentErrors : public ::testing::TestWithParam<Bad> {};

TEST_P(CoordinateDescentErrors, SayWhatWasExpectedAndFound) {
  const Bad& bad = GetParam();
  for (const torch::Device device : {torch::Device(torch::kCPU), torch::Device(torch::kMeta)}) {
    const Tensor scores = torch::zeros(bad.scores, torch::dtype(bad.dtype).device(device));
    const Tensor budget = torch::ones(bad.budget, torch::dtype(bad.budget_dtype).device(device));
    const Tensor mask = torch::ones(bad.mask, torch::dtype(bad.mask_dtype).device(device));
    EXPECT_EQ(message_of([&] { coordinate_descent(scores, budget, mask, bad.options); }),
              "weir::coordinate_descent: " + bad.words);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Arguments, CoordinateDescentErrors,
    ::testing::Values(
        Bad{.words = "expected `solver` to be \"iterative\" or \"exact\", but got \"newton\".",
            .options = {.solver = "newton"}},
        Bad{.words = "expected `n_iters` to be at least 1, but got 0.", .options = {.n_iters = 0}},
        Bad{.words = "expected `eps` to be finite and at least 1e-12, but got 0.",
            .options = {.eps = 0}},
        Bad{.words = "expected `eps` to be finite and at least 1e-12, but got nan.",
            .options = {.eps = NAN}},
        Bad{.words = "expected `eps_init` to be finite and positive, but got -1.",
            .options = {.eps_init = -1}},
        Bad{.words = "expected `eps_decay` to lie in (0, 1], but got 1.5.",
            .options = {.eps_decay = 1.5}},
        Bad{.words =
                "expected `scores` to have at least 1 dimension, but got a 0-dimensional tensor.",
            .scores = {},
            .mask = {}},
        Bad{.words = "expected `scores` to be floating point, but got Long.",
            .dtype = torch::kLong},
        Bad{.words = "expected `budget` to be a real number per row, but got Bool.",
            .budget_dtype = torch::kBool},
        Bad{.words = "expected `budget` to broadcast to [3], the shape of `scores` without its "
                     "last dimension, but got [3, 8].",
            .budget = {3, 8}},
        Bad{.words = "expected `mask` to be bool (true = keep), but got Float.",
            .mask_dtype = torch::kFloat},
        Bad{.words = "expected `mask` to broadcast to [3, 8] like `scores`, but got [3].",
            .mask = {3}},
        Bad{.words = "expected `mask` to broadcast to [3, 8] like `scores`, but got [1, 3, 8].",
            .mask = {1, 3, 8}}));

TEST(CoordinateDescentErrors, BudgetGivenAsANumber) {
  const Tensor scores = torch::zeros({3, 8});
  for (const double budget : {0.0, -1.0, std::numeric_limits<double>::infinity()}) {
    EXPECT_THAT(
        message_of([&] { coordinate_descent(scores, budget); }),
        ::testing::StartsWith(
            "weir::coordinate_descent: expected `budget` to be finite and positive, but got "));
  }
}

TEST(CoordinateDescentErrors, DevicesMustAgree) {
  const Tensor scores = torch::zeros({3, 8});
  EXPECT_EQ(
      message_of([&] { coordinate_descent(scores, torch::ones({3}, torch::kMeta)); }),
      "weir::coordinate_descent: expected `budget` on the device of `scores`, cpu, but got meta.");
  EXPECT_EQ(
      message_of([&] {
        coordinate_descent(scores, torch::ones({3}),
                           torch::ones({8}, torch::dtype(torch::kBool).device(torch::kMeta)));
      }),
      "weir::coordinate_descent: expected `mask` on the device of `scores`, cpu, but got meta.");
}

}  // namespace
}  // namespace weir::tests
