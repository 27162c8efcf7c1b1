// SPDX-License-Identifier: Apache-2.0
// SelfAttention: equal to the formula, one head at a time; padding, empty inputs, names, messages.
#include "weir/nn/self_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "nn/module_contract.h"
#include "support/tolerance.h"

namespace weir::nn {
namespace {

constexpr std::int64_t kDim = 6, kHeads = 3, kDimHead = 4;

SelfAttention doubles(bool prenorm) {
  torch::manual_seed(1);
  SelfAttention module({.dim = kDim, .dim_head = kDimHead, .heads = kHeads, .prenorm = prenorm});
  randomise(*module);
  module->to(at::kDouble);
  return module;
}

/// Tokens (n, dim), all of them kept.
at::Tensor plain(SelfAttentionImpl& module, const at::Tensor& tokens) {
  at::Tensor x = tokens;
  if (module.norm) {
    x = x / x.norm(2, -1, true).clamp_min(1e-12) * std::sqrt(1.0 * kDim) * module.norm->gamma;
  }
  std::vector<at::Tensor> heads;
  for (std::int64_t h = 0; h < kHeads; ++h) {
    const auto part = [&](std::int64_t third) {
      const std::int64_t first = (third * kHeads + h) * kDimHead;
      return x.mm(module.to_qkv->weight.narrow(0, first, kDimHead).t());
    };
    const at::Tensor logits = part(0).mm(part(1).t()) / std::sqrt(1.0 * kDimHead);
    heads.push_back(logits.softmax(-1).mm(part(2)));
  }
  return at::cat(heads, -1).mm(module.to_out->weight.t());
}

TEST(SelfAttention, IsTheFormula) {
  for (const bool prenorm : {false, true}) {
    auto module = doubles(prenorm);
    for (const std::int64_t n : {1, 2, 7, 33}) {
      const at::Tensor x = at::randn({2, n, kDim}, at::kDouble), out = module(x);
      for (std::int64_t b = 0; b < 2; ++b) {
        EXPECT_LE(distance(out[b], plain(*module, x[b])), tests::kFloat64.weights);
      }
    }
    for (const auto& [batch, n] : {std::pair(2, 0), std::pair(0, 5)}) {
      EXPECT_EQ(module(at::randn({batch, n, kDim}, at::kDouble)).sizes(),
                at::IntArrayRef({batch, n, kDim}));
    }
  }
}

TEST(SelfAttention, PaddingIsNeverRead) {
  auto module = doubles(true);
  at::Tensor x = at::randn({2, 5, kDim}, at::kDouble);
  at::Tensor mask = at::ones({2, 5}, at::kBool);
  mask[0].narrow(0, 3, 2).fill_(false);
  mask[1].fill_(false);
  x.masked_fill_(mask.logical_not().unsqueeze(-1), std::numeric_limits<double>::quiet_NaN());
  const at::Tensor out = module->forward(x, {.mask = mask});
  EXPECT_LE(distance(out[0].narrow(0, 0, 3), plain(*module, x[0].narrow(0, 0, 3))),
            tests::kFloat64.weights);
  EXPECT_EQ(out[1].abs().max().item<double>(), 0);
  out.index({mask}).square().sum().backward();
  expect_gradients_everywhere(*module);
}

TEST(SelfAttention, HasThePublishedNames) {
  EXPECT_THAT(parameter_names(*doubles(true)),
              ::testing::ElementsAre("norm.gamma", "to_qkv.weight", "to_out.weight"));
  EXPECT_THAT(parameter_names(*doubles(false)),
              ::testing::ElementsAre("to_qkv.weight", "to_out.weight"));
  expect_copies_agree(doubles(true), doubles(true), at::randn({2, 4, kDim}, at::kDouble));
}

TEST(SelfAttention, RefusesWhatDoesNotFit) {
  const std::string name = "weir::SelfAttention: expected ";
  expect_refusal([] { SelfAttention module({.dim = 0}); },
                 name + "`dim` to be at least 1, but got 0.");
  expect_refusal([] { SelfAttention module({.dim = 4, .dim_head = 0}); },
                 name + "`dim_head` to be at least 1, but got 0.");
  expect_refusal([] { SelfAttention module({.dim = 4, .heads = 0}); },
                 name + "`heads` to be at least 1, but got 0.");
  SelfAttention module({.dim = 4});
  expect_refusal(
      [&] {
        module(at::randn({2, 9, 5}));
      },
      name + "`x` to have shape [batch, n, 4], but got [2, 9, 5].");
  expect_refusal(
      [&] {
        module->forward(at::randn({2, 9, 4}), {.mask = at::ones({2, 8}, at::kBool)});
      },
      name + "`mask` to have shape [2, 9] like the tokens of `x`, but got [2, 8].");
}

}  // namespace
}  // namespace weir::nn
