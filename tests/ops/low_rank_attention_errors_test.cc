// SPDX-License-Identifier: Apache-2.0
// Every message of low_rank_attention, on CPU and on Meta: the checks stand behind the dispatcher.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "support/attention_operand_errors.h"
#include "support/low_rank_attention_cases.h"
#include "support/message_of.h"
#include "weir/ops/low_rank_attention.h"

namespace weir::tests {
namespace {

using ops::low_rank_attention;
using ops::LowRankAttentionOptions;
using torch::Tensor;
using Shape = std::vector<std::int64_t>;

struct Bad {
  std::string words;
  Shape route_query = {2, 2, 40, 3}, route_key = {2, 1, 70, 3};
  torch::Dtype route_query_dtype = torch::kFloat, route_key_dtype = torch::kFloat;
  Shape key_mask = {2, 70}, mask = {40, 70};
  torch::Dtype key_mask_dtype = torch::kBool, mask_dtype = torch::kBool;
  std::int64_t k = 5;
  LowRankAttentionOptions options = {};
};

void PrintTo(const Bad& bad, std::ostream* out) { *out << bad.words; }

class LowRankAttentionErrors : public ::testing::TestWithParam<Bad> {};

TEST_P(LowRankAttentionErrors, SayWhatWasExpectedAndFound) {
  const Bad& bad = GetParam();
  for (const torch::Device device : {torch::Device(torch::kCPU), torch::Device(torch::kMeta)}) {
    const auto zeros = [&](const Shape& shape, torch::Dtype dtype) {
      return torch::zeros(shape, torch::dtype(dtype).device(device));
    };
    EXPECT_EQ(message_of([&] {
                low_rank_attention(
                    zeros(bad.route_query, bad.route_query_dtype),
                    zeros(bad.route_key, bad.route_key_dtype), zeros({2, 4, 40, 8}, torch::kFloat),
                    zeros({2, 2, 70, 8}, torch::kFloat), zeros({2, 2, 70, 6}, torch::kFloat), bad.k,
                    {.key_mask = zeros(bad.key_mask, bad.key_mask_dtype),
                     .mask = zeros(bad.mask, bad.mask_dtype)},
                    bad.options);
              }),
              bad.words.empty() ? "no error" : "weir::low_rank_attention: expected " + bad.words);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Options, LowRankAttentionErrors,
    ::testing::Values(
        Bad{.words = ""}, Bad{.words = "`k` to be at least 1, but got 0.", .k = 0},
        Bad{.words = "`k` to be at least 1, but got -3.", .k = -3},
        Bad{.words = "`scale` to be finite, but got nan.", .options = {.scale = NAN}},
        Bad{.words = "`route_scale` to be finite, but got inf.",
            .options = {.route_scale = INFINITY}},
        Bad{.words = "`score` to be softmax or coordinate_descent, but got hard.",
            .options = {.score = "hard"}},
        Bad{.words = "`eps` to be positive and finite, but got 0.", .options = {.eps = 0}},
        Bad{.words = "`eps` to be positive and finite, but got nan.", .options = {.eps = NAN}},
        Bad{.words = "`eps` to be positive and finite, but got inf.", .options = {.eps = INFINITY}},
        Bad{.words = "`k_ratio` to be finite and at least 1, but got 0.5.",
            .options = {.k_ratio = 0.5}},
        Bad{.words = "`k_ratio` to be finite and at least 1, but got nan.",
            .options = {.k_ratio = NAN}},
        Bad{.words = "`k_ratio` to be finite and at least 1, but got inf.",
            .options = {.k_ratio = INFINITY}}));

INSTANTIATE_TEST_SUITE_P(
    Routing, LowRankAttentionErrors,
    ::testing::Values(
        Bad{.words = "`route_query` to have shape (batch, route_heads, n, route_dim), but got "
                     "[2, 40, 3].",
            .route_query = {2, 40, 3}},
        Bad{.words = "`route_query` to have shape (batch, route_heads, n, route_dim), but got [].",
            .route_query = {}},
        Bad{.words = "`route_key` to have shape (batch, route_kv_heads, m, route_dim), but got "
                     "[3].",
            .route_key = {3}},
        Bad{.words = "`route_query` to have the dtype of `query`, Float, but got Double.",
            .route_query_dtype = torch::kDouble},
        Bad{.words = "`route_key` to have the dtype of `query`, Float, but got BFloat16.",
            .route_key_dtype = torch::kBFloat16},
        Bad{.words = "the last dimension of `route_query` to be at least 1, but got [2, 2, 40, 0].",
            .route_query = {2, 2, 40, 0}},
        Bad{.words = "`route_query` to have batch 2 and 40 positions like `query`, but got "
                     "[1, 2, 40, 3].",
            .route_query = {1, 2, 40, 3}},
        Bad{.words = "`route_query` to have batch 2 and 40 positions like `query`, but got "
                     "[2, 2, 41, 3].",
            .route_query = {2, 2, 41, 3}},
        Bad{.words = "`route_key` to have batch 2 and 70 positions like `key`, but got "
                     "[1, 1, 70, 3].",
            .route_key = {1, 1, 70, 3}},
        Bad{.words = "`route_key` to have batch 2 and 70 positions like `key`, but got "
                     "[2, 1, 40, 3].",
            .route_key = {2, 1, 40, 3}},
        Bad{.words = "`route_key` to have dim 3 like `route_query`, but got [2, 1, 70, 4].",
            .route_key = {2, 1, 70, 4}},
        Bad{.words = "the heads of `route_query` to divide those of `query`, 4, but got 3.",
            .route_query = {2, 3, 40, 3}},
        Bad{.words = "the heads of `route_query` to divide those of `query`, 4, but got 0.",
            .route_query = {2, 0, 40, 3}},
        Bad{.words = "the heads of `route_key` to divide those of `route_query`, 2, but got 4.",
            .route_key = {2, 4, 70, 3}},
        Bad{.words = "the heads of `route_key` to divide those of `route_query`, 2, but got 0.",
            .route_key = {2, 0, 70, 3}}));

INSTANTIATE_TEST_SUITE_P(
    Masks, LowRankAttentionErrors,
    ::testing::Values(
        Bad{.words = "`key_mask` to be bool (true = keep), but got Long.",
            .key_mask_dtype = torch::kLong},
        Bad{.words = "`key_mask` to have shape [2, 70], but got [70].", .key_mask = {70}},
        Bad{.words = "`mask` to be bool (true = keep), but got Float.",
            .mask_dtype = torch::kFloat},
        Bad{.words = "`mask` to broadcast to [2, 2, 40, 70], but got [2, 40, 1, 70].",
            .mask = {2, 40, 1, 70}},
        Bad{.words = "`mask` to broadcast to [2, 2, 40, 70], but got [4, 40, 70].",
            .mask = {4, 40, 70}},
        Bad{.words = "`mask` to broadcast to [2, 2, 40, 70], but got [1, 2, 2, 40, 70].",
            .mask = {1, 2, 2, 40, 70}}));

TEST(LowRankAttentionErrors, Operands) {
  expect_operand_errors("low_rank_attention",
                        [](const Tensor& query, const Tensor& key, const Tensor& value) {
                          low_rank_attention(query, key, query, key, value, 5);
                        });
}

TEST(LowRankAttentionErrors, IndicesAreInt32) {
  const Tensor few = torch::zeros({1, 1, 2, 1});
  const Tensor many = torch::zeros({1, 1, 1, 1}).expand({1, 1, std::int64_t{1} << 31, 1});
  EXPECT_EQ(message_of([&] { low_rank_attention(few, many, few, many, many, 1); }),
            "weir::low_rank_attention: expected `key` to have less than 2^31 positions, but got "
            "2147483648.");
}

TEST(LowRankAttentionErrors, DevicesMustAgree) {
  const Tensor x = torch::zeros({1, 1, 3, 2}), far = x.to(torch::kMeta);
  const auto on_meta = [](const Shape& shape) {
    return torch::ones(shape, torch::dtype(torch::kBool).device(torch::kMeta));
  };
  const auto expected = [](const std::string& name) {
    return "weir::low_rank_attention: expected `" + name +
           "` on the device of `query`, cpu, but got meta.";
  };
  EXPECT_EQ(message_of([&] { low_rank_attention(far, x, x, x, x, 1); }), expected("route_query"));
  EXPECT_EQ(message_of([&] { low_rank_attention(x, far, x, x, x, 1); }), expected("route_key"));
  EXPECT_EQ(message_of([&] { low_rank_attention(x, x, x, far, x, 1); }), expected("key"));
  EXPECT_EQ(message_of([&] { low_rank_attention(x, x, x, x, far, 1); }), expected("value"));
  EXPECT_EQ(message_of([&] {
              low_rank_attention(x, x, x, x, x, 1, {.key_mask = on_meta({1, 3})});
            }),
            expected("key_mask"));
  EXPECT_EQ(message_of([&] {
              low_rank_attention(x, x, x, x, x, 1, {.mask = on_meta({3, 3})});
            }),
            expected("mask"));
}

TEST(LowRankAttentionErrors, TheListsOfThePrivateOperatorHaveTheirLengths) {
  const Tensor x = torch::zeros({1, 1, 3, 2});
  const std::vector<std::int64_t> integers = {1};
  const std::vector<double> numbers = {1, 1};
  EXPECT_EQ(message_of([&] {
              low_rank_forward_operator().call(x, x, x, x, x, {}, {}, integers, numbers, "softmax");
            }),
            "weir::low_rank_attention: expected 2 integers and 4 numbers of a rule, but got 1 and "
            "2.");
}

}  // namespace
}  // namespace weir::tests
