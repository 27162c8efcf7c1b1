// SPDX-License-Identifier: Apache-2.0
// CoordinateDescentRouter against its definition in scalar double: which tokens, with which scores,
// at every number of tokens, in blocks of every size; gradients; entries of a batch apart.
#include "weir/nn/coordinate_descent_router.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>

#include "nn/directional_gradients.h"
#include "nn/module_contract.h"
#include "nn/textbook_router.h"
#include "support/tolerance.h"

namespace weir::nn {
namespace {

using Options = CoordinateDescentRouterOptions;
using Inputs = CoordinateDescentRouterInputs;
using Outputs = CoordinateDescentRouterOutputs;

constexpr std::int64_t kDim = 6;

at::Tensor doubles(at::IntArrayRef shape) { return at::randn(shape, at::kDouble); }

/// (batch, n): entry b ends 2 b tokens early, and its token 1 is missing.
at::Tensor some_mask(std::int64_t batch, std::int64_t n) {
  at::Tensor mask = at::ones({batch, n}, at::kBool);
  for (std::int64_t b = 0; b < batch; ++b) mask[b].slice(0, n - std::min(n, 2 * b)).fill_(false);
  if (n > 1) mask.select(1, 1).fill_(false);
  return mask;
}

/// All results of a call that routes are those of the textbook.
void expect_textbook(CoordinateDescentRouter& router, const at::Tensor& x,
                     const std::vector<std::int64_t>& numbers, const NumTokens& num_tokens,
                     const Inputs& inputs = {}) {
  const Options& o = router->options;
  const std::int64_t batch = x.size(0), n = x.size(1), routes = o.num_routing_tokens;
  const std::int64_t largest = *std::max_element(numbers.begin(), numbers.end());
  const Outputs out = router(x, num_tokens, inputs);
  ASSERT_TRUE(out.indices);
  const bool has_routes = routes != 1 || inputs.keep_one_route_dim;
  const auto with_routes = [&](const at::Tensor& t) { return has_routes ? t : t.unsqueeze(1); };
  const at::Tensor indices = with_routes(*out.indices), scores = with_routes(out.scores);
  const at::Tensor tokens = with_routes(out.routed_tokens);
  for (std::int64_t b = 0; b < batch; ++b) {
    std::vector<bool> valid(n, true);
    for (std::int64_t j = 0; inputs.mask && j < n; ++j)
      valid[j] = (*inputs.mask)[b][j].item<bool>();
    for (std::int64_t r = 0; r < routes; ++r) {
      const at::Tensor token = inputs.routing_tokens
                                   ? inputs.routing_tokens->view({batch, routes, -1})[b][r]
                                   : router->routing_token[r];
      const auto right = textbook_route(x[b], token, valid, numbers[b], largest, o);
      const auto k = static_cast<std::int64_t>(right.indices.size());
      ASSERT_EQ(indices[b][r].sizes(), at::IntArrayRef({k}));
      ASSERT_EQ(scores[b][r].sizes(), at::IntArrayRef({k}));
      ASSERT_EQ(tokens[b][r].sizes(), at::IntArrayRef({k, kDim}));
      for (std::int64_t i = 0; i < k; ++i) {
        const auto index = indices[b][r][i].item<std::int64_t>();
        EXPECT_EQ(index, right.indices[i]) << "entry " << b << " route " << r << " place " << i;
        EXPECT_NEAR(scores[b][r][i].item<double>(), right.scores[i], tests::kFloat64.weights);
        EXPECT_TRUE(tokens[b][r][i].equal(x[b][std::min(index, n - 1)]));
        const bool kept =
            out.routed_mask ? with_routes(*out.routed_mask)[b][r][i].item<bool>() : true;
        EXPECT_EQ(kept, right.kept[i]) << "entry " << b << " route " << r << " place " << i;
      }
    }
  }
}

void expect_textbook(CoordinateDescentRouter& router, const at::Tensor& x, std::int64_t number,
                     const Inputs& inputs = {}) {
  expect_textbook(router, x, std::vector(x.size(0), number), NumTokens(number), inputs);
}

// ---- every mode

class RouterMode : public ::testing::TestWithParam<Named<Options>> {
 protected:
  RouterMode() {
    torch::manual_seed(0);
    router_ = CoordinateDescentRouter(GetParam().options);
    router_->to(at::kDouble);
  }
  Inputs inputs(std::int64_t batch) const {
    const Options& o = GetParam().options;
    if (!o.learned_routing_tokens) return {};
    return {.routing_tokens = doubles({batch, o.num_routing_tokens, kDim})};
  }

