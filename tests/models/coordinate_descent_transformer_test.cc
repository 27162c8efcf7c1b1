// SPDX-License-Identifier: Apache-2.0
// The coordinate-descent transformer: names, composition, causality, the cache against the full
// pass, copies, refusals, and that it learns.
#include "weir/models/coordinate_descent_transformer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "config/options.h"
#include "models/small_models.h"
#include "nn/module_contract.h"
#include "support/tolerance.h"

namespace weir::models {
namespace {

using nn::distance;
using nn::expect_refusal;
using Options = CoordinateDescentTransformerOptions;

at::Tensor random_tokens(std::int64_t batch, std::int64_t n) {
  return at::randint(23, {batch, n}, at::kLong);
}

class TransformerMode : public ::testing::TestWithParam<nn::Named<Options>> {
 protected:
  CoordinateDescentTransformer model_ = small_model(GetParam().options);
};

TEST_P(TransformerMode, IsTheSumOfItsParts) {
  model_->to(at::kDouble);
  const at::Tensor tokens = random_tokens(3, 7);
  const auto weights = model_->named_parameters();
  at::Tensor x = at::embedding(weights["token_emb.weight"], tokens) +
                 weights["pos_emb.weight"].narrow(0, 0, 7);
  for (const auto& layer : *model_->layers) {
    x = x + layer->as<CoordinateDescentLayer>()->attention(x);
    x = x + layer->as<CoordinateDescentLayer>()->feed_forward(x);
  }
  x = at::layer_norm(x, {12}, weights["to_logits.0.weight"], weights["to_logits.0.bias"]);
  x = at::linear(x, weights["to_logits.1.weight"], weights["to_logits.1.bias"]);
  EXPECT_EQ(x.sizes(), at::IntArrayRef({3, 7, 23}));
  EXPECT_LE(distance(model_(tokens), x), tests::kFloat64.weights);
}

TEST_P(TransformerMode, IsCausalToTheBit) {
  const at::Tensor tokens = random_tokens(1, 12);
  const at::Tensor before = model_(tokens);
  for (std::int64_t j = 0; j < 12; ++j) {
    at::Tensor changed = tokens.clone();
    changed[0][j] = (changed[0][j] + 1) % 23;
    const at::Tensor after = model_(changed);
    EXPECT_TRUE(after.narrow(1, 0, j).equal(before.narrow(1, 0, j))) << "position " << j;
    EXPECT_FALSE(after.narrow(1, j, 1).equal(before.narrow(1, j, 1))) << "position " << j;
  }
}

TEST_P(TransformerMode, StepsGiveTheLogitsOfTheFullPass) {
  const at::Tensor tokens = random_tokens(3, 12);
  for (const auto& [dtype, tolerance] :
       {std::pair(at::kFloat, kCachedFloat32), std::pair(at::kDouble, kCachedFloat64)}) {
    model_->to(dtype);
    const at::Tensor expected = model_(tokens);
    for (const std::vector<std::int64_t>& split :
         {std::vector<std::int64_t>{12}, {1, 11}, {5, 1, 1, 5}, {3, 0, 9}}) {
      Cache cache = model_->make_cache(3);
      std::vector<at::Tensor> parts;
      std::int64_t begin = 0;
      for (const std::int64_t count : split) {
        parts.push_back(model_->step(tokens.narrow(1, begin, count), cache));
        begin += count;
      }
      EXPECT_LE(distance(at::cat(parts, 1), expected), tolerance);
      EXPECT_EQ(cache.lengths(), std::vector<std::int64_t>(3, 12));
    }
  }
}

TEST_P(TransformerMode, RowsOfTheCacheHaveTheirOwnLengths) {
  model_->to(at::kDouble);
  const at::Tensor tokens = random_tokens(3, 12);
  const at::Tensor expected = model_(tokens);
  Cache cache = model_->make_cache(3);
  model_->step(tokens.narrow(1, 0, 6), cache);  // as if 6 were the longest of three prompts
  cache.set_lengths({2, 6, 3});
  for (int repeat = 0; repeat < 2; ++repeat) {  // then keep two rows, in another order
    std::vector<at::Tensor> next, wanted;
    const std::vector<std::int64_t> rows =
        repeat == 0 ? std::vector<std::int64_t>{0, 1, 2} : std::vector<std::int64_t>{2, 0};
    if (repeat == 1) cache.keep_rows(rows);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      next.push_back(tokens[rows[i]].narrow(0, cache.lengths()[i], 4));
      wanted.push_back(expected[rows[i]].narrow(0, cache.lengths()[i], 4));
    }
    EXPECT_LE(distance(model_->step(at::stack(next), cache), at::stack(wanted)), kCachedFloat64);
  }
  EXPECT_EQ(cache.lengths(), (std::vector<std::int64_t>{11, 10}));
}

TEST_P(TransformerMode, CopiesAgree) {
  nn::expect_copies_agree(model_, CoordinateDescentTransformer(GetParam().options),
                          random_tokens(2, 5));
}

TEST_P(TransformerMode, RunsInBFloat16) {
  const at::Tensor tokens = random_tokens(2, 5);
  const at::Tensor expected = model_(tokens);
  model_->to(at::kBFloat16);
  EXPECT_EQ(model_(tokens).scalar_type(), at::kBFloat16);
  EXPECT_LE(distance(model_(tokens), expected), 0.2);  // no more than: the same computation
  Cache cache = model_->make_cache(2);
  EXPECT_EQ(model_->step(tokens, cache).scalar_type(), at::kBFloat16);
}

at::Tensor next_token_loss(CoordinateDescentTransformer& model, const at::Tensor& tokens) {
  const std::int64_t n = tokens.size(1) - 1;
  const at::Tensor logits = model(tokens.narrow(1, 0, n));
  return at::cross_entropy_loss(logits.flatten(0, 1), tokens.narrow(1, 1, n).flatten());
}

TEST_P(TransformerMode, LearnsATinyBatchByHeart) {
  torch::manual_seed(2);
  const at::Tensor tokens = random_tokens(2, 9);
  CoordinateDescentTransformer model(GetParam().options);
  torch::optim::Adam optimizer(model->parameters(), 1e-2);
  const double first = next_token_loss(model, tokens).item<double>();
  for (int step = 0; step < 100; ++step) {
    optimizer.zero_grad();
    next_token_loss(model, tokens).backward();
    if (step == 0) nn::expect_gradients_everywhere(*model);
    optimizer.step();
    if (step == 0) {
      EXPECT_LT(next_token_loss(model, tokens).item<double>(), first);
    }
  }
  EXPECT_LT(next_token_loss(model, tokens).item<double>(), 0.1);
}

INSTANTIATE_TEST_SUITE_P(Modes, TransformerMode, ::testing::ValuesIn(small_cases()));

TEST(CoordinateDescentTransformer, HasThePublishedNames) {
  auto options = small_cases()[3].options;
  options.depth = 1;
  EXPECT_THAT(
      nn::parameter_names(CoordinateDescentTransformerImpl(options)),
      ::testing::UnorderedElementsAre(
          "token_emb.weight", "pos_emb.weight", "layers.0.0.null_kv", "layers.0.0.norm.weight",
          "layers.0.0.norm.bias", "layers.0.0.to_learned_k.weight", "layers.0.0.to_learned_k.bias",
          "layers.0.0.to_qkv.weight", "layers.0.0.to_out.weight", "layers.0.1.proj_in.0.weight",
          "layers.0.1.proj_in.0.bias", "layers.0.1.proj_in.1.weight", "layers.0.1.proj_in.1.bias",
          "layers.0.1.proj_out.weight", "layers.0.1.proj_out.bias", "to_logits.0.weight",
          "to_logits.0.bias", "to_logits.1.weight", "to_logits.1.bias"));
}

TEST(CoordinateDescentTransformer, PassesItsOptionsOn) {
  CoordinateDescentTransformer model({.num_tokens = 2,
                                      .dim = 3,
                                      .seq_len = 4,
                                      .depth = 1,
                                      .dim_head = 5,
                                      .heads = 6,
                                      .ff_mult = 7,
                                      .attn_use_coor_descent = true,
                                      .ff_use_coor_descent = true,
                                      .attn_coor_descent_sparsity_k = 8,
                                      .ff_coor_descent_sparsity_k = 9,
                                      .coor_descent_iters = 10,
                                      .coor_descent_eps = 11,
                                      .coor_descent_eps_init = 12,
                                      .coor_descent_eps_decay = 0.13,
                                      .coor_descent_solver = "exact",
                                      .attn_null_kv = 14,
                                      .learned_sparsity_k = true,
                                      .coor_descent_normalize = true,
                                      .attn_kind = "coordinate_descent",
                                      .attn_top_k = 15,
                                      .attn_route_dim_head = 16,
                                      .attn_route_heads = 2,
                                      .attn_route_score = "coordinate_descent",
                                      .ff_coor_descent_gate = true});
  const auto& layer = model->layers->at<CoordinateDescentLayerImpl>(0);
  EXPECT_EQ(config::to_json(layer.attention->options),
            config::to_json(
                nn::CoordinateDescentAttentionOptions{.dim = 3,
                                                      .dim_head = 5,
                                                      .heads = 6,
                                                      .use_coor_descent = true,
                                                      .coor_descent_iters = 10,
                                                      .coor_descent_sparsity_k = 8,
                                                      .coor_descent_eps = 11,
                                                      .coor_descent_eps_init = 12,
                                                      .coor_descent_eps_decay = 0.13,
                                                      .coor_descent_solver = "exact",
                                                      .attn_null_kv = 14,
                                                      .learned_sparsity_k = true,
                                                      .coor_descent_normalize = true,
                                                      .attn_kind = "coordinate_descent",
                                                      .attn_top_k = 15,
                                                      .attn_route_dim_head = 16,
                                                      .attn_route_heads = 2,
                                                      .attn_route_score = "coordinate_descent"}));
  EXPECT_EQ(config::to_json(layer.feed_forward->options),
            config::to_json(nn::CoordinateDescentFeedForwardOptions{.dim = 3,
                                                                    .mult = 7,
                                                                    .use_coor_descent = true,
                                                                    .coor_descent_iters = 10,
                                                                    .coor_descent_sparsity_k = 9,
                                                                    .coor_descent_eps = 11,
                                                                    .coor_descent_eps_init = 12,
                                                                    .coor_descent_eps_decay = 0.13,
                                                                    .coor_descent_solver = "exact",
                                                                    .coor_descent_gate = true}));
}

struct WrapperImpl : torch::nn::Cloneable<WrapperImpl> {
  WrapperImpl() { reset(); }
  void reset() override {
    model = register_module("model", CoordinateDescentTransformer(small_cases()[0].options));
  }
  CoordinateDescentTransformer model{nullptr};
};

TEST(CoordinateDescentTransformer, IsClonedWithTheModuleThatHoldsIt) {
  WrapperImpl wrapper;
  wrapper.model->pos_emb->weight.set_requires_grad(false);
  const auto clone = std::dynamic_pointer_cast<WrapperImpl>(wrapper.clone());
  const at::Tensor tokens = random_tokens(2, 5);
  EXPECT_TRUE(clone->model(tokens).equal(wrapper.model(tokens)));
  EXPECT_FALSE(clone->model->pos_emb->weight.requires_grad());
  EXPECT_TRUE(clone->model->token_emb->weight.requires_grad());
}

TEST(CoordinateDescentTransformer, RefusesOptionsThatDoNotFit) {
  const auto refuses = [](void (*change)(Options&), const std::string& words) {
    Options options = small_cases()[0].options;
    change(options);
    expect_refusal([&] { CoordinateDescentTransformer model(options); }, words);
  };
  const std::string name = "weir::CoordinateDescentTransformer: ";
  refuses([](Options& o) { o.num_tokens = 0; },
          name + "expected `num_tokens` to be at least 1, but got 0.");
  refuses([](Options& o) { o.dim = 0; }, name + "expected `dim` to be at least 1, but got 0.");
  refuses([](Options& o) { o.seq_len = 0; },
          name + "expected `seq_len` to be at least 1, but got 0.");
  refuses([](Options& o) { o.depth = 0; }, name + "expected `depth` to be at least 1, but got 0.");
  refuses([](Options& o) { o.ff_mult = 0; },
          "weir::CoordinateDescentFeedForward: expected `dim` * `mult` to lie in [1, 1073741824], "
          "but got 12 * 0.");
  refuses([](Options& o) { o.attn_coor_descent_sparsity_k = 0; },
          name + "expected `attn_coor_descent_sparsity_k` to be finite and positive, but got 0.");
  refuses([](Options& o) { o.ff_coor_descent_sparsity_k = 0; },
          name + "expected `ff_coor_descent_sparsity_k` to be finite and positive, but got 0.");
  refuses([](Options& o) { o.learned_sparsity_k = true; },
          "weir::CoordinateDescentAttention: expected `learned_sparsity_k` only with coordinate "
          "descent: softmax has no k to learn.");
  refuses([](Options& o) { o.heads = 0; },
          "weir::CoordinateDescentAttention: expected `heads` to be at least 1, but got 0.");
}

TEST(CoordinateDescentTransformer, RefusesInputsThatDoNotFit) {
  CoordinateDescentTransformer model(small_cases()[0].options);
  const auto refuses = [&](const at::Tensor& tokens, const std::string& words) {
    expect_refusal([&] { model(tokens); }, "weir::CoordinateDescentTransformer: " + words);
  };
  refuses(random_tokens(1, 13), "expected at most 12 tokens per row, but got 13.");
  refuses(random_tokens(1, 4).to(at::kInt), "expected `tokens` to be int64, but got Int.");
  refuses(random_tokens(1, 4)[0], "expected `tokens` to have shape [batch, n], but got [4].");
  refuses(at::full({1, 2}, 23, at::kLong), "expected `tokens` in [0, 23), but got 23.");
  refuses(at::full({1, 2}, -1, at::kLong), "expected `tokens` in [0, 23), but got -1.");
  EXPECT_EQ(model(random_tokens(2, 0)).sizes(), at::IntArrayRef({2, 0, 23}));
}

TEST(CoordinateDescentTransformer, RefusesWhatTheCacheCannotHold) {
  CoordinateDescentTransformer model(small_cases()[0].options);
  Cache cache = model->make_cache(2);
  expect_refusal([&] { model->step(random_tokens(3, 1), cache); },
                 "weir::CoordinateDescentTransformer: expected one row of `tokens` per row of "
                 "`cache`, 2, but got 3.");
  model->step(random_tokens(2, 10), cache);
  expect_refusal([&] { model->step(random_tokens(2, 3), cache); },
                 "weir::Cache: expected room for 3 more tokens in every row, but the longest holds "
                 "10 of 12.");
  expect_refusal([&] { cache.set_lengths({1}); },
                 "weir::Cache: expected 2 `lengths`, one per row, but got 1.");
  expect_refusal(
      [&] {
        cache.set_lengths({1, 11});
      },
      "weir::Cache: expected the length of row 1 to lie in [0, 10], what the row has, but "
      "got 11.");
  EXPECT_EQ(cache.lengths(), (std::vector<std::int64_t>{10, 10}));
}

TEST(CoordinateDescentTransformer, PrintsItsOptions) {
  EXPECT_THAT(nn::printed(CoordinateDescentTransformer(small_cases()[0].options)),
              ::testing::StartsWith("weir::models::CoordinateDescentTransformer(num_tokens=23, "
                                    "dim=12, seq_len=12, depth=2)("));
}

}  // namespace
}  // namespace weir::models
