// SPDX-License-Identifier: Apache-2.0
// Gradients of a whole module in float64: derivatives along random directions of its input and
// parameters, by central differences in place, against autograd. (support/gradcheck.h perturbs
// copies, which a module does not see, and every element, of which a module has many.)
#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "support/gradcheck.h"

namespace weir::nn {

/// `leaves` are what `loss`, a scalar, depends on.
inline void expect_directional_gradients(const std::function<at::Tensor()>& loss,
                                         const std::vector<at::Tensor>& leaves) {
  constexpr double kStep = 1e-6;
  constexpr int kDirections = 3;
  const auto gradients = torch::autograd::grad({loss()}, leaves);
  torch::NoGradGuard no_grad;
  for (std::size_t i = 0; i < leaves.size(); ++i) {
    for (int repeat = 0; repeat < kDirections; ++repeat) {
      const at::Tensor original = leaves[i].clone(), direction = at::randn_like(leaves[i]);
      const auto shifted = [&](double step) {
        leaves[i].copy_(original + step * direction);
        const double value = loss().item<double>();
        leaves[i].copy_(original);
        return value;
      };
      const double numeric = (shifted(kStep) - shifted(-kStep)) / (2 * kStep);
      const double exact = (gradients[i] * direction).sum().item<double>();
      EXPECT_NEAR(exact, numeric, tests::kGradcheckTolerance * std::max(1.0, std::abs(numeric)))
          << "leaf " << i << " of shape " << leaves[i].sizes();
    }
  }
}

}  // namespace weir::nn
