// SPDX-License-Identifier: Apache-2.0
// The Sparse Transformer: composition, causality, independence of the batch, copies, initial
// weights, dropout, refusals, and that it learns. Its cache: sparse_transformer_cache_test.cc.
#include "weir/models/sparse_transformer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "models/small_models.h"
#include "nn/module_contract.h"
#include "support/tolerance.h"
#include "weir/nn/sparse_attention.h"

namespace weir::models {
namespace {

using nn::distance;
using nn::expect_refusal;
using Options = SparseTransformerOptions;

at::Tensor random_tokens(std::int64_t batch, std::int64_t n) {
  return at::randint(23, {batch, n}, at::kLong);
}

class SparseMode : public ::testing::TestWithParam<nn::Named<Options>> {
 protected:
  SparseTransformer model_ = small_model(GetParam().options);
};

TEST_P(SparseMode, IsTheSumOfItsParts) {
  model_->to(at::kDouble);
  const auto& options = GetParam().options;
  const at::Tensor tokens = random_tokens(3, 19);
  const auto weights = model_->named_parameters();
  const auto linear = [&](const at::Tensor& x, const std::string& name) {
    return at::linear(x, weights[name + ".weight"], weights[name + ".bias"]);
  };
  const auto norm = [&](const at::Tensor& x, const std::string& name) {
    return at::layer_norm(x, {12}, weights[name + ".weight"], weights[name + ".bias"]);
  };
  at::Tensor x = at::embedding(weights["token_emb.weight"], tokens) +
                 weights["pos_emb.weight"].narrow(0, 0, 19);
  for (int layer = 0; layer < 2; ++layer) {
    const std::string at = "layers." + std::to_string(layer) + ".";
    const std::string modes = options.attn_mode;
    const auto semicolon = modes.find(';');
    const std::string mode = semicolon == std::string::npos ? modes
                             : layer == 0                   ? modes.substr(0, semicolon)
                                                            : modes.substr(semicolon + 1);
    const auto qkv = linear(norm(x, at + "attention_norm"), at + "attention.to_qkv").chunk(3, -1);
    const at::Tensor attended = nn::attention_impl(qkv[0], qkv[1], qkv[2],
                                                   {.block_size = options.block_size,
                                                    .heads = 4,
                                                    .attn_mode = mode,
                                                    .local_attn_ctx = options.local_attn_ctx,
                                                    .num_verts = options.num_verts,
                                                    .layout = options.layout});
    x = x + linear(attended, at + "attention.to_out");
    const at::Tensor units = linear(norm(x, at + "feed_forward_norm"), at + "feed_forward.proj_in");
    x = x + linear(units * at::sigmoid(1.702 * units), at + "feed_forward.proj_out");
  }
  const at::Tensor expected = at::matmul(norm(x, "norm"), weights["token_emb.weight"].t());
  EXPECT_EQ(expected.sizes(), at::IntArrayRef({3, 19, 23}));
  EXPECT_LE(distance(model_(tokens), expected), tests::kFloat64.weights);
}

TEST_P(SparseMode, IsCausalToTheBit) {
  const at::Tensor tokens = random_tokens(1, 24);
  const at::Tensor before = model_(tokens);
  for (std::int64_t j = 0; j < 24; ++j) {
    at::Tensor changed = tokens.clone();
    changed[0][j] = (changed[0][j] + 1) % 23;
    const at::Tensor after = model_(changed);
    EXPECT_TRUE(after.narrow(1, 0, j).equal(before.narrow(1, 0, j))) << "position " << j;
    EXPECT_FALSE(after.narrow(1, j, 1).equal(before.narrow(1, j, 1))) << "position " << j;
  }
}

TEST_P(SparseMode, RowsDoNotSeeEachOther) {
  model_->to(at::kDouble);
  const at::Tensor tokens = random_tokens(3, 20);
  const at::Tensor together = model_(tokens);
  for (std::int64_t row = 0; row < 3; ++row) {
    EXPECT_LE(distance(model_(tokens.narrow(0, row, 1)), together.narrow(0, row, 1)),
              tests::kFloat64.weights);
  }
}

TEST_P(SparseMode, CopiesAgree) {
  nn::expect_copies_agree(model_, SparseTransformer(GetParam().options), random_tokens(2, 15));
}

TEST_P(SparseMode, Learns) {
  torch::manual_seed(2);
  const at::Tensor tokens = random_tokens(2, 24);
  SparseTransformer model(GetParam().options);
  torch::optim::Adam optimizer(model->parameters(), 1e-2);
  const auto loss = [&] {
    return at::cross_entropy_loss(model(tokens.narrow(1, 0, 23)).flatten(0, 1),
                                  tokens.narrow(1, 1, 23).flatten());
  };
  const at::Tensor first = loss();
  first.backward();
  nn::expect_gradients_everywhere(*model);
  optimizer.step();
  EXPECT_LT(loss().item<double>(), first.item<double>());
}

INSTANTIATE_TEST_SUITE_P(Modes, SparseMode, ::testing::ValuesIn(sparse_cases()));

TEST(SparseTransformer, StartsAsThePublishedProgramDoes) {
  torch::manual_seed(0);
  SparseTransformer model({.num_tokens = 300, .dim = 64, .seq_len = 256, .depth = 4});
  std::size_t seen = 0;
  for (const auto& item : model->named_parameters()) {
    const auto& name = item.key();
    const auto& x = item.value();
    SCOPED_TRACE(name);
    if (name.find("norm") != std::string::npos || name.ends_with("bias")) {
      const double value = name.ends_with("norm.weight") ? 1 : 0;
      EXPECT_TRUE(x.eq(value).all().item<bool>());
      continue;
    }
    double deviation = 0.02;
    if (name == "pos_emb.weight") deviation = 0.01;
    if (name.ends_with("to_out.weight") || name.ends_with("proj_out.weight")) deviation = 0.02 / 4;
    // 4096 numbers or more: five standard errors of a deviation are 5 / sqrt(2 * 4096) = 5.6 %.
    EXPECT_NEAR(x.std().item<double>() / deviation, 1, 0.06);
    EXPECT_LT(std::abs(x.mean().item<double>()) / deviation, 5.0 / 64);
    ++seen;
  }
  EXPECT_EQ(seen, 2u + 4 * 4);
}

TEST(SparseTransformer, DropsInTrainingOnly) {
  auto options = sparse_cases()[1].options;
  options.dropout = 0.5;
  SparseTransformer model = small_model(options);
  SparseTransformer without = small_model(sparse_cases()[1].options);
  const at::Tensor tokens = random_tokens(2, 9);
  EXPECT_FALSE(model(tokens).equal(model(tokens)));
  model->eval();
  EXPECT_TRUE(model(tokens).equal(without(tokens)));
}

TEST(SparseTransformer, TakesItsModesInTurn) {
  SparseTransformer model({.num_tokens = 5,
                           .dim = 4,
                           .seq_len = 8,
                           .depth = 5,
                           .heads = 2,
                           .dim_head = 3,
                           .attn_mode = "local; custom",
                           .local_attn_ctx = 2,
                           .block_size = 4,
                           .layout = {"1.", "11"}});
  std::vector<std::string> modes;
  for (const auto& layer : *model->layers) {
    const auto& attention = *layer->as<SparseTransformerLayer>()->attention;
    modes.push_back(attention.options.attn_mode);
    EXPECT_EQ(attention.to_out->weight.sizes(), at::IntArrayRef({4, 6}));
  }
  EXPECT_THAT(modes, ::testing::ElementsAre("local", "custom", "local", "custom", "local"));
}

TEST(SparseTransformer, HasOneWeightForBothEmbeddings) {
  auto options = sparse_cases()[0].options;
  options.depth = 1;
  EXPECT_THAT(nn::parameter_names(SparseTransformerImpl(options)),
              ::testing::UnorderedElementsAre(
                  "token_emb.weight", "pos_emb.weight", "layers.0.attention_norm.weight",
                  "layers.0.attention_norm.bias", "layers.0.attention.to_qkv.weight",
                  "layers.0.attention.to_qkv.bias", "layers.0.attention.to_out.weight",
                  "layers.0.attention.to_out.bias", "layers.0.feed_forward_norm.weight",
                  "layers.0.feed_forward_norm.bias", "layers.0.feed_forward.proj_in.weight",
                  "layers.0.feed_forward.proj_in.bias", "layers.0.feed_forward.proj_out.weight",
                  "layers.0.feed_forward.proj_out.bias", "norm.weight", "norm.bias"));
}

TEST(SparseTransformer, RefusesOptionsThatDoNotFit) {
  const auto refuses = [](void (*change)(Options&), const std::string& words) {
    Options options = sparse_cases()[0].options;
    change(options);
    expect_refusal([&] { SparseTransformer model(options); }, words);
  };
  const std::string name = "weir::SparseTransformer: ";
  refuses([](Options& o) { o.num_tokens = 0; },
          name + "expected `num_tokens` to be at least 1, but got 0.");
  refuses([](Options& o) { o.depth = 0; }, name + "expected `depth` to be at least 1, but got 0.");
  refuses([](Options& o) { o.ff_mult = 0; },
          name + "expected `dim` * `ff_mult` to lie in [1, 1073741824], but got 12 * 0.");
  refuses([](Options& o) { o.dropout = 1; },
          name + "expected `dropout` to lie in [0, 1), but got 1.");
  refuses([](Options& o) { o.attn_mode = "all;all;all"; },
          name + "expected `attn_mode` to have modes for at most the 2 layers, but got 3.");
  refuses([](Options& o) { o.layout = {"1"}; },
          name + "expected `layout` only with `attn_mode` \"custom\", but `attn_mode` is \"all\".");
  refuses([](Options& o) { o.heads = 5; },
          "weir::SparseSelfAttention: expected `heads` to divide `dim`, 12, but got 5; `dim_head` "
          "sets the size of a head freely.");
  refuses([](Options& o) { o.attn_mode = "all;local"; },
          "weir::SparseAttention: expected `local_attn_ctx` with `attn_mode` \"local\", but got "
          "none.");
  refuses(
      [](Options& o) {
        o.attn_mode = "custom";
        o.layout = {"1.", "11"};
      },
      "weir::SparseAttention: expected at most 4 positions, 2 blocks of `layout`, but got 24.");
}

TEST(SparseTransformer, RefusesInputsThatDoNotFit) {
  SparseTransformer model(sparse_cases()[0].options);
  expect_refusal([&] { model(random_tokens(1, 25)); },
                 "weir::SparseTransformer: expected at most 24 tokens per row, but got 25.");
  expect_refusal(
      [&] {
        model(at::full({1, 2}, 23, at::kLong));
      },
      "weir::SparseTransformer: expected `tokens` in [0, 23), but got 23.");
  EXPECT_EQ(model(random_tokens(2, 0)).sizes(), at::IntArrayRef({2, 0, 23}));
}

TEST(SparseTransformer, PrintsItsOptions) {
  EXPECT_THAT(nn::printed(small_model(sparse_cases()[1].options)),
              ::testing::StartsWith("weir::models::SparseTransformer(num_tokens=23, dim=12, "
                                    "seq_len=24, depth=2, attn_mode=local)("));
}

}  // namespace
}  // namespace weir::models
