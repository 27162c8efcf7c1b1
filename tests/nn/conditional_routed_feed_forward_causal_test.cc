// SPDX-License-Identifier: Apache-2.0
// The causal ConditionalRoutedFeedForward: equal to its definition position by position, no leak to
// the last bit, steps equal to the full pass.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>

#include "nn/module_contract.h"
#include "nn/textbook_causal_routing.h"
#include "nn/textbook_router.h"
#include "support/message_of.h"
#include "weir/nn/conditional_routed_feed_forward.h"

namespace weir::nn {
namespace {

using Options = ConditionalRoutedFeedForwardOptions;
using Case = Named<Options>;
using Module = ConditionalRoutedFeedForward;

const Options kPlain = {
    .dim = 12, .num_heavy_tokens = 2, .router_kwargs = {.eps = 1}, .heavy_window_size = 5};

Options with(void (*change)(Options&)) {
  Options options = kPlain;
  change(options);
  return options;
}

const Case kCases[] = {
    {"plain", kPlain},
    {"soft", with([](Options& o) { o.router_straight_through = false; })},
    {"iterative", with([](Options& o) {
       o.threshold_solver = "iterative", o.router_straight_through = false;
       o.router_kwargs = {.eps = 0.5, .cosine_sim_routing = true};
     })},
    {"all", with([](Options& o) { o.num_heavy_tokens = 9; })},
};

class CausalFeedForward : public ::testing::TestWithParam<Case> {
 protected:
  CausalFeedForward() {
    torch::manual_seed(3);
    module_ = Module(GetParam().options);
    randomise(*module_);
    module_->to(at::kDouble);
  }
  Module module_{nullptr};
};

TEST_P(CausalFeedForward, IsItsDefinitionPositionByPosition) {
  torch::NoGradGuard no_grad;
  const Options& o = GetParam().options;
  for (const std::int64_t n : {1, 4, 5, 11, 23}) {
    const at::Tensor x = 0.5 * at::randn({2, n, 12}, at::kDouble);
    at::Tensor expected = module_->light_ff(x).clone();
    int routed = 0;
    for (std::int64_t b = 0; b < 2; ++b) {
      const auto scores =
          textbook_similarities(x[b], module_->router->routing_token[0], module_->router->options);
      const TextbookCausalRow row{scores, 5, o.num_heavy_tokens, module_->router->options,
                                  o.threshold_solver == "exact"};
      for (std::int64_t i = 0; i < n; ++i) {
        const double score = textbook_causal_score(row, i);
        if (score < 0) continue;
        ++routed;
        expected[b][i] += (o.router_straight_through ? 1 : score) * module_->heavy_ff(x[b][i]);
      }
    }
    EXPECT_LE(distance(module_->forward(x), expected), 1e-12) << n;
    if (n == 23) {
      EXPECT_GT(routed, 0);
    }
  }
}

TEST_P(CausalFeedForward, NoPositionMovesAnEarlierOne) {
  torch::NoGradGuard no_grad;
  module_->to(at::kFloat);
  const at::Tensor x = 0.5 * at::randn({2, 17, 12});
  const at::Tensor before = module_->forward(x);
  for (std::int64_t t = 1; t < 17; ++t) {
    at::Tensor other = x.clone();
    other.select(1, t).mul_(-3).add_(1);
    ASSERT_TRUE(module_->forward(other).narrow(1, 0, t).equal(before.narrow(1, 0, t))) << t;
  }
}

TEST_P(CausalFeedForward, StepsGiveWhatTheFullPassGives) {
  torch::NoGradGuard no_grad;
  const at::Tensor x = 0.5 * at::randn({2, 23, 12}, at::kDouble);
  const at::Tensor expected = module_->forward(x);
  for (const std::int64_t chunk : {1, 2, 7, 23}) {
    KeyValues past = module_->make_cache(2, 30);
    std::vector<at::Tensor> parts;
    for (std::int64_t begin = 0; begin < 23; begin += chunk) {
      const std::int64_t count = std::min<std::int64_t>(chunk, 23 - begin);
      const at::Tensor positions = at::arange(begin, begin + count).expand({2, count});
      parts.push_back(module_->step(x.narrow(1, begin, count), positions, begin + count, past));
    }
    EXPECT_LE(distance(at::cat(parts, 1), expected), 1e-10) << chunk;
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, CausalFeedForward, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return info.param.name; });

TEST(CausalFeedForward, NeverRoutesPadding) {
  torch::manual_seed(1);
  Module module(kPlain);
  const at::Tensor x = at::randn({1, 20, 12});
  at::Tensor mask = at::ones({1, 20}, at::kBool);
  mask[0].narrow(0, 7, 13).fill_(false);
  const at::Tensor masked = module->forward(x, {.mask = mask});
  EXPECT_TRUE(masked.narrow(1, 7, 13).equal(module->light_ff(x).narrow(1, 7, 13)));
  EXPECT_FALSE(masked.narrow(1, 0, 7).equal(module->light_ff(x).narrow(1, 0, 7)));
}

TEST(CausalFeedForward, GradientsReachEverything) {
  torch::manual_seed(1);
  Module module(kPlain);
  module->forward(at::randn({2, 33, 12})).square().sum().backward();
  expect_gradients_everywhere(*module);
}

TEST(CausalFeedForward, SaysWhatWasExpectedAndFound) {
  const std::string who = "weir::ConditionalRoutedFeedForward: expected ";
  Module module(kPlain), whole(with([](Options&o) { o.heavy_window_size = std::nullopt; }));
  const at::Tensor x = at::randn({2, 8, 12});
  EXPECT_EQ(tests::message_of([&] {
              module->forward(x, {.num_heavy_tokens = at::tensor({1, 2})});
            }),
            who + "`num_heavy_tokens` to be one number in a causal layer, but got a tensor.");
  KeyValues past = whole->make_cache(2, 8);
  EXPECT_EQ(tests::message_of([&] {
              whole->step(x, at::arange(8).expand({2, 8}), 8, past);
            }),
            who +
                "`heavy_window_size` and `autoregressive_routing` \"strict\" for a step: later "
                "tokens would change earlier ones.");
  EXPECT_THAT(
      tests::message_of([] { Module bad(with([](Options& o) { o.heavy_window_size = 0; })); }),
      ::testing::StartsWith(who + "`heavy_window_size` to"));
}

}  // namespace
}  // namespace weir::nn
