// SPDX-License-Identifier: Apache-2.0
// LocalMHA: equal to its parts, causal to the bit, padding never read, names, copies, messages.
#include "weir/nn/local_mha.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>

#include "nn/directional_gradients.h"
#include "nn/module_contract.h"
#include "nn/small_mha.h"
#include "support/tolerance.h"

namespace weir::nn {
namespace {

using Options = LocalMHAOptions;

TEST_P(MhaMode, IsTheSumOfItsParts) {
  const Options& o = GetParam().options;
  module_->to(at::kDouble);
  const at::Tensor x = at::randn({2, 10, 12}, at::kDouble);
  const at::Tensor y = o.prenorm ? module_->norm(x) : x;
  auto parts = module_->to_qkv(y).chunk(3, -1);
  for (auto& part : parts) part = part.unflatten(-1, {2, 6}).transpose(1, 2);
  if (o.qk_rmsnorm) {
    parts[0] = parts[0] / parts[0].norm(2, -1, true) * module_->q_scale;
    parts[1] = parts[1] / parts[1].norm(2, -1, true) * module_->k_scale;
  }
  at::Tensor out = module_->attn_fn(parts[0], parts[1], parts[2]);
  EXPECT_EQ(module_->attn_fn->options.scale.value_or(0), o.qk_rmsnorm ? o.qk_scale : 0);
  if (o.gate_values_per_head) {
    const auto weights = module_->named_parameters();
    const at::Tensor gates =
        at::linear(y, weights["to_v_gate.0.weight"], weights["to_v_gate.0.bias"]).sigmoid();
    out = out * gates.transpose(1, 2).unsqueeze(-1);
  }
  out = module_->to_out(out.transpose(1, 2).flatten(2));
  EXPECT_LE(distance(module_(x), out), tests::kFloat64.weights);
}

TEST_P(MhaMode, IsCausalToTheBit) {
  torch::NoGradGuard no_grad;
  const at::Tensor x = at::randn({1, 11, 12});
  const at::Tensor before = module_(x);
  for (std::int64_t j = 0; j < 11; ++j) {
    at::Tensor changed = x.clone();
    changed[0][j] += at::randn({12});
    const at::Tensor after = module_(changed);
    EXPECT_TRUE(after.narrow(1, 0, j).equal(before.narrow(1, 0, j))) << "position " << j;
    if (GetParam().options.shared_qk) continue;  // its own value does not count
    EXPECT_FALSE(after.narrow(1, j, 1).equal(before.narrow(1, j, 1))) << "position " << j;
  }
}

TEST_P(MhaMode, PaddingIsNeverRead) {
  module_->to(at::kDouble);
  at::Tensor x = at::randn({2, 8, 12}, at::kDouble);
  at::Tensor mask = at::ones({2, 8}, at::kBool);
  mask[0].narrow(0, 5, 3).fill_(false);
  x.masked_fill_(mask.logical_not().unsqueeze(-1), std::numeric_limits<double>::quiet_NaN());
  x.requires_grad_();
  const at::Tensor out = module_->forward(x, {.mask = mask});
  const at::Tensor alone = module_(x.detach().narrow(0, 0, 1).narrow(1, 0, 5))[0];
  EXPECT_LE(distance(out[0].narrow(0, 0, 5), alone), tests::kFloat64.weights);
  EXPECT_LE(distance(out[1], module_(x.detach().narrow(0, 1, 1))[0]), tests::kFloat64.weights);
  out.index({mask}).square().sum().backward();
  EXPECT_TRUE(x.grad().isfinite().all().item<bool>());
  EXPECT_EQ(x.grad().index({mask.logical_not()}).abs().max().item<double>(), 0);
}

TEST_P(MhaMode, GradientsAreRight) {
  module_->to(at::kDouble);
  const at::Tensor x = at::randn({2, 7, 12}, at::kDouble).requires_grad_();
  const at::Tensor probe = at::randn({2, 7, 12}, at::kDouble);
  std::vector<at::Tensor> inputs = {x};
  for (const auto& parameter : module_->parameters()) inputs.push_back(parameter);
  expect_directional_gradients([&] { return (module_(x) * probe).sum(); }, inputs);
}

TEST_P(MhaMode, CopiesAgree) {
  expect_copies_agree(module_, LocalMHA(GetParam().options), at::randn({2, 5, 12}));
}

INSTANTIATE_TEST_SUITE_P(Modes, MhaMode, ::testing::ValuesIn(small_mha_cases()));

TEST(LocalMHA, HasThePublishedNames) {
  LocalMHA module({.dim = 6,
                   .window_size = 2,
                   .prenorm = true,
                   .qk_rmsnorm = true,
                   .gate_values_per_head = true});
  EXPECT_THAT(parameter_names(*module),
              ::testing::UnorderedElementsAre("norm.weight", "norm.bias", "to_qkv.weight",
                                              "q_scale", "k_scale", "to_v_gate.0.weight",
                                              "to_v_gate.0.bias", "to_out.weight"));
  EXPECT_THAT(module->named_buffers().keys(), ::testing::ElementsAre("attn_fn.rel_pos.inv_freq"));
  EXPECT_THAT(parameter_names(*LocalMHA({.dim = 6, .window_size = 2})),
              ::testing::UnorderedElementsAre("to_qkv.weight", "to_out.weight"));
}

TEST(LocalMHA, Messages) {
  const auto refuses = [](const Options& options, const std::string& words) {
    expect_refusal([&] { LocalMHA module(options); }, words);
  };
  refuses({.window_size = 2}, "weir::LocalMHA: expected `dim` to be at least 1, but got 0.");
  refuses({.dim = 2}, "weir::LocalMHA: expected `window_size` to be at least 1, but got 0.");
  refuses({.dim = 2, .window_size = 2, .qk_rmsnorm = true, .qk_scale = 0},
          "weir::LocalMHA: expected `qk_scale` to be finite and positive, but got 0.");
  refuses({.dim = 2, .window_size = 2, .dim_head = 3},
          "weir::LocalAttention: expected `dim` to be even for the rotary embedding, but got 3.");
  LocalMHA module({.dim = 4, .window_size = 2});
  KeyValues past = module->make_cache(1);
  expect_refusal(
      [&] {
        module->step(at::randn({1, 1, 4}), at::zeros({1, 1}, at::kLong), past);
      },
      "weir::LocalMHA: expected `causal` for a step: later tokens would change earlier "
      "ones.");
  const at::Tensor x = at::randn({2, 3, 4});
  expect_refusal(
      [&] {
        module->forward(x, {.mask = at::ones({2, 4}, at::kBool)});
      },
      "weir::LocalMHA: expected `mask` to have shape [2, 3] like the tokens of `x`, but "
      "got [2, 4].");
  expect_refusal(
      [&] {
        module->forward(x, {.mask = at::ones({2, 3})});
      },
      "weir::LocalMHA: expected `mask` to be bool (true = keep), but got Float.");
}

}  // namespace
}  // namespace weir::nn
