// SPDX-License-Identifier: Apache-2.0
// Every message of router_logits, on CPU and on Meta: the checks stand behind the dispatcher.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "support/message_of.h"
#include "weir/ops/router_logits.h"

namespace weir::tests {
namespace {

using ops::router_logits;
using torch::Tensor;
using Shape = std::vector<std::int64_t>;

struct Bad {
  std::string words;
  Shape x = {2, 9, 8}, tokens = {3, 8};
  torch::Dtype dtype = torch::kFloat, tokens_dtype = torch::kFloat;
  double scale = 1;
};

void PrintTo(const Bad& bad, std::ostream* out) { *out << bad.words; }

class RouterLogitsErrors : public ::testing::TestWithParam<Bad> {};

TEST_P(RouterLogitsErrors, SayWhatWasExpectedAndFound) {
  const Bad& bad = GetParam();
  for (const torch::Device device : {torch::Device(torch::kCPU), torch::Device(torch::kMeta)}) {
    EXPECT_EQ(message_of([&] {
                router_logits(
                    torch::zeros(bad.x, torch::dtype(bad.dtype).device(device)),
                    torch::zeros(bad.tokens, torch::dtype(bad.tokens_dtype).device(device)),
                    {.scale = bad.scale});
              }),
              bad.words.empty() ? "no error" : "weir::router_logits: expected " + bad.words);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Arguments, RouterLogitsErrors,
    ::testing::Values(
        Bad{.words = ""}, Bad{.words = "", .tokens = {2, 3, 8}},
        Bad{.words = "`x` to have shape (batch, n, dim), but got [9, 8].", .x = {9, 8}},
        Bad{.words = "`x` to have shape (batch, n, dim), but got [].", .x = {}},
        Bad{.words = "`x` to be float32, float64, bfloat16 or float16, but got Long.",
            .dtype = torch::kLong},
        Bad{.words = "`x` to be float32, float64, bfloat16 or float16, but got Float8_e5m2.",
            .dtype = torch::kFloat8_e5m2},
        Bad{.words = "`tokens` to be floating point, but got Int.", .tokens_dtype = torch::kInt},
        Bad{.words = "`tokens` to have shape (routes, 8) or (2, routes, 8) like `x`, but got [8].",
            .tokens = {8}},
        Bad{.words =
                "`tokens` to have shape (routes, 8) or (2, routes, 8) like `x`, but got [3, 7].",
            .tokens = {3, 7}},
        Bad{.words =
                "`tokens` to have shape (routes, 8) or (2, routes, 8) like `x`, but got [1, 3, 8].",
            .tokens = {1, 3, 8}},
        Bad{.words = "`scale` to be finite, but got nan.", .scale = NAN},
        Bad{.words = "`scale` to be finite, but got inf.", .scale = INFINITY}));

TEST(RouterLogitsErrors, DevicesMustAgree) {
  const Tensor x = torch::zeros({1, 3, 2}), far = torch::zeros({1, 2}, torch::kMeta);
  EXPECT_EQ(message_of([&] { router_logits(x, far); }),
            "weir::router_logits: expected `tokens` on the device of `x`, cpu, but got meta.");
}

}  // namespace
}  // namespace weir::tests
