// SPDX-License-Identifier: Apache-2.0
// ConditionalRoutedCrossAttention: equal to its parts put together by hand; blocks, budgets per
// entry, padding, routing tokens that come from x, gradients, names, copies, messages.
#include "weir/nn/conditional_routed_cross_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "nn/module_contract.h"
#include "support/tolerance.h"

namespace weir::nn {
namespace {

using Options = ConditionalRoutedCrossAttentionOptions;
using Inputs = ConditionalRoutedCrossAttentionInputs;
using Case = Named<Options>;

constexpr std::int64_t kDim = 8;

const Options kPlain = {.dim = kDim,
                        .num_tokens_q = 4,
                        .num_tokens_kv = 3,
                        .dim_head = 4,
                        .heads = 6,
                        .router_kwargs = {.eps = 1}};

Options with(void (*change)(Options&)) {
  Options options = kPlain;
  change(options);
  return options;
}

const Case kCases[] = {
    {"plain", kPlain},
    {"routes_in_blocks", with([](Options& o) { o.kv_routing_tokens = 3, o.route_block_size = 5; })},
    {"soft", with([](Options& o) {
       o.router_straight_through = false, o.kv_routing_tokens = 2;
       o.multiply_keys_by_score = true, o.use_null_q_tokens = false;
     })},
    {"from_x", with([](Options& o) { o.kv_routing_from_x = true; })},
    {"from_x_routes_in_blocks", with([](Options& o) {
       o.kv_routing_from_x = true, o.kv_routing_tokens = 3, o.route_block_size = 4;
     })},
};

at::Tensor tokens(std::int64_t n, std::int64_t batch = 2) {
  return 0.3 * at::randn({batch, n, kDim}, at::kDouble);
}

/// All of the first entry, `kept` tokens of the second.
at::Tensor first_tokens(std::int64_t n, std::int64_t kept) {
  at::Tensor mask = at::ones({2, n}, at::kBool);
  mask[1].slice(0, kept).fill_(false);
  return mask;
}

class CrossMode : public ::testing::TestWithParam<Case> {
 protected:
  CrossMode() {
    torch::manual_seed(3);
    module_ = made();
  }
  static ConditionalRoutedCrossAttention made() {
    ConditionalRoutedCrossAttention module(GetParam().options);
    randomise(*module);
    module->to(at::kDouble);
    return module;
  }
  ConditionalRoutedCrossAttention module_{nullptr};
};

TEST_P(CrossMode, IsTheSumOfItsParts) {
  const Options& o = GetParam().options;
  const at::Tensor x = tokens(9), context = tokens(13);
  for (const bool masked : {false, true}) {
    Inputs given;
    if (masked) given.mask = first_tokens(9, 6), given.context_mask = first_tokens(13, 8);
    CoordinateDescentRouterInputs of_context = {.mask = given.context_mask};
    if (o.kv_routing_from_x) {
      const at::Tensor ask = module_->kv_routing_queries.expand({2, -1, -1});
      of_context.routing_tokens =
          ask + module_->kv_routing_attn->forward(ask, {.context = x, .mask = given.mask});
    }
    const auto q = module_->q_router->forward(x, o.num_tokens_q, {.mask = given.mask}),
               kv = module_->kv_router->forward(context, o.num_tokens_kv, of_context);
    const HeavyAttentionInputs inputs = {
        .context = kv.routed_tokens, .mask = kv.routed_mask, .normalized_scores_kv = kv.scores};
    const at::Tensor rows =
        module_->heavy_attn->forward(q.routed_tokens, inputs) * q.scores.unsqueeze(-1);
    at::Tensor expected = at::zeros_like(x);
    if (o.use_null_q_tokens) expected = expected + module_->null_q_token;
    for (std::int64_t b = 0; b < 2; ++b) {
      for (std::int64_t i = 0; i < o.num_tokens_q; ++i) {
        expected[b][(*q.indices)[b][i].item<std::int64_t>()] = rows[b][i];
      }
    }
    EXPECT_LE(distance(module_->forward(x, context, given), expected), tests::kFloat64.weights);
  }
}

TEST_P(CrossMode, ShortSidesAreTakenWhole) {
  const at::Tensor x = tokens(4);
  for (const std::int64_t m : {0, 1, 3}) {
    const at::Tensor context = tokens(m);
    EXPECT_LE(distance(module_(x, context), module_->heavy_attn->forward(x, {.context = context})),
              tests::kFloat64.weights);
    const at::Tensor mask = first_tokens(m, 0);
    EXPECT_LE(distance(module_->forward(x, context, {.context_mask = mask}),
                       module_->heavy_attn->forward(x, {.context = context, .mask = mask})),
              tests::kFloat64.weights);
  }
  EXPECT_EQ(module_(tokens(0), tokens(13)).sizes(), at::IntArrayRef({2, 0, kDim}));
  EXPECT_EQ(module_(tokens(9, 0), tokens(13, 0)).sizes(), at::IntArrayRef({0, 9, kDim}));
}

TEST_P(CrossMode, EntriesOfABatchAreIndependent) {
  const at::Tensor x = tokens(9).requires_grad_(), context = tokens(13).requires_grad_();
  const at::Tensor out = module_(x, context);
  EXPECT_LE(distance(out[1], module_(x.narrow(0, 1, 1), context.narrow(0, 1, 1))[0]),
            tests::kFloat64.weights);
  for (const auto& grad : torch::autograd::grad({out[1].square().sum()}, {x, context})) {
    EXPECT_EQ(grad[0].abs().max().item<double>(), 0);
    EXPECT_GT(grad[1].abs().max().item<double>(), 0);
  }
}

TEST_P(CrossMode, PaddingIsNeverRead) {
  const at::Tensor x = tokens(9), context = tokens(13);
  const Inputs given = {.mask = first_tokens(9, 6), .context_mask = first_tokens(13, 2)};
  const at::Tensor expected = module_->forward(x, context, given);
  const auto with_other_padding = [](const at::Tensor& y, const at::Tensor& mask) {
    return at::where(mask.unsqueeze(-1), y, at::randn_like(y));
  };
  const at::Tensor out = module_->forward(with_other_padding(x, *given.mask),
                                          with_other_padding(context, *given.context_mask), given);
  EXPECT_TRUE(out.index({*given.mask}).equal(expected.index({*given.mask})));
}

TEST_P(CrossMode, NumbersOfACallReplaceTheOptions) {
  const at::Tensor x = tokens(9), context = tokens(13);
  const auto separately = [&](std::int64_t b, std::int64_t q, std::int64_t kv) {
    return module_->forward(x.narrow(0, b, 1), context.narrow(0, b, 1),
                            {.num_tokens_q = q, .num_tokens_kv = kv});
  };
  const at::Tensor expected = at::cat({separately(0, 2, 9), separately(1, 6, 4)});
  EXPECT_FALSE(expected.allclose(module_(x, context)));
  const at::Tensor q = torch::tensor({2, 6}, at::kLong), kv = torch::tensor({9, 4}, at::kLong);
  EXPECT_LE(
      distance(module_->forward(x, context, {.num_tokens_q = q, .num_tokens_kv = kv}), expected),
      tests::kFloat64.weights);
}

TEST_P(CrossMode, GradientsReachEveryParameter) {
  module_(tokens(16), tokens(21)).square().sum().backward();
  expect_gradients_everywhere(*module_);
}

TEST_P(CrossMode, CopiesAgree) {
  const at::Tensor x = tokens(9), context = tokens(13), expected = module_(x, context);
  const auto clone =
      std::dynamic_pointer_cast<ConditionalRoutedCrossAttentionImpl>(module_->clone());
  EXPECT_TRUE(clone->forward(x, context).equal(expected));
  std::stringstream archive;
  torch::save(module_, archive);
  auto other = made();
  torch::load(other, archive);
  EXPECT_TRUE(other(x, context).equal(expected));
  torch::NoGradGuard no_grad;
  for (auto& parameter : clone->parameters()) parameter.zero_();
  EXPECT_TRUE(module_(x, context).equal(expected)) << "the clone shares memory";
}

INSTANTIATE_TEST_SUITE_P(Modes, CrossMode, ::testing::ValuesIn(kCases));

/// Which tokens of `context` (1, m, dim) are chosen: without one of them the answer is another.
std::set<std::int64_t> chosen(ConditionalRoutedCrossAttention& module, const at::Tensor& x,
                              const at::Tensor& context) {
  at::Tensor mask = at::ones({1, context.size(1)}, at::kBool);
  const at::Tensor whole = module->forward(x, context, {.context_mask = mask});
  std::set<std::int64_t> found;
  for (std::int64_t i = 0; i < context.size(1); ++i) {
    mask.fill_(true)[0][i] = false;
    if (!module->forward(x, context, {.context_mask = mask}).equal(whole)) found.insert(i);
  }
  return found;
}

TEST(ConditionalRoutedCrossAttention, WhatIsChosenMayDependOnX) {
  torch::manual_seed(5);
  const at::Tensor context = tokens(40, 1);
  for (const bool from_x : {false, true}) {
    Options options = kPlain;
    options.kv_routing_from_x = from_x;
    ConditionalRoutedCrossAttention module(options);
    module->to(at::kDouble);
    std::set<std::int64_t> of_all;
    for (int trial = 0; trial < 8; ++trial) {
      const auto found = chosen(module, 3 * tokens(6, 1), context);
      EXPECT_EQ(found.size(), 3);
      of_all.insert(found.begin(), found.end());
    }
    EXPECT_EQ(of_all.size() > 3, from_x);
  }
}

TEST(ConditionalRoutedCrossAttention, HasThePublishedNames) {
  const std::vector<std::string> published = {"null_q_token",
                                              "q_router.routing_token",
                                              "kv_router.routing_token",
                                              "heavy_attn.null_kv",
                                              "heavy_attn.norm.gamma",
                                              "heavy_attn.to_q.weight",
                                              "heavy_attn.to_kv.weight",
                                              "heavy_attn.to_out.weight"};
  EXPECT_THAT(parameter_names(*ConditionalRoutedCrossAttention(kPlain)),
              ::testing::UnorderedElementsAreArray(published));
  const auto names = parameter_names(
      *ConditionalRoutedCrossAttention(with([](Options& o) { o.kv_routing_from_x = true; })));
  EXPECT_THAT(names,
              ::testing::IsSupersetOf({"kv_routing_queries", "kv_routing_attn.to_q.weight"}));
  EXPECT_THAT(names, ::testing::Not(::testing::Contains("kv_router.routing_token")));
}

TEST(ConditionalRoutedCrossAttention, RunsInSixteenBits) {
  torch::manual_seed(4);
  for (const Case& each : kCases) {
    ConditionalRoutedCrossAttention module(each.options);
    for (const auto dtype : {at::kBFloat16, at::kHalf}) {
      module->to(dtype);
      const at::Tensor out = module(tokens(9).to(dtype), tokens(13).to(dtype));
      EXPECT_EQ(out.scalar_type(), dtype);
      EXPECT_TRUE(out.isfinite().all().item<bool>());
    }
  }
}

TEST(ConditionalRoutedCrossAttention, RefusesWhatDoesNotFit) {
  const std::string name = "weir::ConditionalRoutedCrossAttention: expected ";
  const auto refuses = [&](void (*change)(Options&), const std::string& words) {
    const Options options = with(change);
    expect_refusal([&] { ConditionalRoutedCrossAttention module(options); }, name + words);
  };
  refuses([](Options& o) { o.num_tokens_q = 0; }, "`num_tokens_q` to be at least 1, but got 0.");
  refuses([](Options& o) { o.num_tokens_kv = 0; }, "`num_tokens_kv` to be at least 1, but got 0.");
  refuses([](Options& o) { o.kv_routing_tokens = 4; },
          "`kv_routing_tokens` to divide `heads`, 6, but got 4.");
  refuses([](Options& o) { o.route_block_size = 0; },
          "`route_block_size` to be at least 1, but got 0.");
  refuses([](Options& o) { o.router_kwargs.route_block_size = 4; },
          "`route_block_size` beside `router_kwargs`, not in it: only the context is routed in "
          "blocks.");
  ConditionalRoutedCrossAttention module(kPlain);
  const at::Tensor x = at::randn({2, 9, 8}), context = at::randn({2, 13, 8});
  const auto refuses_call = [&](const at::Tensor& a, const at::Tensor& b, const Inputs& inputs,
                                const std::string& words) {
    expect_refusal([&] { module->forward(a, b, inputs); }, name + words);
  };
  refuses_call(at::randn({2, 9, 7}), context, {},
               "`x` to have shape [batch, n, 8], but got [2, 9, 7].");
  refuses_call(x, at::randn({1, 13, 8}), {},
               "`context` to have shape [2, m, 8], but got [1, 13, 8].");
  refuses_call(x, at::randn({2, 13, 7}), {},
               "`context` to have shape [2, m, 8], but got [2, 13, 7].");
  refuses_call(x, context, {.mask = at::ones({2, 13}, at::kBool)},
               "`mask` to have shape [2, 9] like the tokens of `x`, but got [2, 13].");
  refuses_call(
      x, context, {.context_mask = at::ones({2, 9}, at::kBool)},
      "`context_mask` to have shape [2, 13] like the tokens of `context`, but got [2, 9].");
  refuses_call(x, context, {.context_mask = at::ones({2, 13})},
               "`context_mask` to be bool (true = keep), but got Float.");
}

}  // namespace
}  // namespace weir::nn
