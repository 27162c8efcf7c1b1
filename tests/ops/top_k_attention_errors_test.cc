// SPDX-License-Identifier: Apache-2.0
// Every message of top_k_attention, on CPU and on Meta: the checks stand behind the dispatcher.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "support/attention_operand_errors.h"
#include "support/message_of.h"
#include "weir/ops/top_k_attention.h"

namespace weir::tests {
namespace {

using ops::top_k_attention;
using ops::TopKAttentionOptions;
using torch::Tensor;
using Shape = std::vector<std::int64_t>;

struct Bad {
  std::string words;
  Shape key_mask = {2, 70}, mask = {40, 70};
  torch::Dtype key_mask_dtype = torch::kBool, mask_dtype = torch::kBool;
  std::int64_t k = 5;
  TopKAttentionOptions options = {};
};

void PrintTo(const Bad& bad, std::ostream* out) { *out << bad.words; }

class TopKAttentionErrors : public ::testing::TestWithParam<Bad> {};

TEST_P(TopKAttentionErrors, SayWhatWasExpectedAndFound) {
  const Bad& bad = GetParam();
  for (const torch::Device device : {torch::Device(torch::kCPU), torch::Device(torch::kMeta)}) {
    const auto zeros = [&](const Shape& shape, torch::Dtype dtype) {
      return torch::zeros(shape, torch::dtype(dtype).device(device));
    };
    EXPECT_EQ(message_of([&] {
                top_k_attention(zeros({2, 4, 40, 8}, torch::kFloat),
                                zeros({2, 2, 70, 8}, torch::kFloat),
                                zeros({2, 2, 70, 6}, torch::kFloat), bad.k,
                                {.key_mask = zeros(bad.key_mask, bad.key_mask_dtype),
                                 .mask = zeros(bad.mask, bad.mask_dtype)},
                                bad.options);
              }),
              bad.words.empty() ? "no error" : "weir::top_k_attention: expected " + bad.words);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Options, TopKAttentionErrors,
    ::testing::Values(Bad{.words = ""}, Bad{.words = "`k` to be at least 1, but got 0.", .k = 0},
                      Bad{.words = "`k` to be at least 1, but got -3.", .k = -3},
                      Bad{.words = "`scale` to be finite, but got nan.", .options = {.scale = NAN}},
                      Bad{.words = "`scale` to be finite, but got inf.",
                          .options = {.scale = INFINITY}}));

TEST(TopKAttentionErrors, Operands) {
  expect_operand_errors("top_k_attention",
                        [](const Tensor& query, const Tensor& key, const Tensor& value) {
                          top_k_attention(query, key, value, 5);
                        });
}

INSTANTIATE_TEST_SUITE_P(
    Masks, TopKAttentionErrors,
    ::testing::Values(
        Bad{.words = "`key_mask` to be bool (true = keep), but got Long.",
            .key_mask_dtype = torch::kLong},
        Bad{.words = "`key_mask` to have shape [2, 70], but got [70].", .key_mask = {70}},
        Bad{.words = "`mask` to be bool (true = keep), but got Float.",
            .mask_dtype = torch::kFloat},
        Bad{.words = "`mask` to broadcast to [2, 4, 40, 70], but got [2, 40, 70].",
            .mask = {2, 40, 70}},
        Bad{.words = "`mask` to broadcast to [2, 4, 40, 70], but got [1, 2, 4, 40, 70].",
            .mask = {1, 2, 4, 40, 70}}));

TEST(TopKAttentionErrors, IndicesAreInt32) {
  const Tensor few = torch::zeros({1, 1, 2, 1});
  const Tensor many = torch::zeros({1, 1, 1, 1}).expand({1, 1, std::int64_t{1} << 31, 1});
  EXPECT_EQ(message_of([&] { top_k_attention(few, many, many, 1); }),
            "weir::top_k_attention: expected `key` to have less than 2^31 positions, but got "
            "2147483648.");
}

TEST(TopKAttentionErrors, DevicesMustAgree) {
  const Tensor x = torch::zeros({1, 1, 3, 2}), far = x.to(torch::kMeta);
  const auto on_meta = [](const Shape& shape) {
    return torch::ones(shape, torch::dtype(torch::kBool).device(torch::kMeta));
  };
  const auto expected = [](const std::string& name) {
    return "weir::top_k_attention: expected `" + name +
           "` on the device of `query`, cpu, but got meta.";
  };
  EXPECT_EQ(message_of([&] { top_k_attention(x, far, x, 1); }), expected("key"));
  EXPECT_EQ(message_of([&] { top_k_attention(x, x, far, 1); }), expected("value"));
  EXPECT_EQ(message_of([&] {
              top_k_attention(x, x, x, 1, {.key_mask = on_meta({1, 3})});
            }),
            expected("key_mask"));
  EXPECT_EQ(message_of([&] {
              top_k_attention(x, x, x, 1, {.mask = on_meta({3, 3})});
            }),
            expected("mask"));
}

}  // namespace
}  // namespace weir::tests
