// SPDX-License-Identifier: Apache-2.0
// The local transformer: names, composition, causality, batch rows, the cache against the full
// pass, copies, refusals, and that it learns.
#include "weir/models/local_transformer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <random>

#include "config/options.h"
#include "models/small_models.h"
#include "nn/module_contract.h"
#include "support/temporary_directory.h"
#include "support/tolerance.h"
#include "weir/models/checkpoint.h"
#include "weir/models/generate.h"

namespace weir::models {
namespace {

using nn::distance;
using nn::expect_refusal;
using Options = LocalTransformerOptions;

constexpr std::int64_t kLength = 40;  // many windows

const Options kSmall = {.num_tokens = 23,
                        .max_seq_len = kLength,
                        .dim = 12,
                        .depth = 2,
                        .local_attn_window_size = 3,
                        .dim_head = 6,
                        .heads = 2,
                        .ff_mult = 2,
                        .num_residual_streams = 3};

std::vector<nn::Named<Options>> cases() {
  const auto with = [](auto change) {
    Options options = kSmall;
    change(options);
    return options;
  };
  return {
      {"streams", kSmall},
      {"plain", with([](Options& o) { o.num_residual_streams = 1; })},
      {"bias", with([](Options& o) { o.use_dynamic_pos_bias = true; })},
      {"bias_buckets", with([](Options& o) {
         o.use_dynamic_pos_bias = true, o.exact_windowsize = false, o.look_backward = 2;
       })},
      {"all", with([](Options& o) {
         o.qk_rmsnorm = o.gate_values_per_head = o.use_xpos = true, o.exact_windowsize = false;
       })},
  };
}

LocalTransformer small(const Options& options) {
  torch::manual_seed(1);
  LocalTransformer model(options);
  nn::randomise(*model);
  return model;
}

at::Tensor random_tokens(std::int64_t batch, std::int64_t n) {
  return at::randint(23, {batch, n}, at::kLong);
}

class LocalMode : public ::testing::TestWithParam<nn::Named<Options>> {
 protected:
  LocalTransformer model_ = small(GetParam().options);
};

TEST_P(LocalMode, IsTheSumOfItsParts) {
  const Options& o = GetParam().options;
  const at::Tensor tokens = random_tokens(3, 20);
  const auto weights = model_->named_parameters();
  at::Tensor x = at::embedding(weights["token_emb.weight"], tokens) +
                 weights["pos_emb.weight"].narrow(0, 0, 20);
  nn::LocalMHAInputs inputs;
  if (o.use_dynamic_pos_bias) {
    inputs.attn_bias = model_->dynamic_pos_bias->forward(3, 3 * (1 + o.look_backward));
  }
  x = x.repeat_interleave(o.num_residual_streams, 0);
  for (const auto& entry : *model_->layers) {
    auto& layer = *entry->as<LocalLayer>();
    x = layer.attend->around(
        x, [&](const at::Tensor& y) { return layer.attention().forward(y, inputs); });
    x = layer.feed->around(x, [&](const at::Tensor& y) { return layer.feed_forward().forward(y); });
  }
  x = x.view({3, o.num_residual_streams, 20, 12}).sum(1);
  x = at::layer_norm(x, {12}, weights["to_logits.0.weight"], weights["to_logits.0.bias"]);
  x = at::linear(x, weights["to_logits.1.weight"]);
  EXPECT_LE(distance(model_(tokens), x), tests::kFloat32.weights);
}

TEST_P(LocalMode, IsCausalToTheBit) {
  torch::NoGradGuard no_grad;
  const at::Tensor tokens = random_tokens(1, 20);
  const at::Tensor before = model_(tokens);
  for (std::int64_t j = 0; j < 20; ++j) {
    at::Tensor changed = tokens.clone();
    changed[0][j] = (changed[0][j] + 1) % 23;
    const at::Tensor after = model_(changed);
    EXPECT_TRUE(after.narrow(1, 0, j).equal(before.narrow(1, 0, j))) << "position " << j;
    EXPECT_FALSE(after.narrow(1, j, 1).equal(before.narrow(1, j, 1))) << "position " << j;
  }
}

TEST_P(LocalMode, RowsOfABatchAreIndependent) {
  model_->to(at::kDouble);
  const at::Tensor tokens = random_tokens(3, 20);
  EXPECT_LE(distance(model_(tokens)[1], model_(tokens.narrow(0, 1, 1))[0]),
            tests::kFloat64.weights);
}

TEST_P(LocalMode, StepsGiveTheLogitsOfTheFullPass) {
  const at::Tensor tokens = random_tokens(2, kLength);
  for (const auto& [dtype, tolerance] :
       {std::pair(at::kFloat, kCachedFloat32), std::pair(at::kDouble, kCachedFloat64)}) {
    model_->to(dtype);
    const at::Tensor expected = model_(tokens);
    for (const std::vector<std::int64_t>& split :
         {std::vector<std::int64_t>(kLength, 1), {kLength}, {11, 1, 0, 1, 20, 7}}) {
      Cache cache = model_->make_cache(2);
      std::vector<at::Tensor> parts;
      std::int64_t begin = 0;
      for (const std::int64_t count : split) {
        parts.push_back(model_->step(tokens.narrow(1, begin, count), cache));
        begin += count;
      }
      EXPECT_LE(distance(at::cat(parts, 1), expected), tolerance) << split.size() << " steps";
      EXPECT_EQ(cache.lengths(), std::vector<std::int64_t>(2, kLength));
    }
  }
}

TEST_P(LocalMode, RowsOfTheCacheHaveTheirOwnLengths) {
  model_->to(at::kDouble);
  const at::Tensor tokens = random_tokens(3, kLength);
  const at::Tensor expected = model_(tokens);
  Cache cache = model_->make_cache(3);
  model_->step(tokens.narrow(1, 0, 16), cache);  // as if 16 were the longest of three prompts
  cache.set_lengths({2, 16, 9});
  for (int repeat = 0; repeat < 4; ++repeat) {  // then keep two rows, in another order
    if (repeat == 1) cache.keep_rows({2, 0});
    const std::vector<std::int64_t> rows =
        repeat == 0 ? std::vector<std::int64_t>{0, 1, 2} : std::vector<std::int64_t>{2, 0};
    std::vector<at::Tensor> next, wanted;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      next.push_back(tokens[rows[i]].narrow(0, cache.lengths()[i], 5));
      wanted.push_back(expected[rows[i]].narrow(0, cache.lengths()[i], 5));
    }
    EXPECT_LE(distance(model_->step(at::stack(next), cache), at::stack(wanted)), kCachedFloat64);
  }
  EXPECT_EQ(cache.lengths(), (std::vector<std::int64_t>{29, 22}));
}

TEST_P(LocalMode, CopiesAgree) {
  nn::expect_copies_agree(model_, LocalTransformer(GetParam().options), random_tokens(2, 9));
  const tests::TemporaryDirectory directory;
  save_model(directory.path(), *model_);
  const auto loaded = load_model(directory.path());
  const at::Tensor tokens = random_tokens(2, 9);
  EXPECT_TRUE(loaded->forward(tokens).equal(model_(tokens)));
}

at::Tensor next_token_loss(LocalTransformer& model, const at::Tensor& tokens) {
  const std::int64_t n = tokens.size(1) - 1;
  const at::Tensor logits = model(tokens.narrow(1, 0, n));
  return at::cross_entropy_loss(logits.flatten(0, 1), tokens.narrow(1, 1, n).flatten());
}

TEST_P(LocalMode, LearnsATinyBatchByHeart) {
  torch::manual_seed(2);
  const at::Tensor tokens = random_tokens(2, 9);
  LocalTransformer model(GetParam().options);
  torch::optim::Adam optimizer(model->parameters(), 1e-2);
  const double first = next_token_loss(model, tokens).item<double>();
  for (int step = 0; step < 60; ++step) {
    optimizer.zero_grad();
    next_token_loss(model, tokens).backward();
    optimizer.step();
    if (step == 0) {
      EXPECT_LT(next_token_loss(model, tokens).item<double>(), first);
    }
  }
  EXPECT_LT(next_token_loss(model, tokens).item<double>(), 0.1);
}

TEST_P(LocalMode, GradientsReachEveryParameter) {
  next_token_loss(model_, random_tokens(2, kLength)).backward();
  if (GetParam().options.use_dynamic_pos_bias) {
    // It adds the same to all logits of a row: the gradient is 0.
    at::Tensor bias = model_->named_parameters()["dynamic_pos_bias.mlp.4.bias"];
    EXPECT_LT(bias.grad().abs().max().item<double>(), 1e-6);
    bias.mutable_grad().fill_(1);
  }
  nn::expect_gradients_everywhere(*model_);
}

INSTANTIATE_TEST_SUITE_P(Modes, LocalMode, ::testing::ValuesIn(cases()));

/// Options, prompts and lengths from `random`.
Options random_options(std::mt19937& random) {
  const auto below = [&](std::int64_t n) { return static_cast<std::int64_t>(random() % n); };
  Options options = kSmall;
  options.depth = 1 + below(2);
  options.local_attn_window_size = 2 + below(5);
  options.look_backward = below(3);
  options.exact_windowsize = below(2) == 0;
  options.heads = 1 + below(2);
  options.num_residual_streams = 1 + below(4);
  options.use_dynamic_pos_bias = below(3) == 0;
  options.use_xpos = below(3) == 0;
  options.qk_rmsnorm = below(2) == 0;
  options.gate_values_per_head = below(2) == 0;
  options.shared_qk = below(4) == 0;
  return options;
}

TEST(LocalTransformer, GreedyTextIsTheSameWithAndWithoutTheCache) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    const Options options = random_options(random);
    torch::manual_seed(seed);
    LocalTransformer model(options);
    nn::randomise(*model);
    model->to(at::kDouble);  // ties aside, rounding decides nothing
    std::vector<std::vector<std::int64_t>> prompts(1 + random() % 3);
    for (auto& prompt : prompts) {
      prompt.resize(1 + random() % 20);
      for (auto& token : prompt) token = static_cast<std::int64_t>(random() % 23);
    }
    GenerateOptions greedy = {.max_new_tokens = 12, .temperature = 0};
    const auto cached = generate(*model, prompts, greedy);
    greedy.use_cache = false;
    const auto uncached = generate(*model, prompts, greedy);
    for (std::size_t row = 0; row < prompts.size(); ++row) {
      ASSERT_EQ(cached[row].tokens, uncached[row].tokens)
          << "seed " << seed << ", row " << row << ", " << config::to_json(options).dump();
    }
  }
}

