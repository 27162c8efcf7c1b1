// SPDX-License-Identifier: Apache-2.0
// coordinate_descent on the CPU, once per instruction set. A row is brought to scratch, solved
// there and written back: one row per lane when short, one row at a time otherwise.
#include "kernels/coordinate_descent.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/flush_denormals.h"
#include "kernels/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/coordinate_descent.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/coordinate_descent_lanes-inl.h"
#include "kernels/cpu/coordinate_descent_lanes_gradient-inl.h"
#include "kernels/cpu/coordinate_descent_operands-inl.h"
#include "kernels/cpu/coordinate_descent_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {

// ---- one row at a time

template <class Value, class T>
HWY_INLINE void ForwardRow(const CoordinateDescentForward<Value>& args, std::int64_t index, T* x,
                           T* scratch) {
  const auto& in = args.in;
  const RowSolver solver = SolverOf(in, index);
  const RowStatistics<T> row = Load(in, index, x);
  SolveRow(row, solver, x, scratch, args.trace + index * solver.trace_size());
  StoreMaskedRow(x, row, static_cast<std::size_t>(in.cols), args.output + index * in.cols);
}

template <class Value, class T>
HWY_INLINE void BackwardRow(const CoordinateDescentBackward<Value>& args, std::int64_t index, T* x,
                            T* g, T* scratch, GradientTerm<T>* room) {
  const auto& in = args.in;
  const RowSolver solver = SolverOf(in, index);
  const RowStatistics<T> row = Load(in, index, x);
  LoadRow(args.grad + index * in.cols + row.first, row.span, T(0), g);
  args.grad_budget[index] =
      GradientOfRow(row, solver, args.trace + index * solver.trace_size(), x, g, scratch, room);
  StoreMaskedRow(g, row, static_cast<std::size_t>(in.cols), args.grad_scores + index * in.cols);
}

// ---- one row per lane

template <class Value, class T>
HWY_INLINE void ForwardLanes(const CoordinateDescentForward<Value>& args, std::int64_t begin,
                             std::size_t count, LaneRows<T>& rows, double* trace, T* row_scratch) {
  const auto& in = args.in;
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  LoadLanes(in, begin, count, rows, row_scratch);
  IterateLanes(rows, in.eps, in.n_iters, trace);
  HWY_ALIGN double c[kMostLanes];
  for (std::size_t lane = 0; lane < lanes; ++lane) {
    c[lane] = -trace[static_cast<std::size_t>(in.n_iters - 1) * lanes + lane];
  }
  ReadOutLanes(rows.x, rows.cols, c, in.eps[in.n_iters]);
  TransposePieces(rows.x, rows.cols);
  for (std::size_t lane = 0; lane < count; ++lane) {
    const std::int64_t index = begin + static_cast<std::int64_t>(lane);
    const RowStatistics<T>& row = rows.row[lane];
    const double idle = row.valid == 0 ? 0.0 : std::numeric_limits<double>::quiet_NaN();
    for (std::int64_t t = 0; t < in.n_iters; ++t) {
      args.trace[index * in.n_iters + t] =
          Computes(row) ? trace[static_cast<std::size_t>(t) * lanes + lane] : idle;
    }
    if (Computes(row)) {
      TakePieces(rows.x, lane, rows.cols, row_scratch);
      StoreRow(row_scratch, rows.cols, args.output + index * in.cols);
    } else {
      StoreIdleLane(in, index, row_scratch, args.output + index * in.cols);
    }
  }
}

template <class Value, class T>
HWY_INLINE void BackwardLanes(const CoordinateDescentBackward<Value>& args, std::int64_t begin,
                              std::size_t count, LaneRows<T>& rows, double* trace,
                              const LaneTerms<T>& terms, T* g, T* row_scratch) {
  const auto& in = args.in;
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  LoadLanes(in, begin, count, rows, row_scratch);
  for (std::size_t lane = 0; lane < lanes; ++lane) {
    const std::int64_t index = begin + static_cast<std::int64_t>(lane);
    const bool computes = lane < count && Computes(rows.row[lane]);
    if (computes) {
      LoadRow(args.grad + index * in.cols, rows.cols, T(0), row_scratch);
    } else {
      std::fill(row_scratch, row_scratch + Padded(rows.cols), T(0));
    }
    PutPieces(row_scratch, lane, rows.cols, g);
    for (std::int64_t t = 0; t < in.n_iters; ++t) {
      trace[static_cast<std::size_t>(t) * lanes + lane] =
          computes ? args.trace[index * in.n_iters + t] : 0;
    }
  }
  TransposePieces(g, rows.cols);
  HWY_ALIGN double grad_budget[kMostLanes];
  GradientLanes(rows, in.eps, in.n_iters, trace, terms, g, grad_budget);
  TransposePieces(g, rows.cols);
  for (std::size_t lane = 0; lane < count; ++lane) {
    const std::int64_t index = begin + static_cast<std::int64_t>(lane);
    const RowStatistics<T>& row = rows.row[lane];
    if (Computes(row)) {
      TakePieces(g, lane, rows.cols, row_scratch);
      StoreRow(row_scratch, rows.cols, args.grad_scores + index * in.cols);
      args.grad_budget[index] = SolverOf(in, index).budget_is_clamped() ? 0 : grad_budget[lane];
    } else {
      StoreIdleLane(in, index, row_scratch, args.grad_scores + index * in.cols);
      args.grad_budget[index] = row.valid == 0 ? 0 : std::numeric_limits<double>::quiet_NaN();
    }
  }
}

// ---- entry

