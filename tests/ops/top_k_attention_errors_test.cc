// SPDX-License-Identifier: Apache-2.0
// Every message of top_k_attention, on CPU and on Meta: the checks stand behind the dispatcher.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

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
  Shape query = {2, 4, 40, 8}, key = {2, 2, 70, 8}, value = {2, 2, 70, 6};
  torch::Dtype dtype = torch::kFloat, key_dtype = torch::kFloat, value_dtype = torch::kFloat;
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
                top_k_attention(zeros(bad.query, bad.dtype), zeros(bad.key, bad.key_dtype),
                                zeros(bad.value, bad.value_dtype), bad.k,
                                {.key_mask = zeros(bad.key_mask, bad.key_mask_dtype),
                                 .mask = zeros(bad.mask, bad.mask_dtype)},
                                bad.options);
              }),
              bad.words.empty() ? "no error" : "weir::top_k_attention: expected " + bad.words);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Operands, TopKAttentionErrors,
    ::testing::Values(
        Bad{.words = ""}, Bad{.words = "`k` to be at least 1, but got 0.", .k = 0},
        Bad{.words = "`k` to be at least 1, but got -3.", .k = -3},
        Bad{.words = "`scale` to be finite, but got nan.", .options = {.scale = NAN}},
        Bad{.words = "`scale` to be finite, but got inf.", .options = {.scale = INFINITY}},
        Bad{.words = "`query` to have shape (batch, heads, n, dim), but got [4, 40, 8].",
            .query = {4, 40, 8}},
        Bad{.words = "`query` to have shape (batch, heads, n, dim), but got [].", .query = {}},
        Bad{.words = "`key` to have shape (batch, kv_heads, m, dim), but got [8].", .key = {8}},
        Bad{.words = "`value` to have shape (batch, kv_heads, m, value_dim), but got [2, 70, 6].",
            .value = {2, 70, 6}},
        Bad{.words = "`query` to be floating point, but got Long.", .dtype = torch::kLong},
        Bad{.words = "`key` to have the dtype of `query`, Float, but got Double.",
            .key_dtype = torch::kDouble},
        Bad{.words = "`value` to have the dtype of `query`, Float, but got BFloat16.",
            .value_dtype = torch::kBFloat16},
        Bad{.words = "the last dimension of `query` to be at least 1, but got [2, 4, 40, 0].",
            .query = {2, 4, 40, 0}},
        Bad{.words = "`key` to have batch 2 and dim 8 like `query`, but got [2, 2, 70, 9].",
            .key = {2, 2, 70, 9}},
        Bad{.words = "the heads of `key` to divide those of `query`, 4, but got 3.",
            .key = {2, 3, 70, 8}},
        Bad{.words = "`value` to have shape [2, 2, 70] like `key` in its first 3 dimensions, but "
                     "got [2, 2, 71, 6].",
            .value = {2, 2, 71, 6}}));

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
