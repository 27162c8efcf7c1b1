// SPDX-License-Identifier: Apache-2.0
// The published iteration in its vector form, written with torch operators: autograd through it is
// the oracle for outputs and gradients, and its eager run is the peer of the benchmarks.
#pragma once

#include <torch/torch.h>

#include <limits>
#include <optional>

namespace weir::tests {

struct TextbookOptions {
  std::int64_t n_iters = 20;
  double eps = 0.1;
  std::optional<double> eps_init = std::nullopt;
  double eps_decay = 1.0;
};

/// scores (..., n), budget () or (...), mask bool (..., n) or undefined -> (..., n)
inline torch::Tensor textbook_coordinate_descent(torch::Tensor scores, const torch::Tensor& budget,
                                                 const torch::Tensor& mask,
                                                 const TextbookOptions& options) {
  const double lowest = -std::numeric_limits<double>::max();
  const torch::Tensor log_budget =
      (budget.dim() == 0 ? budget : budget.unsqueeze(-1)).clamp_min(1e-20).log();
  double eps = std::max(options.eps_init.value_or(options.eps), options.eps);
  const auto drop = [&](const torch::Tensor& x) {
    return mask.defined()
               ? x.masked_fill(~mask, x.scalar_type() == torch::kDouble ? lowest : -3.4028235e38)
               : x;
  };
  scores = drop(scores);
  torch::Tensor a, b = -scores;
  for (std::int64_t t = 0; t < options.n_iters; ++t) {
    a = eps * (log_budget - drop((scores + b) / eps).logsumexp(-1, /*keepdim=*/true));
    b = -torch::relu(scores + a);
    eps = std::max(eps * options.eps_decay, options.eps);
  }
  const torch::Tensor weights = ((scores + a + b) / eps).exp();
  return mask.defined() ? weights.masked_fill(~mask, 0) : weights;
}

}  // namespace weir::tests
