// SPDX-License-Identifier: Apache-2.0
// DynamicPositionBias: the MLP at every pair of positions.
#include "weir/nn/dynamic_position_bias.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "nn/module_contract.h"
#include "support/tolerance.h"

namespace weir::nn {
namespace {

TEST(DynamicPositionBias, IsTheMlpOfTheDistance) {
  torch::manual_seed(1);
  DynamicPositionBias bias({.dim = 5, .heads = 3});
  EXPECT_THAT(parameter_names(*bias),
              ::testing::ElementsAre("mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias",
                                     "mlp.4.weight", "mlp.4.bias"));
  const at::Tensor found = bias->forward(3, 7);
  ASSERT_EQ(found.sizes(), at::IntArrayRef({3, 3, 7}));
  for (std::int64_t i = 0; i < 3; ++i) {
    for (std::int64_t j = 0; j < 7; ++j) {
      const auto far = static_cast<double>(std::abs(4 + i - j));
      const at::Tensor one = bias->mlp->forward(at::full({1, 1}, far))[0];  // (heads)
      EXPECT_LE(distance(found.select(2, j).select(1, i), one), tests::kFloat32.weights);
    }
  }
  found.square().sum().backward();
  expect_gradients_everywhere(*bias);
  expect_refusal([&] { bias->forward(3, 2); },
                 "weir::DynamicPositionBias: expected the i queries among the j positions, but got "
                 "i 3 and j 2.");
}

}  // namespace
}  // namespace weir::nn
