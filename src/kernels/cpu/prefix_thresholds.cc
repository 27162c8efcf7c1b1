// SPDX-License-Identifier: Apache-2.0
// prefix_thresholds on the CPU, once per instruction set: the row solvers of coordinate_descent
// without reading out weights.
#include "kernels/prefix_thresholds.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/flush_denormals.h"
#include "kernels/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/prefix_thresholds.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/coordinate_descent_rows-inl.h"
#include "kernels/cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {

template <class T>
HWY_INLINE RowSolver SolverOf(const PrefixThresholdsRows<T>& in, std::int64_t problem) {
  return {.eps = in.eps, .n_iters = in.n_iters, .budget = in.budgets[problem]};
}

template <class T>
HWY_INLINE RowStatistics<T> LoadPrefix(const PrefixThresholdsRows<T>& in, std::int64_t row,
                                       std::int64_t prefix, T* x) {
  return LoadWholeRow(in.scores + row * in.cols, nullptr,
                      static_cast<std::size_t>(in.lengths[prefix]), x);
}

/// Takes `grad` times the gradient of one threshold to the scores x from g; both are as long as the
/// prefix. The padding behind a prefix is set to 0, hence prefixes in ascending order.
template <class T>
HWY_INLINE void SubtractGradient(const RowStatistics<T>& row, const RowSolver& solver,
                                 const double* trace, double grad, const T* x, T* g,
                                 GradientTerm<T>* room) {
  const std::size_t padded = Padded(row.span);
  const double a = trace[solver.trace_size() - 1];
  if (row.valid == 0 || std::isinf(a)) return;  // constants
  if (IsPoisoned(row, solver.budget)) {
    for (std::size_t j = 0; j < row.span; ++j) {
      if (x[j] != kNothing<T>) g[j] = std::numeric_limits<T>::quiet_NaN();
    }
    return;
  }
  GradientTerms<T> terms{.terms = room, .size = static_cast<std::size_t>(solver.trace_size())};
  if (solver.n_iters == 0) {
    std::size_t above = 0;
    const double mass = SumBelow(x, padded, -a, solver.eps[0], above);
    if (!(mass > 0)) return;  // entries of +inf alone are chosen
    terms.add(/*is_shared=*/false) = {MakeExponent<T>(-a, solver.eps[0]), RoundDown<T>(-a),
                                      static_cast<T>(grad / mass)};
  } else {
    CollectTerms(x, row, solver.clamped_budget(), solver.eps, solver.n_iters, trace, grad, terms);
  }
  SubtractTerms(x, padded, terms, g);
}

template <class T>
HWY_INLINE void Forward(const PrefixThresholdsForward<T>& args, std::int64_t begin,
                        std::int64_t end, std::byte* workspace) {
  const auto& in = args.in;
  const auto cols = static_cast<std::size_t>(in.cols);
  Scratch scratch(workspace);
  T* x = scratch.take<T>(Padded(cols));
  T* other = scratch.take<T>(ExactScratch(cols));
  for (std::int64_t problem = begin; problem < end; ++problem) {
    const RowSolver solver = SolverOf(in, problem);
    const auto row = LoadPrefix(in, problem / in.prefixes, problem % in.prefixes, x);
    TraceOfRow(row, solver, x, other, args.trace + problem * solver.trace_size());
  }
}

template <class T>
HWY_INLINE void Backward(const PrefixThresholdsBackward<T>& args, std::int64_t begin,
                         std::int64_t end, std::byte* workspace) {
  const auto& in = args.in;
  const auto cols = static_cast<std::size_t>(in.cols);
  Scratch scratch(workspace);
  T* x = scratch.take<T>(Padded(cols));
  T* g = scratch.take<T>(Padded(cols));
  auto* room = scratch.take<GradientTerm<T>>(static_cast<std::size_t>(in.n_iters) + 1);
  for (std::int64_t row = begin; row < end; ++row) {
    std::fill(g, g + Padded(cols), T(0));
    for (std::int64_t prefix = 0; prefix < in.prefixes; ++prefix) {
      const std::int64_t problem = row * in.prefixes + prefix;
      if (args.grad[problem] == 0) continue;
      const RowSolver solver = SolverOf(in, problem);
      SubtractGradient(LoadPrefix(in, row, prefix, x), solver,
                       args.trace + problem * solver.trace_size(), args.grad[problem], x, g, room);
    }
    StoreRow(g, cols, args.grad_scores + row * in.cols);
  }
}

#define WEIR_INSTANTIATE(Name, T)                                                                  \
  void Forward##Name(const PrefixThresholdsForward<T>& args, std::int64_t begin, std::int64_t end, \
                     std::byte* workspace) {                                                       \
    Forward(args, begin, end, workspace);                                                          \
  }                                                                                                \
  void Backward##Name(const PrefixThresholdsBackward<T>& args, std::int64_t begin,                 \
                      std::int64_t end, std::byte* workspace) {                                    \
    Backward(args, begin, end, workspace);                                                         \
  }
WEIR_INSTANTIATE(Float, float)
WEIR_INSTANTIATE(Double, double)
#undef WEIR_INSTANTIATE

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weir::kernels {

std::size_t prefix_thresholds_workspace_bytes(std::int64_t cols, std::int64_t n_iters) {
  const std::size_t row = Scratch::bytes<double>(Padded(static_cast<std::size_t>(cols)) + 2048);
  // Two rows, and the terms of one: six doubles at most.
  return 2 * row + Scratch::bytes<double>(6 * (static_cast<std::size_t>(n_iters) + 1));
}

#define WEIR_DISPATCH(Name, T)                                                                 \
  HWY_EXPORT(Forward##Name);                                                                   \
  HWY_EXPORT(Backward##Name);                                                                  \
  void prefix_thresholds_forward(const PrefixThresholdsForward<T>& args, std::int64_t begin,   \
                                 std::int64_t end, std::byte* workspace) {                     \
    const FlushDenormals guard;                                                                \
    HWY_DYNAMIC_DISPATCH(Forward##Name)(args, begin, end, workspace);                          \
  }                                                                                            \
  void prefix_thresholds_backward(const PrefixThresholdsBackward<T>& args, std::int64_t begin, \
                                  std::int64_t end, std::byte* workspace) {                    \
    const FlushDenormals guard;                                                                \
    HWY_DYNAMIC_DISPATCH(Backward##Name)(args, begin, end, workspace);                         \
  }
WEIR_DISPATCH(Float, float)
WEIR_DISPATCH(Double, double)
#undef WEIR_DISPATCH

}  // namespace weir::kernels
#endif  // HWY_ONCE
