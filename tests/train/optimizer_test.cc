// SPDX-License-Identifier: Apache-2.0
// AdamW: what decays, its state under names, and states that do not fit.
#include "train/optimizer.h"

#include "config/error.h"
#include "train/small_run.h"

namespace weir::train {
namespace {

void set_gradients(torch::nn::Module& model, double value) {
  for (auto& parameter : model.parameters()) {
    parameter.mutable_grad() = at::full_like(parameter, value);
  }
}

TEST(Optimizer, OnlyMatricesDecay) {
  const auto model = small_model();
  Optimizer optimizer(*model, {.weight_decay = 0.5});
  set_gradients(*model, 0);
  const auto before = std::dynamic_pointer_cast<models::LanguageModel>(model->clone());
  optimizer.step(0.1);
  for (const auto& item : model->named_parameters()) {
    const at::Tensor old = before->named_parameters()[item.key()];
    const bool decays = item.value().dim() >= 2 && item.key().find("emb") == std::string::npos;
    EXPECT_TRUE(item.value().allclose(decays ? old * 0.95 : old)) << item.key();
  }
}

TEST(Optimizer, ClipsTheCommonNorm) {
  const auto model = small_model();
  Optimizer optimizer(*model, {.clip = 2});
  set_gradients(*model, 0.1);
  const double norm = optimizer.clip_gradients();
  double squares = 0, count = 0;
  for (const auto& parameter : model->parameters()) {
    squares += parameter.grad().square().sum().item<double>();
    count += static_cast<double>(parameter.numel());
  }
  EXPECT_NEAR(norm, 0.1 * std::sqrt(count), 1e-4);
  EXPECT_NEAR(std::sqrt(squares), 2, 1e-4);
}

TEST(Optimizer, WithoutAClipTheGradientStays) {
  const auto model = small_model();
  Optimizer optimizer(*model, {.clip = 0});
  set_gradients(*model, 100);
  EXPECT_GT(optimizer.clip_gradients(), 1000);
  EXPECT_EQ(model->parameters().front().grad().max().item<double>(), 100);
}

TEST(Optimizer, GoesOnFromItsStateBitForBit) {
  const auto model = small_model();
  Optimizer optimizer(*model, {});
  set_gradients(*model, 0.3);
  optimizer.step(0.1);
  const auto copy = std::dynamic_pointer_cast<models::LanguageModel>(model->clone());
  Optimizer other(*copy, {});
  other.load_state(optimizer.state(), "state");
  for (const double gradient : {-0.7, 0.2}) {
    for (auto [module, its_optimizer] : {std::pair(model.get(), &optimizer)}) {
      set_gradients(*module, gradient);
      its_optimizer->step(0.05);
    }
    set_gradients(*copy, gradient);
    other.step(0.05);
  }
  expect_equal_parameters(*model, *copy);
}

TEST(Optimizer, RefusesAStateThatDoesNotFit) {
  const auto model = small_model();
  Optimizer optimizer(*model, {});
  set_gradients(*model, 0.3);
  optimizer.step(0.1);
  const auto state = optimizer.state();
  const auto refuses = [&](const models::TensorMap& wrong, const std::string& words) {
    try {
      optimizer.load_state(wrong, "file");
      ADD_FAILURE() << "not refused: " << words;
    } catch (const config::InputError& error) {
      EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
    }
  };
  auto wrong = state;
  wrong["exp_avg.token_emb.weight"] = at::zeros({3});
  refuses(wrong, "file: tensor `exp_avg.token_emb.weight` does not fit");
  wrong = state;
  wrong.erase("step.token_emb.weight");
  refuses(wrong, "file: the state of parameter `token_emb.weight` is incomplete");
  wrong = state;
  wrong["exp_avg.other"] = at::zeros({3});
  refuses(wrong, "and nothing else, but got");
  optimizer.load_state(state, "file");
}

}  // namespace
}  // namespace weir::train
