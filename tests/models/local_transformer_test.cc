// SPDX-License-Identifier: Apache-2.0
// The local transformer: names, composition, causality, batch rows, copies, refusals, and that it
// learns.
#include "weir/models/local_transformer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "models/small_local_models.h"
#include "nn/module_contract.h"
#include "support/temporary_directory.h"
#include "support/tolerance.h"
#include "weir/models/checkpoint.h"

namespace weir::models {
namespace {

using nn::distance;
using nn::expect_refusal;
using Options = LocalTransformerOptions;

TEST_P(LocalMode, IsTheSumOfItsParts) {
  model_->to(at::kDouble);
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
  EXPECT_LE(distance(model_(tokens), x), tests::kFloat64.weights);
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
  next_token_loss(model_, random_tokens(2, kLocalLength)).backward();
  if (GetParam().options.use_dynamic_pos_bias) {
    // It adds the same to all logits of a row: the gradient is 0.
    at::Tensor bias = model_->named_parameters()["dynamic_pos_bias.mlp.4.bias"];
    EXPECT_LT(bias.grad().abs().max().item<double>(), 1e-6);
    bias.mutable_grad().fill_(1);
  }
  nn::expect_gradients_everywhere(*model_);
}

INSTANTIATE_TEST_SUITE_P(Modes, LocalMode, ::testing::ValuesIn(small_local_cases()));

TEST(LocalTransformer, HasThePublishedNames) {
  Options options = kSmallLocal;
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
  EXPECT_THAT(LocalTransformerImpl(kSmallLocal).named_buffers().keys(),
              ::testing::ElementsAre("layers.0.0.branch.attn_fn.rel_pos.inv_freq",
                                     "layers.1.0.branch.attn_fn.rel_pos.inv_freq"));
}

TEST(LocalTransformer, RefusesWhatDoesNotFit) {
  const auto refuses = [](auto change, const std::string& words) {
    Options options = kSmallLocal;
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
  LocalTransformer model(kSmallLocal);
  expect_refusal([&] { model(random_tokens(1, kLocalLength + 1)); },
                 "weir::LocalTransformer: expected at most 40 tokens per row, but got 41.");
}

}  // namespace
}  // namespace weir::models