TEST(LocalTransformer, TheCacheDoesNotGrowWithTheText) {
  LocalTransformer model(kSmall);
  Cache cache = model->make_cache(1);
  std::int64_t most = 0;
  for (std::int64_t i = 0; i < kLength; ++i) {
    model->step(random_tokens(1, 1), cache);
    most = std::max(most, cache.layers.front().slots());
  }
  EXPECT_LE(most, 3 + 17);  // a window, and what is dropped at once
}

TEST(LocalTransformer, HasThePublishedNames) {
  Options options = kSmall;
  options.depth = 1;
  options.use_dynamic_pos_bias = options.qk_rmsnorm = options.gate_values_per_head = true;
  std::vector<std::string> names = {"token_emb.weight", "pos_emb.weight", "to_logits.0.weight",
                                    "to_logits.0.bias", "to_logits.1.weight"};
  for (const char* name : {"0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"}) {
    names.push_back(std::string("dynamic_pos_bias.mlp.") + name);
  }
  for (const std::string part : {"layers.0.0.", "layers.0.1."}) {
    for (const char* name :
         {"static_alpha", "dynamic_alpha_fn", "dynamic_alpha_scale", "static_beta",
          "dynamic_beta_fn", "dynamic_beta_scale", "norm.gamma"}) {
      names.push_back(part + name);
    }
  }
  for (const char* name :
       {"0.branch.q_scale", "0.branch.k_scale", "0.branch.norm.weight", "0.branch.norm.bias",
        "0.branch.to_qkv.weight", "0.branch.to_v_gate.0.weight", "0.branch.to_v_gate.0.bias",
        "0.branch.to_out.weight", "1.branch.0.weight", "1.branch.0.bias", "1.branch.1.weight",
        "1.branch.4.weight"}) {
    names.push_back(std::string("layers.0.") + name);
  }
  EXPECT_THAT(nn::parameter_names(LocalTransformerImpl(options)),
              ::testing::UnorderedElementsAreArray(names));
  EXPECT_THAT(LocalTransformerImpl(kSmall).named_buffers().keys(),
              ::testing::ElementsAre("layers.0.0.branch.attn_fn.rel_pos.inv_freq",
                                     "layers.1.0.branch.attn_fn.rel_pos.inv_freq"));
}

TEST(LocalTransformer, RefusesWhatDoesNotFit) {
  const auto refuses = [](auto change, const std::string& words) {
    Options options = kSmall;
    change(options);
    expect_refusal([&] { LocalTransformer model(options); }, "weir::LocalTransformer: " + words);
  };
  refuses([](Options& o) { o.num_tokens = 0; },
          "expected `num_tokens` to be at least 1, but got 0.");
  refuses([](Options& o) { o.max_seq_len = 0; },
          "expected `max_seq_len` to be at least 1, but got 0.");
  refuses([](Options& o) { o.local_attn_window_size = 0; },
          "expected `local_attn_window_size` to be at least 1, but got 0.");
  refuses([](Options& o) { o.attn_dropout = 1; },
          "expected `attn_dropout` to lie in [0, 1), but got 1.");
  refuses([](Options& o) { o.causal = false; },
          "expected `causal` to be true: a language model predicts each token from those before "
          "it.");
  LocalTransformer model(kSmall);
  expect_refusal([&] { model(random_tokens(1, kLength + 1)); },
                 "weir::LocalTransformer: expected at most 40 tokens per row, but got 41.");
}

}  // namespace
}  // namespace weir::models
