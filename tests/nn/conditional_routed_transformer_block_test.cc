// SPDX-License-Identifier: Apache-2.0
// ConditionalRoutedTransformerBlock: attention and feed-forward around residuals, with every option
// and every argument handed on; dtypes, names, copies, messages.
#include "weir/nn/conditional_routed_transformer_block.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "nn/module_contract.h"
#include "support/tolerance.h"

namespace weir::nn {
namespace {

using Options = ConditionalRoutedTransformerBlockOptions;
using Inputs = ConditionalRoutedTransformerBlockInputs;

const Options kOptions = {.dim = 12,
                          .num_heavy_attn_tokens_q = 4,
                          .num_heavy_attn_tokens_kv = 3,
                          .num_routed_kv = 3,
                          .num_heavy_ff_tokens = 2,
                          .light_dim_head = 4,
                          .light_heads = 2,
                          .light_window_size = 4,
                          .heavy_dim_head = 6,
                          .heavy_heads = 3,
                          .light_ff_mult = 0.75,
                          .heavy_ff_mult = 2,
                          .router_straight_through = false,
                          .router_kwargs = {.eps = 1},
                          .multiply_keys_by_score = true,
                          .multiply_queries_by_score = true,
                          .use_null_q_tokens = false,
                          .rotary_emb = true,
                          .light_rotary = true};

ConditionalRoutedTransformerBlock doubles(const Options& options) {
  torch::manual_seed(0);
  ConditionalRoutedTransformerBlock block(options);
  randomise(*block);
  block->to(at::kDouble);
  return block;
}

template <class Module>
void copy_weights(Module& to, torch::nn::Module& from) {
  torch::NoGradGuard no_grad;
  auto weights = from.named_parameters();
  ASSERT_EQ(weights.size(), to->named_parameters().size());
  for (auto& item : to->named_parameters()) item.value().copy_(weights[item.key()]);
  to->to(at::kDouble);
  for (auto& item : to->named_parameters()) item.value().copy_(weights[item.key()]);
}

TEST(ConditionalRoutedTransformerBlock, HandsOnEveryOption) {
  auto block = doubles(kOptions);
  ConditionalRoutedAttention attention({.dim = 12,
                                        .num_heavy_tokens_q = 4,
                                        .num_heavy_tokens_kv = 3,
                                        .num_routed_kv = 3,
                                        .light_dim_head = 4,
                                        .light_heads = 2,
                                        .light_window_size = 4,
                                        .heavy_dim_head = 6,
                                        .heavy_heads = 3,
                                        .router_straight_through = false,
                                        .router_kwargs = {.eps = 1},
                                        .multiply_keys_by_score = true,
                                        .multiply_queries_by_score = true,
                                        .use_null_q_tokens = false,
                                        .rotary_emb = true,
                                        .light_rotary = true});
  ConditionalRoutedFeedForward feed_forward({.dim = 12,
                                             .num_heavy_tokens = 2,
                                             .light_ff_mult = 0.75,
                                             .heavy_ff_mult = 2,
                                             .router_straight_through = false,
                                             .router_kwargs = {.eps = 1}});
  copy_weights(attention, *block->conditional_attn);
  copy_weights(feed_forward, *block->conditional_ff);
  const at::Tensor x = 0.3 * at::randn({2, 11, 12}, at::kDouble);
  at::Tensor mask = at::ones({2, 11}, at::kBool);
  mask[1].narrow(0, 8, 3).fill_(false);
  for (const bool masked : {false, true}) {
    const auto given = masked ? std::optional(mask) : std::nullopt;
    const at::Tensor attended = x + attention->forward(x, {.mask = given});
    const at::Tensor expected = attended + feed_forward->forward(attended, {.mask = given});
    EXPECT_TRUE(block->forward(x, {.mask = given}).equal(expected));
  }
}

TEST(ConditionalRoutedTransformerBlock, HandsOnTheNumbersOfACall) {
  auto block = doubles(kOptions);
  const at::Tensor x = 0.3 * at::randn({2, 11, 12}, at::kDouble);
  Options other = kOptions;
  other.num_heavy_attn_tokens_q = 7, other.num_heavy_attn_tokens_kv = 5,
  other.num_heavy_ff_tokens = 6;
  auto same = doubles(other);
  copy_weights(same, *block);
  const at::Tensor out = block->forward(
      x, {.num_heavy_attn_tokens_q = 7, .num_heavy_attn_tokens_kv = 5, .num_heavy_ff_tokens = 6});
  EXPECT_TRUE(out.equal(same(x)));
  for (const Inputs& one :
       {Inputs{.num_heavy_attn_tokens_q = 7}, Inputs{.num_heavy_attn_tokens_kv = 5},
        Inputs{.num_heavy_ff_tokens = 6}}) {
    EXPECT_FALSE(block->forward(x, one).allclose(block(x)));
    EXPECT_FALSE(block->forward(x, one).allclose(out));
  }
}

TEST(ConditionalRoutedTransformerBlock, AnyLengthAndBatch) {
  auto block = doubles(kOptions);
  for (const std::int64_t n : {0, 1, 2, 3, 4, 5, 9}) {
    EXPECT_EQ(block(at::randn({2, n, 12}, at::kDouble)).sizes(), at::IntArrayRef({2, n, 12}));
  }
  EXPECT_EQ(block(at::randn({0, 9, 12}, at::kDouble)).sizes(), at::IntArrayRef({0, 9, 12}));
  const at::Tensor x = 0.3 * at::randn({3, 9, 12}, at::kDouble);
  EXPECT_LE(distance(block(x)[1], block(x.narrow(0, 1, 1))[0]), tests::kFloat64.weights);
}

TEST(ConditionalRoutedTransformerBlock, GradientsReachEveryParameter) {
  for (const bool through : {false, true}) {
    Options options = kOptions;
    options.router_straight_through = through, options.use_null_q_tokens = true;
    auto block = doubles(options);
    block(0.3 * at::randn({2, 16, 12}, at::kDouble)).square().sum().backward();
    expect_gradients_everywhere(*block);
  }
}

TEST(ConditionalRoutedTransformerBlock, RunsInSixteenBits) {
  ConditionalRoutedTransformerBlock block(kOptions);
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    block->to(dtype);
    const at::Tensor out = block(at::randn({2, 9, 12}).to(dtype));
    EXPECT_EQ(out.scalar_type(), dtype);
    EXPECT_TRUE(out.isfinite().all().item<bool>());
  }
}

TEST(ConditionalRoutedTransformerBlock, HasThePublishedNames) {
  const auto names = parameter_names(*doubles(kOptions));
  EXPECT_THAT(names, ::testing::IsSupersetOf(
                         {"conditional_ff.router.routing_token", "conditional_ff.light_ff.1.weight",
                          "conditional_ff.heavy_ff.3.bias", "conditional_attn.heavy_attn.null_kv",
                          "conditional_attn.light_attn.to_qkv.weight"}));
  EXPECT_THAT(names, ::testing::Each(::testing::AnyOf(::testing::StartsWith("conditional_ff."),
                                                      ::testing::StartsWith("conditional_attn."))));
  expect_copies_agree(doubles(kOptions), doubles(kOptions), at::randn({2, 9, 12}, at::kDouble));
}

TEST(ConditionalRoutedTransformerBlock, RefusesWhatDoesNotFit) {
  const std::string name = "weir::ConditionalRoutedTransformerBlock: expected ";
  const auto refuses = [&](void (*change)(Options&), const std::string& words) {
    Options options = kOptions;
    change(options);
    expect_refusal([&] { ConditionalRoutedTransformerBlock block(options); }, words);
  };
  refuses([](Options& o) { o.num_heavy_attn_tokens_q = 0; },
          name + "`num_heavy_attn_tokens_q` to be at least 1, but got 0.");
  refuses([](Options& o) { o.num_heavy_attn_tokens_kv = 0; },
          name + "`num_heavy_attn_tokens_kv` to be at least 1, but got 0.");
  refuses([](Options& o) { o.num_heavy_ff_tokens = 0; },
          name + "`num_heavy_ff_tokens` to be at least 1, but got 0.");
  refuses([](Options& o) { o.heavy_heads = 4; },
          "weir::ConditionalRoutedAttention: expected `num_routed_kv` to divide `heavy_heads`, 4, "
          "but got 3.");
  auto block = doubles(kOptions);
  expect_refusal(
      [&] {
        block(at::randn({2, 9, 11}));
      },
      name + "`x` to have shape [batch, n, 12], but got [2, 9, 11].");
  expect_refusal(
      [&] {
        block->forward(at::randn({2, 9, 12}), {.mask = at::ones({2, 8}, at::kBool)});
      },
      name + "`mask` to have shape [2, 9] like the tokens of `x`, but got [2, 8].");
}

}  // namespace
}  // namespace weir::nn
