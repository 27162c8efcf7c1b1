// SPDX-License-Identifier: Apache-2.0
// Coordinate descent: a differentiable soft top-k along the last axis.
//
//   maximise <scores, y> + eps * entropy(y)   subject to   sum(y) = budget,  0 <= y <= 1
//   y_j = exp(min(scores_j + a, 0) / eps),    one scalar a per row
//
// docs/operators/coordinate_descent.md has the iteration, the gradients and the cost.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "weir/export.h"

namespace weir::ops {

/// How `coordinate_descent` looks for the threshold of a row.
struct CoordinateDescentOptions {
  std::int64_t n_iters = 20;
  double eps = 0.1;
  std::optional<double> eps_init = std::nullopt;
  double eps_decay = 1.0;
  std::string solver = "iterative";

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = CoordinateDescentOptions;
    field("n_iters", &Self::n_iters, "Iterations of the iterative solver; at least 1.");
    field("eps", &Self::eps, "Entropy of the solution; smaller is closer to a hard top-k.");
    field("eps_init", &Self::eps_init, "Entropy of the first iteration; default: eps.");
    field("eps_decay", &Self::eps_decay, "Factor on the entropy from one iteration to the next.");
    field("solver", &Self::solver, "iterative (n_iters steps) or exact (rows sum to the budget).");
  }
};

/// The entropy with which weights are read out: `eps`, or what `n_iters` steps have brought
/// `eps_init` down to.
WEIR_API double read_out_eps(const CoordinateDescentOptions& options);

/// Soft top-k weights of `scores` (..., n) along the last axis: (..., n) in [0, 1], of the dtype of
/// `scores`. Computed in float32, in float64 for float64 scores.
///
/// `budget`, the k of top-k, is any real > 0: one number, or a tensor that broadcasts to
/// `scores.shape[:-1]`; the gradient reaches it. `mask` (bool, true = keep) broadcasts to `scores`;
/// masked entries and entries of -inf get weight 0 and gradient 0. With `solver = "exact"` a row
/// sums to its budget, or has weight 1 on all its valid entries when there are no more of them than
/// the budget. Throws c10::Error on shapes, dtypes or options that do not fit.
///
/// Qian et al. 2022, "Multi-Vector Retrieval as Sparse Alignment", arXiv:2211.01267.
WEIR_API at::Tensor coordinate_descent(const at::Tensor& scores, const at::Tensor& budget,
                                       const std::optional<at::Tensor>& mask = std::nullopt,
                                       const CoordinateDescentOptions& options = {});
WEIR_API at::Tensor coordinate_descent(const at::Tensor& scores, double budget,
                                       const std::optional<at::Tensor>& mask = std::nullopt,
                                       const CoordinateDescentOptions& options = {});

/// The same answer from ATen operators, differentiable any number of times: what runs on a device
/// that has no kernel, the tests' oracle in float64 and the benchmarks' baseline. Keeps O(n_iters)
/// vectors per row for the gradient, where `coordinate_descent` keeps n_iters scalars.
WEIR_API at::Tensor coordinate_descent_composite(
    const at::Tensor& scores, const at::Tensor& budget,
    const std::optional<at::Tensor>& mask = std::nullopt,
    const CoordinateDescentOptions& options = {});

}  // namespace weir::ops
