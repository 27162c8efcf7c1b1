// SPDX-License-Identifier: Apache-2.0
// Numeric gradients in float64: every element of every input by central differences, against
// autograd.
#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <vector>

namespace weir::tests {

using Tensors = std::vector<torch::Tensor>;

/// Central differences of step 1e-6 carry about 1e-10 of rounding and 1e-12 of curvature per unit
/// of the third derivative; the functions tested here have third derivatives up to about 1e4.
constexpr double kGradcheckTolerance = 1e-6;

/// Fails unless the gradient of sum(function(inputs) * projection), for a fixed random projection,
/// matches its numeric estimate for all elements of all inputs, relative to the largest element.
/// Inputs must be float64 and are taken as leaves.
inline void expect_gradients(const std::function<torch::Tensor(const Tensors&)>& function,
                             Tensors inputs, double tolerance = kGradcheckTolerance) {
  constexpr double kStep = 1e-6;
  for (torch::Tensor& input : inputs) input = input.detach().clone().set_requires_grad(true);
  const torch::Tensor output = function(inputs);
  const torch::Tensor projection = torch::randn_like(output);
  const auto loss = [&] { return (function(inputs) * projection).sum(); };
  const Tensors analytic =
      torch::autograd::grad({(output * projection).sum()}, inputs, {}, std::nullopt,
                            /*create_graph=*/false, /*allow_unused=*/true);
  for (std::size_t i = 0; i < inputs.size(); ++i) {
    ASSERT_EQ(inputs[i].scalar_type(), torch::kDouble);
    ASSERT_TRUE(analytic[i].defined()) << "no gradient reaches input " << i;
    torch::Tensor numeric = torch::empty({inputs[i].numel()}, torch::kDouble);
    double* values = inputs[i].data_ptr<double>();
    for (std::int64_t j = 0; j < inputs[i].numel(); ++j) {
      const double value = values[j];
      values[j] = value + kStep;
      const double above = loss().item<double>();
      values[j] = value - kStep;
      const double below = loss().item<double>();
      values[j] = value;
      numeric[j] = (above - below) / (2 * kStep);
    }
    const double scale = std::max(1.0, numeric.abs().max().item<double>());
    const double error = (analytic[i].flatten() - numeric).abs().max().item<double>();
    EXPECT_LE(error, tolerance * scale)
        << "input " << i << "\nanalytic " << analytic[i].flatten() << "\nnumeric " << numeric;
  }
}

}  // namespace weir::tests
