// SPDX-License-Identifier: Apache-2.0
// LocalFeedForward against the formula; names, copies, messages.
#include "weir/nn/local_feed_forward.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "nn/module_contract.h"
#include "support/tolerance.h"

namespace weir::nn {
namespace {

TEST(LocalFeedForward, IsTheFormula) {
  torch::manual_seed(1);
  LocalFeedForward module({.dim = 7, .mult = 4});
  randomise(*module);
  EXPECT_EQ(module->hidden(), 18);
  EXPECT_THAT(parameter_names(*module),
              ::testing::ElementsAre("0.weight", "0.bias", "1.weight", "4.weight"));
  const at::Tensor x = at::randn({2, 5, 7});
  const auto weights = module->named_parameters();
  const at::Tensor normed = at::layer_norm(x, {7}, weights["0.weight"], weights["0.bias"]);
  const at::Tensor hidden = normed.matmul(weights["1.weight"].t());
  const at::Tensor gate = hidden.slice(-1, 18);
  const at::Tensor units =
      hidden.slice(-1, 0, 18) * gate * 0.5 * (1 + at::erf(gate / std::sqrt(2.0)));
  EXPECT_LE(distance(module(x), units.matmul(weights["4.weight"].t())), tests::kFloat32.weights);
  expect_copies_agree(module, LocalFeedForward({.dim = 7, .mult = 4}), x);
  expect_refusal([] { LocalFeedForward({.dim = 1, .mult = 1}); },
                 "weir::LocalFeedForward: expected `dim` * `mult` * 2 / 3 to lie in [1, "
                 "1073741824], but got 1 * 1 * 2 / 3.");
}

}  // namespace
}  // namespace weir::nn