  CoordinateDescentRouter router_{nullptr};
};

TEST_P(RouterMode, IsTheDefinition) {
  torch::NoGradGuard no_grad;
  for (const std::int64_t n : {2, 7, 11}) {
    for (const std::int64_t number : {std::int64_t{1}, n / 2, n - 1}) {
      const at::Tensor x = doubles({3, n, kDim});
      Inputs arguments = inputs(3);
      expect_textbook(router_, x, number, arguments);
      arguments.mask = some_mask(3, n);
      expect_textbook(router_, x, number, arguments);
      arguments.keep_one_route_dim = true;
      expect_textbook(router_, x, number, arguments);
    }
  }
}

TEST_P(RouterMode, RoutesANumberPerEntry) {
  torch::NoGradGuard no_grad;
  const std::int64_t n = 9;
  for (const std::vector<std::int64_t>& numbers :
       {std::vector<std::int64_t>{1, 4, 2}, {0, 3, 9}, {12, 0, 8}, {0, 0, 1}}) {
    Inputs arguments = inputs(3);
    const at::Tensor x = doubles({3, n, kDim}), tensor = torch::tensor(numbers, at::kLong);
    expect_textbook(router_, x, numbers, tensor, arguments);
    arguments.mask = some_mask(3, n);
    expect_textbook(router_, x, numbers, tensor, arguments);
  }
}

TEST_P(RouterMode, GradientsAreRight) {
  Options plain = GetParam().options;
  plain.straight_through = false;
  CoordinateDescentRouter router(plain);
  router->to(at::kDouble);
  const at::Tensor x = doubles({2, 9, kDim}).requires_grad_();
  Inputs arguments = inputs(2);
  arguments.mask = some_mask(2, 9);
  std::vector<at::Tensor> leaves = {x};
  leaves.push_back(plain.learned_routing_tokens ? arguments.routing_tokens->requires_grad_()
                                                : router->routing_token);
  const at::Tensor probe = doubles(router(x, 4, arguments).routed_tokens.sizes());
  const auto loss = [&](CoordinateDescentRouter& module) {
    const Outputs out = module->forward(x, 4, arguments);
    return (out.routed_tokens * probe * out.scores.unsqueeze(-1)).sum();
  };
  expect_directional_gradients([&] { return loss(router); }, leaves);

  // straight_through changes values, not the gradient of the scores
  plain.straight_through = true;
  CoordinateDescentRouter through(plain);
  through->to(at::kDouble);
  if (!plain.learned_routing_tokens)
    through->routing_token.set_data(router->routing_token.detach());
  const auto gradients = [&](CoordinateDescentRouter& module, std::vector<at::Tensor> of) {
    const Outputs out = module->forward(x, 4, arguments);
    return torch::autograd::grad({(out.scores * probe.select(-1, 0)).sum()}, std::move(of));
  };
  const auto right = gradients(router, leaves);
  if (!plain.learned_routing_tokens) leaves[1] = through->routing_token;
  const auto got = gradients(through, leaves);
  for (std::size_t i : {0, 1}) {
    EXPECT_GT(right[i].abs().max().item<double>(), 0);
    EXPECT_LE(distance(got[i], right[i]), tests::kFloat64.gradients);
  }
}

// The published router takes the tokens of flattened row j from entry j / routes.
TEST_P(RouterMode, EntriesOfABatchAreApart) {
  const at::Tensor x = doubles({3, 9, kDim}).requires_grad_();
  Inputs arguments = inputs(3);
  arguments.mask = some_mask(3, 9);
  const Outputs out = router_(x, 4, arguments);
  (out.routed_tokens[1].square().sum() + out.scores[1].sum()).backward();
  EXPECT_GT(x.grad()[1].abs().max().item<double>(), 0);
  EXPECT_EQ(x.grad()[0].abs().max().item<double>(), 0);
  EXPECT_EQ(x.grad()[2].abs().max().item<double>(), 0);

  at::Tensor changed = x.detach().clone();
  changed[0].add_(1);
  arguments.mask->select(0, 2).fill_(false);
  const Outputs after = router_(changed, 4, arguments);
  EXPECT_TRUE((*after.indices)[1].equal((*out.indices)[1]));
  EXPECT_TRUE(after.scores[1].equal(out.scores[1]));
  EXPECT_TRUE(after.routed_tokens[1].equal(out.routed_tokens[1]));
  EXPECT_TRUE((*after.routed_mask)[1].equal((*out.routed_mask)[1]));

  Inputs alone;
  alone.mask = some_mask(3, 9).narrow(0, 1, 1);
  if (arguments.routing_tokens) alone.routing_tokens = arguments.routing_tokens->narrow(0, 1, 1);
  const Outputs one = router_(x.narrow(0, 1, 1), 4, alone);
  EXPECT_TRUE((*one.indices)[0].equal((*out.indices)[1]));
  EXPECT_LE(distance(one.scores[0], out.scores[1]), tests::kFloat64.weights);
}

INSTANTIATE_TEST_SUITE_P(
    Modes, RouterMode,
    ::testing::Values(
        Named<Options>{"Plain", {.dim = kDim, .eps = 1}},
        Named<Options>{"Scores",
                       {.dim = kDim, .straight_through = false, .eps = 1, .num_routing_tokens = 2}},
        Named<Options>{"Annealed",
                       {.dim = kDim,
                        .straight_through = false,
                        .n_iters = 4,
                        .fetch_k_ratio = 1.25,
                        .eps = 0.7,
                        .eps_decay = 0.8,
                        .eps_init = 3.0}},
        Named<Options>{
            "NoEpsInit",
            {.dim = kDim, .straight_through = false, .eps = 0.5, .eps_init = std::nullopt}},
        Named<Options>{"Routes", {.dim = kDim, .eps = 1, .num_routing_tokens = 3}},
        Named<Options>{
            "External",
            {.dim = kDim, .eps = 1, .num_routing_tokens = 2, .learned_routing_tokens = true}},
        Named<Options>{"Cosine",
                       {.dim = kDim,
                        .straight_through = false,
                        .eps = 1,
                        .num_routing_tokens = 2,
                        .cosine_sim_routing = true,
                        .cosine_sim_scale = 5}},
        Named<Options>{"Blocks",
                       {.dim = kDim,
                        .straight_through = false,
                        .eps = 1,
                        .num_routing_tokens = 2,
                        .route_block_size = 4}},
        Named<Options>{"ExternalBlocks",
                       {.dim = kDim,
                        .eps = 1,
                        .num_routing_tokens = 2,
                        .learned_routing_tokens = true,
                        .cosine_sim_routing = true,
                        .route_block_size = 3}},
        Named<Options>{"ByScores",
                       {.dim = kDim, .straight_through = false, .eps = 1, .select_by = "scores"}},
        Named<Options>{"CumSoftmax",
                       {.dim = kDim,
                        .straight_through = false,
                        .num_routing_tokens = 2,
                        .route_block_size = 6,
                        .router_type = "cum_softmax",
                        .temperature = 0.7}},
        Named<Options>{"Exact",
                       {.dim = kDim,
                        .straight_through = false,
                        .eps = 1,
                        .num_routing_tokens = 2,
                        .solver = "exact"}}),
    [](const auto& info) { return std::string(info.param.name); });

// ---- blocks

TEST(CoordinateDescentRouter, RoutesFromBlocksOfEverySize) {
  torch::manual_seed(0);
  torch::NoGradGuard no_grad;
  for (std::int64_t n = 2; n <= 10; ++n) {
    const at::Tensor x = doubles({2, n, kDim});
    for (std::int64_t block = 1; block <= n + 2; ++block) {
      CoordinateDescentRouter router(
          Options{.dim = kDim, .straight_through = false, .eps = 1, .route_block_size = block});
      router->to(at::kDouble);
      for (std::int64_t number = 1; number < n; ++number) {
        SCOPED_TRACE(testing::Message() << "n " << n << " block " << block << " of " << number);
        expect_textbook(router, x, number);
        expect_textbook(router, x, number, {.mask = some_mask(2, n)});
      }
    }
  }
}

TEST(CoordinateDescentRouter, OnlyATailHasFillers) {
  CoordinateDescentRouter router(Options{.dim = kDim, .route_block_size = 4});
  EXPECT_FALSE(router(at::randn({2, 8, kDim}), 4).routed_mask);
  const Outputs tail = router(at::randn({2, 9, kDim}), 6);  // blocks of 4, 4 and 1 give 2 each
  ASSERT_TRUE(tail.routed_mask);
  EXPECT_TRUE(tail.routed_mask->equal(*tail.indices < 9));
  EXPECT_TRUE((*tail.indices)[0].narrow(0, 4, 2).equal(torch::tensor({8, 9}, at::kLong)));
}

// ---- lengths

TEST(CoordinateDescentRouter, TakesAllWhenThereAreNoMore) {
  for (const std::int64_t routes : {1, 3}) {
    CoordinateDescentRouter router(Options{.dim = kDim, .num_routing_tokens = routes});
    for (const std::int64_t n : {0, 1, 4, 5}) {
      const at::Tensor x = at::randn({2, n, kDim}), mask = some_mask(2, n);
      for (const bool keeps : {false, true}) {
        const bool has_routes = keeps || routes > 1;
        const Outputs out = router->forward(x, 5, {.mask = mask, .keep_one_route_dim = keeps});
        EXPECT_FALSE(out.indices);
        EXPECT_TRUE(out.scores.equal(has_routes ? at::ones({2, routes, n}) : at::ones({2, n})));
        EXPECT_FALSE(out.scores.requires_grad());
        const auto spread = [&](const at::Tensor& t) {
          std::vector<std::int64_t> shape = t.sizes().vec();
          if (!has_routes) return t;
          shape.insert(shape.begin() + 1, routes);
          return t.unsqueeze(1).expand(shape);
        };
        EXPECT_TRUE(out.routed_tokens.equal(spread(x)));
        EXPECT_EQ(out.routed_tokens.data_ptr(), x.data_ptr()) << "a copy for every route";
        EXPECT_TRUE(out.routed_mask->equal(spread(mask)));
        EXPECT_FALSE(router(x, 5).routed_mask);
        EXPECT_FALSE(router(x, torch::tensor({5, 7}, at::kLong)).indices);
      }
    }
  }
}

TEST(CoordinateDescentRouter, TakesAnEmptyBatch) {
  for (const std::int64_t routes : {1, 2}) {
    CoordinateDescentRouter router(Options{.dim = kDim, .num_routing_tokens = routes});
    const at::Tensor x = at::randn({0, 7, kDim}).requires_grad_();
    const Outputs out =
        router->forward(x, 3, {.mask = at::ones({0, 7}, at::kBool), .keep_one_route_dim = true});
    EXPECT_EQ(out.indices->sizes(), at::IntArrayRef({0, routes, 3}));
    EXPECT_EQ(out.scores.sizes(), at::IntArrayRef({0, routes, 3}));
    EXPECT_EQ(out.routed_tokens.sizes(), at::IntArrayRef({0, routes, 3, kDim}));
    EXPECT_EQ(out.routed_mask->sizes(), at::IntArrayRef({0, routes, 3}));
    (out.routed_tokens.sum() + out.scores.sum()).backward();
    EXPECT_EQ(x.grad().sizes(), x.sizes());
    EXPECT_EQ(router(x, at::empty({0}, at::kLong)).indices->size(-1), 1);
    CoordinateDescentRouter external(
        Options{.dim = kDim, .num_routing_tokens = routes, .learned_routing_tokens = true});
    const at::Tensor tokens = at::randn({0, routes, kDim});
    EXPECT_EQ(external->forward(x, 3, {.routing_tokens = tokens}).scores.numel(), 0);
  }
}

// ---- which tokens

TEST(CoordinateDescentRouter, OfEqualTokensTheFirstIsChosen) {
  for (const char* select_by : {"similarity", "scores"}) {
    CoordinateDescentRouter router(Options{.dim = 1, .select_by = select_by});
    torch::NoGradGuard no_grad;
    router->routing_token.fill_(1);
    at::Tensor x = at::ones({2, 200, 1});
    x[0][150] = 2;
    x[1][20] = -1;
    const at::Tensor indices = *router(x, 30).indices;
    const at::Tensor first = at::arange(31);
    EXPECT_TRUE(
        indices[0].equal(at::cat({torch::tensor({150}, at::kLong), first.slice(0, 0, 29)})));
    EXPECT_TRUE(indices[1].equal(at::cat({first.slice(0, 0, 20), first.slice(0, 21, 31)})));
  }
}

TEST(CoordinateDescentRouter, FillsUpWithTheFirstMaskedTokens) {
  CoordinateDescentRouter router(Options{.dim = kDim});
  at::Tensor mask = at::zeros({2, 8}, at::kBool);
  mask[0][5] = true;
  const Outputs out = router->forward(at::randn({2, 8, kDim}), 3, {.mask = mask});
  EXPECT_TRUE(out.indices->equal(torch::tensor({{5, 0, 1}, {0, 1, 2}}, at::kLong)));
  EXPECT_TRUE(out.scores.equal(torch::tensor({{1.f, 0.f, 0.f}, {0.f, 0.f, 0.f}})));
  EXPECT_TRUE(out.routed_mask->equal(out.scores > 0));
}

TEST(CoordinateDescentRouter, ARowWithoutTokensHasNoGradient) {
  CoordinateDescentRouter router(Options{.dim = kDim, .straight_through = false, .eps = 1});
  const at::Tensor x = at::randn({1, 8, kDim}).requires_grad_();
  router->forward(x, 3, {.mask = at::zeros({1, 8}, at::kBool)}).scores.sum().backward();
  EXPECT_EQ(x.grad().abs().max().item<double>(), 0);
  EXPECT_EQ(router->routing_token.grad().abs().max().item<double>(), 0);
}

// With the default eps and unnormalised tokens hundreds of scores are exactly 1.
TEST(CoordinateDescentRouter, ChoosesTheMostSimilarOfSaturatedTokens) {
  torch::manual_seed(0);
  torch::NoGradGuard no_grad;
  CoordinateDescentRouter router(Options{.dim = 512, .straight_through = false});
  const at::Tensor x = at::randn({1, 4096, 512});
  const Outputs out = router(x, 256);
  EXPECT_EQ(out.scores.min().item<double>(), 1);
  const at::Tensor best =
      std::get<1>(x[0].to(at::kDouble).mv(router->routing_token[0].to(at::kDouble)).topk(256));
  EXPECT_TRUE(std::get<0>(out.indices->select(0, 0).sort()).equal(std::get<0>(best.sort())));
}

TEST(CoordinateDescentRouter, NaNIsNotFatal) {
  CoordinateDescentRouter router(Options{.dim = 1});
  torch::NoGradGuard no_grad;
  at::Tensor x = at::ones({2, 6, 1});
  x.select(1, 2).fill_(std::numeric_limits<double>::quiet_NaN());
  EXPECT_TRUE(router(x, 3).indices->equal(torch::tensor({{2, 0, 1}, {2, 0, 1}}, at::kLong)));
}

}  // namespace
}  // namespace weir::nn
