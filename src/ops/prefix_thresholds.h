// SPDX-License-Identifier: Apache-2.0
// What every backend of prefix_thresholds shares: the checked problem and the composite.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

namespace weir::ops {

/// The arguments of one call, checked and normalised.
struct PrefixThresholdsProblem {
  std::vector<c10::SymInt> shape;  ///< (..., prefixes)
  std::vector<double> eps;         ///< as of CoordinateDescentProblem
  std::int64_t n_iters = 0;        ///< 0: the exact solver

  /// (..., prefixes, trace_size)
  std::vector<c10::SymInt> trace_shape() const;
};

/// Checks all arguments; the first call of every backend. Throws c10::Error.
PrefixThresholdsProblem prefix_thresholds_problem(const at::Tensor& scores,
                                                  const at::Tensor& budgets,
                                                  at::IntArrayRef lengths, std::int64_t n_iters,
                                                  double eps, std::optional<double> eps_init,
                                                  double eps_decay, std::string_view solver);

/// Thresholds (..., prefixes) and trace (..., prefixes, trace_size), both float64; differentiable
/// in the scores.
std::tuple<at::Tensor, at::Tensor> prefix_thresholds_composite_forward(
    const at::Tensor& scores, const at::Tensor& budgets, at::IntArrayRef lengths,
    std::int64_t n_iters, double eps, std::optional<double> eps_init, double eps_decay,
    std::string_view solver);

/// Gradient of the scores.
at::Tensor prefix_thresholds_composite_backward(const at::Tensor& grad, const at::Tensor& scores,
                                                const at::Tensor& budgets, const at::Tensor& trace,
                                                at::IntArrayRef lengths, std::int64_t n_iters,
                                                double eps, std::optional<double> eps_init,
                                                double eps_decay, std::string_view solver);

}  // namespace weir::ops
