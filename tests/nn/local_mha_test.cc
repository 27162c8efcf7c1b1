// SPDX-License-Identifier: Apache-2.0
// LocalMHA: equal to its parts, causal to the bit, padding never read, and steps with a cache equal
// to the full pass.
#include "weir/nn/local_mha.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>

#include "nn/directional_gradients.h"
#include "nn/module_contract.h"
#include "support/tolerance.h"
#include "weir/nn/dynamic_position_bias.h"

namespace weir::nn {
namespace {

using Options = LocalMHAOptions;

// Matrices of other shapes sum in another order, and angles are those of other positions.
constexpr double kCachedFloat64 = 1e-10;
constexpr double kCachedFloat32 = 1e-5;

const Options kBase = {
    .dim = 12, .window_size = 3, .dim_head = 6, .heads = 2, .causal = true, .prenorm = true};

std::vector<Named<Options>> cases() {
  const auto with = [](auto change) {
    Options options = kBase;
    change(options);
    return options;
  };
  return {
      {"exact", kBase},
      {"buckets", with([](Options& o) { o.exact_windowsize = false; })},
      {"far", with([](Options& o) { o.look_backward = 3, o.prenorm = false; })},
      {"own_bucket", with([](Options& o) { o.look_backward = 0, o.exact_windowsize = false; })},
      {"itself", with([](Options& o) { o.look_backward = 0; })},
      {"one", with([](Options& o) { o.window_size = 1, o.look_backward = 2; })},
      {"normalised", with([](Options& o) { o.qk_rmsnorm = true, o.qk_scale = 5; })},
      {"gated", with([](Options& o) { o.gate_values_per_head = true; })},
      {"xpos", with([](Options& o) { o.use_xpos = true, o.exact_windowsize = false; })},
      {"shared", with([](Options& o) { o.shared_qk = true, o.use_rotary_pos_emb = false; })},
      {"no_rotary", with([](Options& o) { o.use_rotary_pos_emb = false; })},
  };
}

class MhaMode : public ::testing::TestWithParam<Named<Options>> {
 protected:
  MhaMode() {
    torch::manual_seed(1);
    module_ = LocalMHA(GetParam().options);
    randomise(*module_);
  }
  LocalMHA module_{nullptr};
};

TEST_P(MhaMode, IsTheSumOfItsParts) {
  const Options& o = GetParam().options;
  const at::Tensor x = at::randn({2, 10, 12});
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
  EXPECT_LE(distance(module_(x), out), tests::kFloat32.weights);
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

at::Tensor positions_of(const std::vector<std::int64_t>& lengths, std::int64_t count) {
  return at::tensor(lengths, at::kLong).unsqueeze(-1) + at::arange(count, at::kLong);
}

TEST_P(MhaMode, StepsGiveWhatTheFullPassGives) {
  torch::NoGradGuard no_grad;
  constexpr std::int64_t kLength = 64;
  const at::Tensor x = at::randn({2, kLength, 12}), table = at::randn({2, kLength});
  const std::int64_t w = GetParam().options.window_size;
  const std::int64_t span = (GetParam().options.look_backward + 1) * w;
  for (const bool biased : {false, true}) {
    for (const auto& [dtype, tolerance] :
         {std::pair(at::kFloat, kCachedFloat32), std::pair(at::kDouble, kCachedFloat64)}) {
      module_->to(dtype);
      const auto distances = biased ? std::optional(table.to(dtype)) : std::nullopt;
      LocalMHAInputs inputs;
      if (biased) inputs.attn_bias = position_bias(*distances, w, span);
      const at::Tensor expected = module_->forward(x.to(dtype), inputs);
      for (const std::int64_t chunk : {1, 2, 9, 23, 64}) {
        KeyValues past = module_->make_cache(2);
        std::vector<at::Tensor> parts;
        for (std::int64_t begin = 0; begin < kLength; begin += chunk) {
          const std::int64_t count = std::min(chunk, kLength - begin);
          parts.push_back(module_->step(x.to(dtype).narrow(1, begin, count),
                                        positions_of({begin, begin}, count), past, distances));
        }
        EXPECT_LE(distance(at::cat(parts, 1), expected), tolerance) << "chunks of " << chunk;
        const std::int64_t reach = module_->attn_fn->reach();
        EXPECT_LE(past.slots(), reach + reach / 4 + 16 + chunk);
      }
    }
  }
}

TEST_P(MhaMode, RowsOfTheCacheHaveTheirOwnLengths) {
  torch::NoGradGuard no_grad;
  module_->to(at::kDouble);
  const at::Tensor x = at::randn({3, 40, 12}, at::kDouble);
  const at::Tensor expected = module_(x);
  KeyValues past = module_->make_cache(3);
  std::vector<std::int64_t> lengths = {0, 0, 0};
  for (const std::int64_t count : {9, 5, 1, 1, 7, 1}) {
    std::vector<at::Tensor> next, wanted;
    for (std::int64_t row = 0; row < 3; ++row) {
      next.push_back(x[row].narrow(0, lengths[row], count));
      wanted.push_back(expected[row].narrow(0, lengths[row], count));
    }
    const at::Tensor found = module_->step(at::stack(next), positions_of(lengths, count), past);
    EXPECT_LE(distance(found, at::stack(wanted)), kCachedFloat64) << count;
    for (std::int64_t row = 0; row < 3; ++row) {  // cut back into the step, each its own way
      lengths[row] += count - (row == 0 ? 0 : (row * 3) % (count + 1));
    }
  }
}

TEST_P(MhaMode, CopiesAgree) {
  expect_copies_agree(module_, LocalMHA(GetParam().options), at::randn({2, 5, 12}));
}

INSTANTIATE_TEST_SUITE_P(Modes, MhaMode, ::testing::ValuesIn(cases()));

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

TEST(LocalMHA, StepsInBFloat16) {
  torch::manual_seed(1);
  for (const auto& [name, options] : cases()) {
    LocalMHA module(options);
    module->to(at::kBFloat16);
    KeyValues past = module->make_cache(1);
    const at::Tensor x = at::randn({1, 9, 12}).to(at::kBFloat16);
    const at::Tensor first = module->step(x.narrow(1, 0, 5), positions_of({0}, 5), past);
    const at::Tensor then = module->step(x.narrow(1, 5, 4), positions_of({5}, 4), past);
    EXPECT_EQ(then.scalar_type(), at::kBFloat16);
    EXPECT_LE(distance(at::cat({first, then}, 1), module(x)), 0.05) << name;  // a few roundings
  }
}

TEST(LocalMHA, ACacheCutBackTooFarIsAnError) {
  LocalMHA module(kBase);
  KeyValues past = module->make_cache(1);
  for (std::int64_t i = 0; i < 60; ++i) {
    module->step(at::randn({1, 1, 12}), positions_of({i}, 1), past);
  }
  expect_refusal(
      [&] {
        module->step(at::randn({1, 1, 12}), positions_of({20}, 1), past);
      },
      "weir::KeyValues: expected rows cut back no further than into the last step, but "
      "keys within reach of the next token are no longer held. Read the row anew.");
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
        module->step(at::randn({1, 1, 4}), positions_of({0}, 1), past);
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
