// SPDX-License-Identifier: Apache-2.0
// What every backend of coordinate_descent shares: the checked problem and the composite.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <cstdint>
#include <optional>
#include <string_view>
#include <tuple>
#include <vector>

namespace weir::ops {

enum class Solver { kIterative, kExact };

/// The arguments of one call, checked and normalised.
struct CoordinateDescentProblem {
  std::vector<c10::SymInt> row_shape;  ///< scores.shape[:-1]
  c10::SymInt cols;
  Solver solver;
  std::vector<double>
      eps;  ///< iterative: n_iters + 1 values, the last one reads out; exact: one value
  at::ScalarType compute;  ///< float64 for float64 scores, else float32

  /// Scalars kept per row: a_0 ... a_{T-1}, or the one a of the exact solution.
  std::int64_t trace_size() const {
    return solver == Solver::kExact ? 1 : static_cast<std::int64_t>(eps.size()) - 1;
  }
  /// (..., trace_size), always float64: `a / eps` amplifies the rounding of `a`.
  std::vector<c10::SymInt> trace_shape() const;
};

/// Checks the options of the solver under the name of `op`. Returns `eps` of
/// CoordinateDescentProblem.
std::vector<double> checked_schedule(const char* op, std::int64_t n_iters, double eps,
                                     std::optional<double> eps_init, double eps_decay,
                                     std::string_view solver);

/// A budget given as a number: finite and positive. Returns it as a tensor on the device of `like`.
at::Tensor checked_budget(const char* op, double budget, const at::Tensor& like);

/// Checks all arguments; the first call of every backend. Throws c10::Error.
CoordinateDescentProblem coordinate_descent_problem(const at::Tensor& scores,
                                                    const at::Tensor& budget,
                                                    const std::optional<at::Tensor>& mask,
                                                    std::int64_t n_iters, double eps,
                                                    std::optional<double> eps_init,
                                                    double eps_decay, std::string_view solver);

/// Weights (..., n) and trace (..., trace_size) from ATen operators; differentiable in scores and
/// budget.
std::tuple<at::Tensor, at::Tensor> coordinate_descent_composite_forward(
    const at::Tensor& scores, const at::Tensor& budget, const std::optional<at::Tensor>& mask,
    std::int64_t n_iters, double eps, std::optional<double> eps_init, double eps_decay,
    std::string_view solver);

/// Gradients of scores and, per row in float64, of budget, from the closed form.
std::tuple<at::Tensor, at::Tensor> coordinate_descent_composite_backward(
    const at::Tensor& grad, const at::Tensor& scores, const at::Tensor& budget,
    const std::optional<at::Tensor>& mask, const at::Tensor& trace, std::int64_t n_iters,
    double eps, std::optional<double> eps_init, double eps_decay, std::string_view solver);

}  // namespace weir::ops
