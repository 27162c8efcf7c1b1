// SPDX-License-Identifier: Apache-2.0
// Every message of local_attention, on CPU and on Meta.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <functional>

#include "support/attention_operand_errors.h"
#include "support/message_of.h"
#include "weir/ops/local_attention.h"

namespace weir::tests {
namespace {

using ops::local_attention;
using ops::LocalAttentionInputs;
using ops::LocalAttentionOptions;
using torch::Tensor;
using Shape = std::vector<std::int64_t>;

struct Bad {
  std::string words;
  Shape query = {2, 4, 40, 8}, key = {2, 2, 70, 8};
  Shape key_mask = {2, 70}, bias = {4, 8, 24}, inv_freq = {4};
  torch::Dtype key_mask_dtype = torch::kBool, bias_dtype = torch::kFloat;
  LocalAttentionOptions options = {.window_size = 8};
};

void PrintTo(const Bad& bad, std::ostream* out) { *out << bad.words; }

class LocalAttentionErrors : public ::testing::TestWithParam<Bad> {};

TEST_P(LocalAttentionErrors, SayWhatWasExpectedAndFound) {
  const Bad& bad = GetParam();
  for (const torch::Device device : {torch::Device(torch::kCPU), torch::Device(torch::kMeta)}) {
    const auto zeros = [&](const Shape& shape, torch::Dtype dtype) {
      return torch::zeros(shape, torch::dtype(dtype).device(device));
    };
    EXPECT_EQ(message_of([&] {
                local_attention(zeros(bad.query, torch::kFloat), zeros(bad.key, torch::kFloat),
                                zeros({2, 2, 70, 6}, torch::kFloat),
                                {.key_mask = zeros(bad.key_mask, bad.key_mask_dtype),
                                 .attn_bias = zeros(bad.bias, bad.bias_dtype),
                                 .inv_freq = zeros(bad.inv_freq, torch::kFloat)},
                                bad.options);
              }),
              bad.words.empty() ? "no error" : "weir::local_attention: expected " + bad.words);
  }
}

LocalAttentionOptions with(const std::function<void(LocalAttentionOptions&)>& change) {
  LocalAttentionOptions options = {.window_size = 8};
  change(options);
  return options;
}

constexpr std::int64_t kTooFar = (std::int64_t{1} << 30) + 1;

INSTANTIATE_TEST_SUITE_P(
    Options, LocalAttentionErrors,
    ::testing::Values(
        Bad{.words = ""},
        Bad{.words = "`window_size` to lie in [1, 1073741824], but got 0.",
            .options = with([](auto& o) { o.window_size = 0; })},
        Bad{.words = "`window_size` to lie in [1, 1073741824], but got 1073741825.",
            .options = with([](auto& o) { o.window_size = kTooFar; })},
        Bad{.words = "`look_backward` to lie in [0, 1073741824], but got -1.",
            .options = with([](auto& o) { o.look_backward = -1; })},
        Bad{.words = "`look_backward` to lie in [0, 1073741824], but got 1073741825.",
            .options = with([](auto& o) { o.look_backward = kTooFar; })},
        Bad{.words = "`look_forward` to lie in [0, 1073741824], but got -2.",
            .options = with([](auto& o) { o.look_forward = -2; })},
        Bad{.words = "`look_forward` 0 with `causal`, but got 1.",
            .options = with([](auto& o) { o.causal = true, o.look_forward = 1; })},
        Bad{.words = "`scale` to be finite, but got nan.",
            .options = with([](auto& o) { o.scale = NAN; })},
        Bad{.words = "`scale` to be finite, but got -inf.",
            .options = with([](auto& o) { o.scale = -INFINITY; })},
        Bad{.words = "`dropout` to lie in [0, 1), but got 1.",
            .options = with([](auto& o) { o.dropout = 1; })},
        Bad{.words = "`dropout` to lie in [0, 1), but got -0.1.",
            .options = with([](auto& o) { o.dropout = -0.1; })},
        Bad{.words = "`dropout` to lie in [0, 1), but got nan.",
            .options = with([](auto& o) { o.dropout = NAN; })},
        Bad{.words = "`xpos_scale_base` to be positive, but got -1.",
            .options = with([](auto& o) { o.use_xpos = true, o.xpos_scale_base = -1; })},
        Bad{.words = "`xpos_scale_base` to be positive, but got inf.",
            .options = with([](auto& o) { o.use_xpos = true, o.xpos_scale_base = INFINITY; })},
        Bad{.words = "`xpos_scale_base` to be positive, but got 0.",  // window_size / 2
            .bias = {4, 1, 3},
            .options = {.window_size = 1, .use_xpos = true}}));

TEST(LocalAttentionErrors, Operands) {
  expect_operand_errors("local_attention",
                        [](const Tensor& query, const Tensor& key, const Tensor& value) {
                          local_attention(query, key, value, {}, {.window_size = 5});
                        });
}

INSTANTIATE_TEST_SUITE_P(
    Inputs, LocalAttentionErrors,
    ::testing::Values(
        Bad{.words = "`key_mask` to be bool (true = keep), but got Long.",
            .key_mask_dtype = torch::kLong},
        Bad{.words = "`key_mask` to have shape [2, 70], but got [70].", .key_mask = {70}},
        Bad{.words = "`attn_bias` to be floating point, but got Int.", .bias_dtype = torch::kInt},
        Bad{.words = "`attn_bias` to have shape [4, 8, 24], but got [8, 24].", .bias = {8, 24}},
        Bad{.words = "`attn_bias` to have shape [4, 8, 32], but got [4, 8, 24].",
            .options = with([](auto& o) { o.look_backward = 2; })},
        Bad{.words = "`attn_bias` to have shape [4, 8, 16], but got [4, 8, 24].",
            .options = with([](auto& o) { o.causal = true; })},
        Bad{.words = "an even dim with `inv_freq`, but got 7.",
            .query = {2, 4, 40, 7},
            .key = {2, 2, 70, 7}},
        Bad{.words = "`inv_freq` to have shape [4], but got [3].", .inv_freq = {3}},
        Bad{.words = "`inv_freq` to have shape [4], but got [1, 4].", .inv_freq = {1, 4}}));

TEST(LocalAttentionErrors, XposNeedsAngles) {
  for (const torch::Device device : {torch::Device(torch::kCPU), torch::Device(torch::kMeta)}) {
    const Tensor x = torch::zeros({1, 1, 9, 4}, device);
    EXPECT_EQ(
        message_of([&] { local_attention(x, x, x, {}, {.window_size = 4, .use_xpos = true}); }),
        "weir::local_attention: expected `inv_freq` with `use_xpos`, but got none.");
  }
}

TEST(LocalAttentionErrors, LongXposHasNoMoreQueriesThanKeys) {
  for (const torch::Device device : {torch::Device(torch::kCPU), torch::Device(torch::kMeta)}) {
    const Tensor x = torch::zeros({1, 1, 90, 4}, device), inv_freq = torch::zeros({2}, device);
    EXPECT_EQ(message_of([&] {
                local_attention(x, x.narrow(2, 0, 80), x.narrow(2, 0, 80), {.inv_freq = inv_freq},
                                {.window_size = 2, .causal = true, .use_xpos = true});
              }),
              "weir::local_attention: expected at most as many queries as keys, 80, with "
              "`use_xpos`, but got 90.");
  }
}

TEST(LocalAttentionErrors, XposWindowsHaveFactorsThatFloatsCanHold) {
  for (const torch::Device device : {torch::Device(torch::kCPU), torch::Device(torch::kMeta)}) {
    const auto message = [&](std::int64_t length, std::int64_t look_backward) {
      const Tensor x = torch::zeros({1, 1, length, 4}, device), angles = torch::zeros({2}, device);
      return message_of([&] {
        local_attention(x, x, x, {.inv_freq = angles},
                        {.window_size = 10,
                         .causal = true,
                         .look_backward = look_backward,
                         .use_xpos = true,
                         .xpos_scale_base = 1});
      });
    };
    const std::string words =
        "weir::local_attention: expected windows of at most 96 times `xpos_scale_base`, 96 "
        "positions, but got ";
    EXPECT_EQ(message(200, 8), "no error");  // 90 positions
    EXPECT_EQ(message(96, 1 << 30), "no error");
    EXPECT_EQ(message(200, 9), words + "100.");
    EXPECT_EQ(message(97, 1 << 30), words + "97.");
  }
}

TEST(LocalAttentionErrors, DevicesMustAgree) {
  const Tensor x = torch::zeros({1, 1, 3, 2}), far = x.to(torch::kMeta);
  const LocalAttentionOptions options = {.window_size = 2, .causal = true};
  const auto message = [&](const Tensor& key, const Tensor& value,
                           const LocalAttentionInputs& inputs) {
    return message_of([&] { local_attention(x, key, value, inputs, options); });
  };
  const auto on_meta = [](const Shape& shape, torch::Dtype dtype) {
    return torch::ones(shape, torch::dtype(dtype).device(torch::kMeta));
  };
  const auto expected = [](const std::string& name) {
    return "weir::local_attention: expected `" + name +
           "` on the device of `query`, cpu, but got meta.";
  };
  EXPECT_EQ(message(far, x, {}), expected("key"));
  EXPECT_EQ(message(x, far, {}), expected("value"));
  EXPECT_EQ(message(x, x, {.key_mask = on_meta({1, 3}, torch::kBool)}), expected("key_mask"));
  EXPECT_EQ(message(x, x, {.attn_bias = on_meta({1, 2, 4}, torch::kFloat)}), expected("attn_bias"));
  EXPECT_EQ(message(x, x, {.inv_freq = on_meta({1}, torch::kFloat)}), expected("inv_freq"));
}

}  // namespace
}  // namespace weir::tests
