// SPDX-License-Identifier: Apache-2.0
// ConditionalRoutedAutoregressiveAttention: equal to its definition position by position, no leak
// from later positions to the last bit, steps equal to the full pass, names, copies, messages.
#include "weir/nn/conditional_routed_autoregressive_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>

#include "nn/module_contract.h"
#include "nn/textbook_causal_routing.h"
#include "nn/textbook_router.h"
#include "support/message_of.h"
#include "support/tolerance.h"

namespace weir::nn {
namespace {

using Options = ConditionalRoutedAutoregressiveAttentionOptions;
using Inputs = ConditionalRoutedAutoregressiveAttentionInputs;
using Case = Named<Options>;
using Module = ConditionalRoutedAutoregressiveAttention;

const Options kPlain = {.dim = 12,
                        .num_heavy_tokens_q = 2,
                        .num_heavy_tokens_kv = 7,
                        .light_dim_head = 4,
                        .light_heads = 2,
                        .light_window_size = 5,
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
    {"routes", with([](Options& o) { o.num_routed_kv = 3, o.rotary_emb = o.light_rotary = true; })},
    {"soft", with([](Options& o) {
       o.router_straight_through = false, o.num_routed_kv = 2, o.heavy_window_size = 4;
       o.multiply_keys_by_score = o.multiply_queries_by_score = true;
     })},
    {"iterative", with([](Options& o) {
       o.threshold_solver = "iterative", o.use_null_q_tokens = false, o.num_heavy_tokens_kv = 3;
     })},
    {"iterative_soft", with([](Options& o) {
       o.threshold_solver = "iterative", o.router_straight_through = false;
       o.router_kwargs = {.n_iters = 3, .eps = 0.5, .cosine_sim_routing = true};
     })},
    {"all_queries", with([](Options& o) { o.num_heavy_tokens_q = 5, o.rotary_emb = true; })},
};

class CausalMode : public ::testing::TestWithParam<Case> {
 protected:
  CausalMode() {
    torch::manual_seed(3);
    module_ = Module(GetParam().options);
    randomise(*module_);
    module_->to(at::kDouble);
  }
  Module module_{nullptr};
};

// What the heavy branch gives at position i of one row x (n, dim), from the tokens up to it.
at::Tensor plain_heavy(Module& module, const at::Tensor& x, std::int64_t i) {
  const Options& o = module->options;
  const std::int64_t w = o.window(), begin = i / w * w;
  if (begin == 0) return at::zeros({o.dim}, x.options());
  const at::Tensor seen = x.narrow(0, 0, i + 1);
  const auto scores_of = [&](CoordinateDescentRouter& router, std::int64_t route) {
    return textbook_similarities(seen, router->routing_token[route], router->options);
  };
  const TextbookCausalRow row{scores_of(module->q_router, 0), w, o.num_heavy_tokens_q,
                              module->q_router->options, o.threshold_solver == "exact"};
  const double soft = textbook_causal_score(row, i);
  if (soft < 0) return o.use_null_q_tokens ? module->null_q_token : at::zeros({o.dim}, x.options());
  const double score = o.router_straight_through ? 1 : soft;

  std::vector<at::Tensor> tokens, scores, positions;
  for (std::int64_t route = 0; route < o.num_routed_kv; ++route) {
    const auto s = scores_of(module->kv_router, route);
    const auto chosen = textbook_largest(s, begin, o.num_heavy_tokens_kv);
    const bool whole = begin <= o.num_heavy_tokens_kv || o.router_straight_through;
    const auto& r = module->kv_router->options;
    const double budget = std::min(static_cast<double>(o.num_heavy_tokens_kv) * r.fetch_k_ratio,
                                   static_cast<double>(begin));
    const double a =
        whole ? 0 : textbook_threshold({s.begin(), s.begin() + begin}, budget, r, false);
    const double eps = tests::textbook_schedule(r.n_iters, r.eps, *r.eps_init, r.eps_decay).back();
    std::vector<double> weights;
    for (const std::int64_t j : chosen) {
      weights.push_back(whole ? 1 : std::exp(std::min(s[j] + a, 0.0) / eps));
    }
    positions.push_back(at::tensor(chosen));
    tokens.push_back(x.index_select(0, positions.back()));
    scores.push_back(at::tensor(weights, at::kDouble));
  }
  HeavyAttentionInputs inputs;
  inputs.context = at::stack(tokens).unsqueeze(0);
  inputs.normalized_scores_kv = at::stack(scores).unsqueeze(0);
  if (o.multiply_queries_by_score) {
    inputs.normalized_scores_q = at::full({1, 1}, score, at::kDouble);
  }
  if (o.rotary_emb) {
    inputs.inv_freq = module->rotary_emb->inv_freq;
    inputs.positions_q = at::full({1, 1}, i, at::kLong);
    inputs.positions_kv = at::stack(positions).unsqueeze(0);
  }
  return module->heavy_attn->forward(x.narrow(0, i, 1).unsqueeze(0), inputs)[0][0] * score;
}

TEST_P(CausalMode, IsItsDefinitionPositionByPosition) {
  torch::NoGradGuard no_grad;
  for (const std::int64_t n : {1, 4, 5, 6, 10, 23}) {
    const at::Tensor x = 0.5 * at::randn({2, n, 12}, at::kDouble);
    at::Tensor expected = module_->light_attn->forward(x).clone();
    for (std::int64_t b = 0; b < 2; ++b) {
      for (std::int64_t i = 0; i < n; ++i) expected[b][i] += plain_heavy(module_, x[b], i);
    }
    EXPECT_LE(distance(module_->forward(x), expected), 1e-10) << n;
  }
}

TEST_P(CausalMode, NoPositionMovesAnEarlierOne) {
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    module_->to(dtype);
    for (const std::int64_t n : {4, 5, 11, 15, 17}) {
      at::Tensor x = (0.5 * at::randn({2, n, 12})).to(dtype);
      torch::NoGradGuard no_grad;
      const at::Tensor before = module_->forward(x);
      for (std::int64_t t = 1; t < n; ++t) {
        at::Tensor other = x.clone();
        other.select(1, t).mul_(-3).add_(1);
        const at::Tensor after = module_->forward(other);
        ASSERT_TRUE(after.narrow(1, 0, t).equal(before.narrow(1, 0, t))) << n << ", " << t;
        ASSERT_FALSE(after.select(1, t).equal(before.select(1, t)));
      }
    }
  }
}

TEST_P(CausalMode, GradientsDoNotReachLaterPositions) {
  const at::Tensor x = (0.5 * at::randn({2, 17, 12}, at::kDouble)).requires_grad_();
  const at::Tensor out = module_->forward(x);
  for (const std::int64_t i : {0, 4, 5, 9, 10, 15}) {
    const at::Tensor gradient =
        torch::autograd::grad({out.select(1, i).sum()}, {x}, {}, /*retain_graph=*/true)[0];
    EXPECT_TRUE(gradient.narrow(1, i + 1, 16 - i).eq(0).all().item<bool>()) << i;
  }
}

at::Tensor positions_of(const std::vector<std::int64_t>& lengths, std::int64_t count) {
  return at::tensor(lengths, at::kLong).unsqueeze(-1) + at::arange(count, at::kLong);
}

TEST_P(CausalMode, StepsGiveWhatTheFullPassGives) {
  torch::NoGradGuard no_grad;
  const at::Tensor x = 0.5 * at::randn({2, 23, 12}, at::kDouble);
  const at::Tensor expected = module_->forward(x);
  for (const std::int64_t chunk : {1, 2, 7, 23}) {
    std::vector<KeyValues> past = module_->make_cache(2, 30);
    std::vector<at::Tensor> parts;
    for (std::int64_t begin = 0; begin < 23; begin += chunk) {
      const std::int64_t count = std::min<std::int64_t>(chunk, 23 - begin);
      parts.push_back(module_->step(x.narrow(1, begin, count), positions_of({begin, begin}, count),
                                    begin + count, past));
    }
    EXPECT_LE(distance(at::cat(parts, 1), expected), 1e-10) << chunk;
  }
}

TEST_P(CausalMode, RowsOfTheCacheHaveTheirOwnLengths) {
  torch::NoGradGuard no_grad;
  const at::Tensor x = 0.5 * at::randn({2, 20, 12}, at::kDouble);
  const at::Tensor expected = module_->forward(x);
  std::vector<KeyValues> past = module_->make_cache(2, 20);
  module_->step(x.narrow(1, 0, 9), positions_of({0, 0}, 9), 9, past);
  std::vector<std::int64_t> lengths = {9, 4};  // the second row was padded
  for (std::int64_t i = 0; i < 11; ++i) {
    const at::Tensor next = at::stack({x[0][lengths[0]], x[1][lengths[1]]}).unsqueeze(1),
                     wanted = at::stack({expected[0][lengths[0]], expected[1][lengths[1]]});
    const at::Tensor found =
        module_->step(next, positions_of(lengths, 1), std::max(lengths[0], lengths[1]) + 1, past);
    EXPECT_LE(distance(found.squeeze(1), wanted), 1e-10) << i;
    ++lengths[0], ++lengths[1];
  }
}

TEST_P(CausalMode, RowsOfABatchAreIndependent) {
  torch::NoGradGuard no_grad;
  const at::Tensor x = 0.5 * at::randn({3, 17, 12}, at::kDouble);
  const at::Tensor together = module_->forward(x);
  for (std::int64_t b = 0; b < 3; ++b) {
    EXPECT_LE(distance(module_->forward(x.narrow(0, b, 1))[0], together[b]), 1e-12);
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, CausalMode, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return info.param.name; });

Module small(const Options& options = kPlain) {
  torch::manual_seed(1);
  return Module(options);
}

TEST(ConditionalRoutedAutoregressiveAttention, HasThePublishedNames) {
  Module module = small(with([](Options& o) { o.rotary_emb = true; }));
  EXPECT_THAT(parameter_names(*module),
              ::testing::UnorderedElementsAre(
                  "null_q_token", "light_attn.norm.weight", "light_attn.norm.bias",
                  "light_attn.to_qkv.weight", "light_attn.to_out.weight", "q_router.routing_token",
                  "kv_router.routing_token", "heavy_attn.null_kv", "heavy_attn.norm.gamma",
                  "heavy_attn.to_q.weight", "heavy_attn.to_kv.weight", "heavy_attn.to_out.weight"));
}

TEST(ConditionalRoutedAutoregressiveAttention, GradientsReachEverything) {
  for (const char* solver : {"exact", "iterative"}) {
    Options options = kPlain;
    options.threshold_solver = solver, options.num_routed_kv = 2;
    Module module = small(options);
    module->forward(at::randn({2, 33, 12})).square().sum().backward();
    expect_gradients_everywhere(*module);
  }
}

TEST(ConditionalRoutedAutoregressiveAttention, CopiesAgree) {
  expect_copies_agree(small(), small(), at::randn({2, 17, 12}));
}

TEST(ConditionalRoutedAutoregressiveAttention, RoutesWholeWindowsLikeThePackage) {
  Module module = small(with([](Options& o) { o.autoregressive_routing = "window"; }));
  torch::NoGradGuard no_grad;
  const at::Tensor x = at::randn({2, 17, 12});
  const at::Tensor before = module->forward(x);
  for (std::int64_t t = 5; t < 17; ++t) {  // later windows never matter, later tokens may
    at::Tensor other = x.clone();
    other.select(1, t).mul_(-3);
    const std::int64_t begin = t / 5 * 5;
    EXPECT_TRUE(module->forward(other).narrow(1, 0, begin).equal(before.narrow(1, 0, begin)));
  }
}

TEST(ConditionalRoutedAutoregressiveAttention, RandomRoutesComeFromTheGenerator) {
  Module module = small();
  torch::NoGradGuard no_grad;
  const at::Tensor x = at::randn({2, 40, 12});
  const auto run = [&](std::uint64_t seed) {
    torch::manual_seed(seed);
    return module->forward(x, {.random_route = true});
  };
  EXPECT_TRUE(run(1).equal(run(1)));
  EXPECT_FALSE(run(1).equal(run(2)));
}

TEST(ConditionalRoutedAutoregressiveAttention, NumbersOfACallReplaceTheOptions) {
  Options more = kPlain;
  more.num_heavy_tokens_q = 3, more.num_heavy_tokens_kv = 9;
  Module module = small(), other = small(more);
  const at::Tensor x = at::randn({2, 23, 12});
  EXPECT_TRUE(module->forward(x, {.num_heavy_tokens_q = 3, .num_heavy_tokens_kv = 9})
                  .equal(other->forward(x)));
}

TEST(ConditionalRoutedAutoregressiveAttention, TakesEmptyBatchesAndSixteenBits) {
  Module module = small();
  EXPECT_EQ(module->forward(at::randn({0, 17, 12})).sizes(),
            (std::vector<std::int64_t>{0, 17, 12}));
  EXPECT_EQ(module->forward(at::randn({2, 0, 12})).sizes(), (std::vector<std::int64_t>{2, 0, 12}));
  module->to(at::kBFloat16);
  const at::Tensor out = module->forward(at::randn({2, 17, 12}).to(at::kBFloat16));
  EXPECT_EQ(out.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(out.isfinite().all().item<bool>());
}

TEST(ConditionalRoutedAutoregressiveAttention, SaysWhatWasExpectedAndFound) {
  const auto words = [](void (*change)(Options&)) {
    return tests::message_of([&] { Module module(with(change)); });
  };
  const std::string who = "weir::ConditionalRoutedAutoregressiveAttention: expected ";
  EXPECT_EQ(words([](Options& o) { o.num_routed_kv = 4; }),
            who + "`num_routed_kv` to divide `heavy_heads`, 6, but got 4.");
  EXPECT_EQ(words([](Options& o) { o.autoregressive_routing = "loose"; }),
            who + "`autoregressive_routing` to be \"strict\" or \"window\", but got \"loose\".");
  EXPECT_EQ(words([](Options& o) { o.threshold_solver = "newton"; }),
            who + "`threshold_solver` to be \"exact\" or \"iterative\", but got \"newton\".");
  EXPECT_EQ(words([](Options& o) { o.tau = -1; }),
            who + "`tau` to be finite and at least 0, but got -1.");
  EXPECT_EQ(words([](Options& o) { o.router_kwargs.route_block_size = 8; }),
            who +
                "no `route_block_size` in a causal layer, whose windows are the blocks, but got "
                "8.");
  EXPECT_EQ(words([](Options& o) { o.router_kwargs.select_by = "scores"; }),
            who +
                "`router_type` \"coor_descent\" and `select_by` \"similarity\" in a causal "
                "layer, but got \"coor_descent\" and \"scores\".");
  EXPECT_EQ(words([](Options& o) { o.heavy_dim_head = 3, o.rotary_emb = true; }),
            who + "`heavy_dim_head` to be even with `rotary_emb`, but got 3.");
  EXPECT_THAT(words([](Options& o) { o.heavy_window_size = 0; }),
              ::testing::StartsWith(who + "`heavy_window_size` to"));
  Module windowed(with([](Options& o) { o.autoregressive_routing = "window"; }));
  auto past = windowed->make_cache(1, 4);
  EXPECT_EQ(tests::message_of([&] {
              windowed->step(at::zeros({1, 1, 12}), at::zeros({1, 1}, at::kLong), 1, past);
            }),
            who +
                "`autoregressive_routing` \"strict\" for a step: \"window\" looks at later "
                "tokens.");
}

}  // namespace
}  // namespace weir::nn
