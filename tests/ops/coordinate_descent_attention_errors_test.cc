// SPDX-License-Identifier: Apache-2.0
// Every message of coordinate_descent_attention, on CPU and on Meta: the checks stand behind the
// dispatcher.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "support/attention_operand_errors.h"
#include "support/message_of.h"
#include "weir/ops/coordinate_descent_attention.h"

namespace weir::tests {
namespace {

using ops::coordinate_descent_attention;
using ops::CoordinateDescentAttentionOptions;
using torch::Tensor;

using Shape = std::vector<std::int64_t>;

struct Bad {
  std::string words;
  Shape budget = {}, key_mask = {2, 6}, mask = {5, 6};
  torch::Dtype budget_dtype = torch::kFloat, mask_dtype = torch::kBool;
  CoordinateDescentAttentionOptions options = {};
};

void PrintTo(const Bad& bad, std::ostream* out) { *out << bad.words; }

class CoordinateDescentAttentionErrors : public ::testing::TestWithParam<Bad> {};

TEST_P(CoordinateDescentAttentionErrors, SayWhatWasExpectedAndFound) {
  const Bad& bad = GetParam();
  for (const torch::Device device : {torch::Device(torch::kCPU), torch::Device(torch::kMeta)}) {
    const auto ones = [&](const Shape& shape, torch::Dtype dtype) {
      return torch::ones(shape, torch::dtype(dtype).device(device));
    };
    const Tensor query = ones({2, 4, 5, 8}, torch::kFloat), key = ones({2, 2, 6, 8}, torch::kFloat),
                 value = ones({2, 2, 6, 3}, torch::kFloat),
                 budget = ones(bad.budget, bad.budget_dtype),
                 key_mask = ones(bad.key_mask, bad.mask_dtype), mask = ones(bad.mask, torch::kBool);
    EXPECT_EQ(
        message_of([&] {
          coordinate_descent_attention(query, key, value, budget, {key_mask, mask}, bad.options);
        }),
        "weir::coordinate_descent_attention: expected " + bad.words);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Arguments, CoordinateDescentAttentionErrors,
    ::testing::Values(
        Bad{.words = "`budget` to be a real number per query, but got Bool.",
            .budget_dtype = torch::kBool},
        Bad{.words = "`budget` to broadcast to [2, 4, 5], the queries, but got [2, 4, 5, 6].",
            .budget = {2, 4, 5, 6}},
        Bad{.words = "`budget` to broadcast to [2, 4, 5], the queries, but got [6].",
            .budget = {6}},
        Bad{.words = "`key_mask` to be bool (true = keep), but got Float.",
            .mask_dtype = torch::kFloat},
        Bad{.words = "`key_mask` to have shape [2, 6], but got [6].", .key_mask = {6}},
        Bad{.words = "`mask` to broadcast to [2, 4, 5, 6], but got [3, 5, 6].", .mask = {3, 5, 6}},
        Bad{.words = "`nulls` to be at least 0, but got -1.", .options = {.nulls = -1}},
        Bad{.words = "`scale` to be finite, but got nan.", .options = {.scale = NAN}},
        Bad{.words = "`solver` to be \"iterative\" or \"exact\", but got \"newton\".",
            .options = {.solver = "newton"}},
        Bad{.words = "`n_iters` to be at least 1, but got 0.", .options = {.n_iters = 0}},
        Bad{.words = "`eps` to be finite and at least 1e-12, but got 0.", .options = {.eps = 0}},
        Bad{.words = "`eps_init` to be finite and positive, but got -1.",
            .options = {.eps_init = -1}},
        Bad{.words = "`eps_decay` to lie in (0, 1], but got 1.5.", .options = {.eps_decay = 1.5}}));

TEST(CoordinateDescentAttentionErrors, Operands) {
  expect_operand_errors("coordinate_descent_attention",
                        [](const Tensor& query, const Tensor& key, const Tensor& value) {
                          coordinate_descent_attention(query, key, value, 2.0);
                        });
}

TEST(CoordinateDescentAttentionErrors, BudgetGivenAsANumber) {
  const Tensor x = torch::zeros({1, 1, 2, 2});
  for (const double budget : {0.0, -1.0, std::numeric_limits<double>::infinity()}) {
    EXPECT_THAT(message_of([&] { coordinate_descent_attention(x, x, x, budget); }),
                ::testing::StartsWith("weir::coordinate_descent_attention: expected `budget` to be "
                                      "finite and positive, but got "));
  }
}

TEST(CoordinateDescentAttentionErrors, DevicesMustAgree) {
  const Tensor x = torch::zeros({1, 1, 2, 2});
  EXPECT_EQ(
      message_of([&] { coordinate_descent_attention(x, x, x, torch::ones({2}, torch::kMeta)); }),
      "weir::coordinate_descent_attention: expected `budget` on the device of `query`, cpu, "
      "but got meta.");
}

}  // namespace
}  // namespace weir::tests
