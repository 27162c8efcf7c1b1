// SPDX-License-Identifier: Apache-2.0
// Differentiable top-k: the k largest of each row, with the gradient of coordinate descent.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "weir/export.h"

namespace weir::ops {

struct TopkOptions {
  double coor_descent_k_ratio = 9.0 / 8.0;
  std::int64_t n_iters = 20;
  double eps = 0.1;
  std::optional<double> eps_init = std::nullopt;
  double eps_decay = 1.0;
  std::string solver = "iterative";
  bool non_differentiable = false;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = TopkOptions;
    field("coor_descent_k_ratio", &Self::coor_descent_k_ratio,
          "Budget of the soft top-k as a multiple of k; at least 1.");
    field("n_iters", &Self::n_iters, "Iterations of the iterative solver; at least 1.");
    field("eps", &Self::eps, "Entropy of the soft top-k; smaller is harder.");
    field("eps_init", &Self::eps_init, "Entropy of the first iteration; default: eps.");
    field("eps_decay", &Self::eps_decay, "Factor on the entropy from one iteration to the next.");
    field("solver", &Self::solver, "iterative or exact, as for coordinate_descent.");
    field("non_differentiable", &Self::non_differentiable,
          "Plain top-k; coor_descent_values and gates are undefined.");
  }
};

/// All four have shape (..., k).
struct TopkResult {
  at::Tensor values;   ///< the k largest, in descending order; carries the gradient
  at::Tensor indices;  ///< int64
  at::Tensor
      coor_descent_values;  ///< the soft top-k weights there; undefined if non-differentiable
  at::Tensor gates;         ///< 1 with the gradient of those weights, 0 where nothing valid is left
};

/// The k largest entries of each row of `scores` (..., n), 0 < k <= n. `mask` (bool, true = keep)
/// broadcasts to `scores`: masked entries are chosen last, with a value of -finfo.max and a gate of
/// 0. Scores should be unnormalised, not probabilities. Throws c10::Error on arguments that do not
/// fit.
///
/// Ainslie et al. 2023, "CoLT5", arXiv:2303.09752; the arguments are those of the published `topk`.
WEIR_API TopkResult topk(const at::Tensor& scores, std::int64_t k,
                         const std::optional<at::Tensor>& mask = std::nullopt,
                         const TopkOptions& options = {});

}  // namespace weir::ops
