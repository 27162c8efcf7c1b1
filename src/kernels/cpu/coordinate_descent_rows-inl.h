// SPDX-License-Identifier: Apache-2.0
// One row of scratch, of any kind: scores to weights, and upstream gradient to gradient of the
// scores, both 0 in the padding. Rows without a valid entry, with NaN, and rows that are 1
// throughout end here.
#if defined(WEIR_KERNELS_CPU_COORDINATE_DESCENT_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_COORDINATE_DESCENT_ROWS_INL_H_
#undef WEIR_KERNELS_CPU_COORDINATE_DESCENT_ROWS_INL_H_
#else
#define WEIR_KERNELS_CPU_COORDINATE_DESCENT_ROWS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/cpu/coordinate_descent_exact-inl.h"
#include "kernels/cpu/coordinate_descent_gradient-inl.h"
#include "kernels/cpu/coordinate_descent_iterative-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {

/// What is asked of a row.
struct RowSolver {
  const double* eps = nullptr;  // iterative: [n_iters + 1]; exact: [1]
  std::int64_t n_iters = 0;     // 0: the exact solver
  double budget = 1;            // as given

  HWY_INLINE std::int64_t trace_size() const { return std::max<std::int64_t>(n_iters, 1); }
  HWY_INLINE double read_out_eps() const { return eps[n_iters]; }
  HWY_INLINE double clamped_budget() const {
    return std::isnan(budget) ? budget : std::clamp(budget, kSmallestBudget, kLargestBudget);
  }
  /// The gradient of a clamped budget is 0.
  HWY_INLINE bool budget_is_clamped() const {
    return budget < kSmallestBudget || budget > kLargestBudget;
  }
};

template <class T>
HWY_INLINE bool IsPoisoned(const RowStatistics<T>& row, double budget) {
  return row.has_nan || std::isnan(budget);
}

/// The weights of row x, whose trace is known. `y` may be `x`.
template <class T>
HWY_INLINE void WeightsOfRow(const RowStatistics<T>& row, const RowSolver& solver,
                             const double* trace, const T* x, T* y) {
  if (row.valid == 0) {
    std::fill(y, y + Padded(row.span), T(0));
  } else if (IsPoisoned(row, solver.budget)) {
    PropagateNan(x, Padded(row.span), y);
  } else {
    const double c = -trace[solver.trace_size() - 1];
    ReadOut(x, Padded(row.span), std::max(c, -kLargestBudget), solver.read_out_eps(), y);
  }
}

/// a_0 ... of the row x. `scratch` holds ExactScratch(span) elements.
template <class T>
HWY_INLINE void TraceOfRow(const RowStatistics<T>& row, const RowSolver& solver, const T* x,
                           T* scratch, double* trace) {
  if (row.valid == 0) {
    std::fill(trace, trace + solver.trace_size(), 0.0);
  } else if (IsPoisoned(row, solver.budget)) {
    std::fill(trace, trace + solver.trace_size(), std::numeric_limits<double>::quiet_NaN());
  } else if (solver.n_iters == 0) {
    trace[0] = SolveExact(x, row, solver.clamped_budget(), solver.eps[0], scratch);
  } else {
    Iterate(x, row, solver.clamped_budget(), solver.eps, solver.n_iters, scratch, trace);
  }
}

/// Scores x to weights in place, and the trace. `scratch` as above.
template <class T>
HWY_INLINE void SolveRow(const RowStatistics<T>& row, const RowSolver& solver, T* x, T* scratch,
                         double* trace) {
  TraceOfRow(row, solver, x, scratch, trace);
  WeightsOfRow(row, solver, trace, x, x);
}

/// Gradient of the weights to gradient of the scores in place of g; returns that of the budget.
/// `scratch` is as long as x, `room` has n_iters terms.
template <class T>
HWY_INLINE double GradientOfRow(const RowStatistics<T>& row, const RowSolver& solver,
                                const double* trace, const T* x, T* g, T* scratch,
                                GradientTerm<T>* room) {
  if (row.valid == 0 || std::isinf(trace[solver.trace_size() - 1])) {
    std::fill(g, g + Padded(row.span), T(0));  // nothing, or all 1: no gradient
    return 0;
  }
  if (IsPoisoned(row, solver.budget)) {
    PropagateNan(x, Padded(row.span), g);
    return std::numeric_limits<double>::quiet_NaN();
  }
  const std::size_t padded = Padded(row.span);
  double grad_budget = 0;
  if (solver.n_iters == 0) {
    grad_budget = ExactGradient(x, padded, trace[0], solver.eps[0], scratch, g);
  } else {
    const double mass =
        StartGradient(x, padded, -trace[solver.n_iters - 1], solver.read_out_eps(), g);
    GradientTerms<T> terms{.terms = room, .size = static_cast<std::size_t>(solver.n_iters)};
    grad_budget = CollectTerms(x, row, solver.clamped_budget(), solver.eps, solver.n_iters, trace,
                               mass, terms);
    SubtractTerms(x, padded, terms, g);
  }
  return solver.budget_is_clamped() ? 0 : grad_budget;
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_COORDINATE_DESCENT_ROWS_INL_H_
