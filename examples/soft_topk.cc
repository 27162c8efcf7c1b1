// SPDX-License-Identifier: Apache-2.0
// Soft top-k with a learnt k: five scores share a budget of two, and the gradient reaches scores
// and k.
#include <torch/torch.h>

#include <iostream>

#include "weir/ops/coordinate_descent.h"

int main() {
  const torch::Tensor scores = torch::tensor({2.0, 0.1, 1.5, -1.0, 1.4}).requires_grad_(true);
  const torch::Tensor k = torch::tensor(2.0).requires_grad_(true);
  const torch::Tensor weights =
      weir::ops::coordinate_descent(scores, k, {}, {.eps = 0.1, .solver = "exact"});
  weights.square().sum().backward();
  std::cout << "weights " << weights << "\nsum " << weights.sum().item<float>() << "\nd/dscores "
            << scores.grad() << "\nd/dk " << k.grad().item<float>() << "\n";
}
