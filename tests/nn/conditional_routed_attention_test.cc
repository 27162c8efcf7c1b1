// SPDX-License-Identifier: Apache-2.0
// ConditionalRoutedAttention: equal to its parts put together by hand, few tokens, padding, rows of
// a batch independent, gradients to routers, names, copies, messages.
#include "weir/nn/conditional_routed_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>

#include "nn/module_contract.h"
#include "support/tolerance.h"

namespace weir::nn {
namespace {

using Options = ConditionalRoutedAttentionOptions;
using Case = Named<Options>;

const Options kPlain = {.dim = 12,
                        .num_heavy_tokens_q = 4,
                        .num_heavy_tokens_kv = 3,
                        .light_dim_head = 4,
                        .light_heads = 2,
                        .light_window_size = 4,
                        .heavy_dim_head = 4,
                        .heavy_heads = 6,
                        .router_kwargs = {.eps = 1}};

Options with(void (*change)(Options&)) {
  Options options = kPlain;
  change(options);
  return options;
}

const Case kCases[] = {
    {"plain", kPlain},
    {"routes", with([](Options& o) { o.num_routed_kv = 3, o.rotary_emb = true; })},
    {"soft", with([](Options& o) {
       o.router_straight_through = false, o.num_routed_kv = 2;
       o.multiply_keys_by_score = o.multiply_queries_by_score = true;
     })},
    {"heavy_only", with([](Options& o) { o.has_light_attn = o.use_null_q_tokens = false; })},
    {"exact_cosine", with([](Options& o) {
       o.light_rotary = o.rotary_emb = true;
       o.router_kwargs = {.eps = 1, .cosine_sim_routing = true, .solver = "exact"};
     })},
};

class RoutedMode : public ::testing::TestWithParam<Case> {
 protected:
  RoutedMode() {
    torch::manual_seed(3);
    module_ = ConditionalRoutedAttention(GetParam().options);
    randomise(*module_);
    module_->to(at::kDouble);
  }
  ConditionalRoutedAttention module_{nullptr};
};

TEST_P(RoutedMode, IsTheSumOfItsParts) {
  const Options& o = GetParam().options;
  const at::Tensor x = 0.3 * at::randn({2, 11, 12}, at::kDouble);
  at::Tensor mask = at::ones({2, 11}, at::kBool);
  mask[1].narrow(0, 8, 3).fill_(false);
  for (const bool masked : {false, true}) {
    const auto given = masked ? std::optional(mask) : std::nullopt;
    const auto q = module_->q_router->forward(x, 4, {.mask = given}),
               kv = module_->kv_router->forward(x, 3, {.mask = given});
    HeavyAttentionInputs inputs = {
        .context = kv.routed_tokens, .mask = kv.routed_mask, .normalized_scores_kv = kv.scores};
    if (o.multiply_queries_by_score) inputs.normalized_scores_q = q.scores;
    if (o.rotary_emb) {
      inputs.inv_freq = module_->rotary_emb->inv_freq;
      inputs.positions_q = q.indices, inputs.positions_kv = kv.indices;
    }
    const at::Tensor rows =
        module_->heavy_attn->forward(q.routed_tokens, inputs) * q.scores.unsqueeze(-1);
    at::Tensor expected = at::zeros_like(x);
    if (o.use_null_q_tokens) expected = expected + module_->null_q_token;
    for (std::int64_t b = 0; b < 2; ++b) {
      for (std::int64_t i = 0; i < 4; ++i) {
        expected[b][(*q.indices)[b][i].item<std::int64_t>()] = rows[b][i];
      }
    }
    if (o.has_light_attn) expected = expected + module_->light_attn->forward(x, {.mask = given});
    EXPECT_LE(distance(module_->forward(x, {.mask = given}), expected), tests::kFloat64.weights);
  }
}

TEST_P(RoutedMode, ShortSequencesAreHeavyThroughout) {
  for (const std::int64_t n : {0, 1, 3, 4}) {
    const at::Tensor x = at::randn({2, n, 12}, at::kDouble);
    const at::Tensor out = module_(x);
    ASSERT_EQ(out.sizes(), x.sizes());
    if (n == 0 || n > 3) continue;
    HeavyAttentionInputs inputs;
    if (GetParam().options.rotary_emb) inputs.inv_freq = module_->rotary_emb->inv_freq;
    at::Tensor expected = module_->heavy_attn->forward(x, inputs);
    if (module_->light_attn) expected = expected + module_->light_attn->forward(x);
    EXPECT_LE(distance(out, expected), tests::kFloat64.weights);
  }
  EXPECT_EQ(module_(at::randn({0, 9, 12}, at::kDouble)).sizes(), at::IntArrayRef({0, 9, 12}));
}

TEST_P(RoutedMode, RowsOfABatchAreIndependent) {
  at::Tensor x = at::randn({3, 10, 12}, at::kDouble).requires_grad_();
  const at::Tensor out = module_(x);
  EXPECT_LE(distance(out[1], module_(x.narrow(0, 1, 1))[0]), tests::kFloat64.weights);
  const auto grad = torch::autograd::grad({out[1].square().sum()}, {x})[0];
  EXPECT_EQ(grad[0].abs().max().item<double>(), 0);
  EXPECT_EQ(grad[2].abs().max().item<double>(), 0);
}

TEST_P(RoutedMode, PaddingIsNeverRead) {
  at::Tensor x = 0.3 * at::randn({2, 10, 12}, at::kDouble);
  at::Tensor mask = at::ones({2, 10}, at::kBool);
  mask[0].narrow(0, 7, 3).fill_(false);
  mask[1].fill_(false);
  const at::Tensor expected = module_->forward(x, {.mask = mask});
  at::Tensor other = at::where(mask.unsqueeze(-1), x, at::randn_like(x));
  EXPECT_TRUE(module_->forward(other, {.mask = mask}).index({mask}).equal(expected.index({mask})));
}

TEST_P(RoutedMode, GradientsReachEveryParameter) {
  const at::Tensor x = 0.3 * at::randn({2, 16, 12}, at::kDouble);
  module_(x).square().sum().backward();
  expect_gradients_everywhere(*module_);
}

TEST_P(RoutedMode, NumbersOfACallReplaceTheOptions) {
  const at::Tensor x = at::randn({2, 10, 12}, at::kDouble);
  Options other = GetParam().options;
  other.num_heavy_tokens_q = 7, other.num_heavy_tokens_kv = 5;
  ConditionalRoutedAttention same(other);
  same->to(at::kDouble);
  torch::NoGradGuard no_grad;
  auto from = module_->named_parameters();
  for (auto& item : same->named_parameters()) item.value().copy_(from[item.key()]);
  EXPECT_TRUE(module_->forward(x, {.num_heavy_tokens_q = 7, .num_heavy_tokens_kv = 5})
                  .equal(same->forward(x)));
}

TEST_P(RoutedMode, CopiesAgree) {
  expect_copies_agree(ConditionalRoutedAttention(GetParam().options),
                      ConditionalRoutedAttention(GetParam().options), at::randn({2, 9, 12}));
}

INSTANTIATE_TEST_SUITE_P(Modes, RoutedMode, ::testing::ValuesIn(kCases));

TEST(ConditionalRoutedAttention, HasThePublishedNames) {
  EXPECT_THAT(parameter_names(*ConditionalRoutedAttention(kPlain)),
              ::testing::UnorderedElementsAre(
                  "null_q_token", "light_attn.norm.weight", "light_attn.norm.bias",
                  "light_attn.to_qkv.weight", "light_attn.to_out.weight", "q_router.routing_token",
                  "kv_router.routing_token", "heavy_attn.null_kv", "heavy_attn.norm.gamma",
                  "heavy_attn.to_q.weight", "heavy_attn.to_kv.weight", "heavy_attn.to_out.weight"));
}

TEST(ConditionalRoutedAttention, RunsInSixteenBits) {
  torch::manual_seed(4);
  ConditionalRoutedAttention module(kPlain);
  const at::Tensor x = 0.3 * at::randn({2, 9, 12});
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    module->to(dtype);
    const at::Tensor out = module(x.to(dtype));
    EXPECT_EQ(out.scalar_type(), dtype);
    EXPECT_TRUE(out.isfinite().all().item<bool>());
  }
}

TEST(ConditionalRoutedAttention, RefusesWhatDoesNotFit) {
  const std::string name = "weir::ConditionalRoutedAttention: expected ";
  const auto refuses = [&](void (*change)(Options&), const std::string& words) {
    const Options options = with(change);
    expect_refusal([&] { ConditionalRoutedAttention module(options); }, name + words);
  };
  refuses([](Options& o) { o.num_heavy_tokens_q = 0; },
          "`num_heavy_tokens_q` to be at least 1, but got 0.");
  refuses([](Options& o) { o.num_heavy_tokens_kv = 0; },
          "`num_heavy_tokens_kv` to be at least 1, but got 0.");
  refuses([](Options& o) { o.num_routed_kv = 4; },
          "`num_routed_kv` to divide `heavy_heads`, 6, but got 4.");
  refuses([](Options& o) { o.light_window_size = 5; },
          "`light_window_size` to be even and at least 2, but got 5.");
  refuses([](Options& o) { o.rotary_emb = true, o.heavy_dim_head = 3; },
          "`heavy_dim_head` to be even with `rotary_emb`, but got 3.");
  ConditionalRoutedAttention module(kPlain);
  expect_refusal(
      [&] {
        module(at::randn({2, 9, 11}));
      },
      name + "`x` to have shape [batch, n, 12], but got [2, 9, 11].");
}

}  // namespace
}  // namespace weir::nn