template <class Value>
HWY_INLINE void Forward(const CoordinateDescentForward<Value>& args, std::int64_t begin,
                        std::int64_t end, std::byte* workspace) {
  using T = typename ComputeOf<Value>::type;
  const auto& in = args.in;
  const std::size_t cols = static_cast<std::size_t>(in.cols);
  Scratch scratch(workspace);
  if (SuitsLanes(in.n_iters, in.cols)) {
    const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
    LaneRows<T> rows;
    rows.x = scratch.take<T>(Padded(cols) * kMostLanes);
    rows.e = scratch.take<T>(Padded(cols) * kMostLanes);
    T* row_scratch = scratch.take<T>(Padded(cols));
    double* trace = scratch.take<double>(static_cast<std::size_t>(in.n_iters) * kMostLanes);
    for (std::int64_t i = begin; i < end; i += static_cast<std::int64_t>(lanes)) {
      const auto count = std::min(lanes, static_cast<std::size_t>(end - i));
      ForwardLanes(args, i, count, rows, trace, row_scratch);
    }
    return;
  }
  T* x = scratch.take<T>(Padded(cols));
  T* other = scratch.take<T>(ExactScratch(cols));
  for (std::int64_t i = begin; i < end; ++i) ForwardRow(args, i, x, other);
}

template <class Value>
HWY_INLINE void Backward(const CoordinateDescentBackward<Value>& args, std::int64_t begin,
                         std::int64_t end, std::byte* workspace) {
  using T = typename ComputeOf<Value>::type;
  const auto& in = args.in;
  const std::size_t cols = static_cast<std::size_t>(in.cols);
  Scratch scratch(workspace);
  if (SuitsLanes(in.n_iters, in.cols)) {
    const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
    LaneRows<T> rows;
    rows.x = scratch.take<T>(Padded(cols) * kMostLanes);
    T* g = scratch.take<T>(Padded(cols) * kMostLanes);
    T* row_scratch = scratch.take<T>(Padded(cols));
    const std::size_t steps = static_cast<std::size_t>(in.n_iters) * kMostLanes;
    double* trace = scratch.take<double>(steps);
    const LaneTerms<T> terms{.limits = scratch.take<T>(steps),
                             .coefficients = scratch.take<T>(steps)};
    for (std::int64_t i = begin; i < end; i += static_cast<std::int64_t>(lanes)) {
      const auto count = std::min(lanes, static_cast<std::size_t>(end - i));
      BackwardLanes(args, i, count, rows, trace, terms, g, row_scratch);
    }
    return;
  }
  T* x = scratch.take<T>(Padded(cols));
  T* g = scratch.take<T>(Padded(cols));
  T* y = scratch.take<T>(in.n_iters == 0 ? Padded(cols) : 0);
  auto* terms = scratch.take<GradientTerm<T>>(static_cast<std::size_t>(in.n_iters));
  for (std::int64_t i = begin; i < end; ++i) BackwardRow(args, i, x, g, y, terms);
}

#define WEIR_INSTANTIATE(Name, Value)                                                   \
  void Forward##Name(const CoordinateDescentForward<Value>& args, std::int64_t begin,   \
                     std::int64_t end, std::byte* workspace) {                          \
    Forward(args, begin, end, workspace);                                               \
  }                                                                                     \
  void Backward##Name(const CoordinateDescentBackward<Value>& args, std::int64_t begin, \
                      std::int64_t end, std::byte* workspace) {                         \
    Backward(args, begin, end, workspace);                                              \
  }
WEIR_INSTANTIATE(Float, float)
WEIR_INSTANTIATE(Double, double)
WEIR_INSTANTIATE(BFloat16, BFloat16)
WEIR_INSTANTIATE(Float16, Float16)
#undef WEIR_INSTANTIATE

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weir::kernels {

std::size_t coordinate_descent_workspace_bytes(std::int64_t cols, std::int64_t n_iters) {
  const std::size_t row = Scratch::bytes<double>(Padded(static_cast<std::size_t>(cols)) + 2048);
  const std::size_t iterations = static_cast<std::size_t>(n_iters) + 1;
  // Three rows or, for short rows, two transposed groups and a row; the trace and the terms of a
  // group, or the terms of a row.
  const bool in_lanes = HWY_STATIC_DISPATCH(SuitsLanes)(n_iters, cols);
  const std::size_t rows = in_lanes ? 2 * kMostLanes * row + row : 3 * row;
  return rows + Scratch::bytes<double>(iterations * kMostLanes * 4);
}

#define WEIR_DISPATCH(Name, Value)                                                                 \
  HWY_EXPORT(Forward##Name);                                                                       \
  HWY_EXPORT(Backward##Name);                                                                      \
  void coordinate_descent_forward(const CoordinateDescentForward<Value>& args, std::int64_t begin, \
                                  std::int64_t end, std::byte* workspace) {                        \
    const FlushDenormals guard;                                                                    \
    HWY_DYNAMIC_DISPATCH(Forward##Name)(args, begin, end, workspace);                              \
  }                                                                                                \
  void coordinate_descent_backward(const CoordinateDescentBackward<Value>& args,                   \
                                   std::int64_t begin, std::int64_t end, std::byte* workspace) {   \
    const FlushDenormals guard;                                                                    \
    HWY_DYNAMIC_DISPATCH(Backward##Name)(args, begin, end, workspace);                             \
  }
WEIR_DISPATCH(Float, float)
WEIR_DISPATCH(Double, double)
WEIR_DISPATCH(BFloat16, BFloat16)
WEIR_DISPATCH(Float16, Float16)
#undef WEIR_DISPATCH

}  // namespace weir::kernels
#endif  // HWY_ONCE
