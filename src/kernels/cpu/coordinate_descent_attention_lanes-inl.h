// SPDX-License-Identifier: Apache-2.0
// Rows of a block that are short: solved one row per lane, a group of them at a time. They enter
// and leave the lanes as pieces; what a group brings back stands where its rows of logits stood.
#if defined(WEIR_KERNELS_CPU_COORDINATE_DESCENT_ATTENTION_LANES_INL_H_) == \
    defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_COORDINATE_DESCENT_ATTENTION_LANES_INL_H_
#undef WEIR_KERNELS_CPU_COORDINATE_DESCENT_ATTENTION_LANES_INL_H_
#else
#define WEIR_KERNELS_CPU_COORDINATE_DESCENT_ATTENTION_LANES_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/coordinate_descent_lanes-inl.h"
#include "kernels/cpu/coordinate_descent_lanes_gradient-inl.h"
#include "kernels/cpu/coordinate_descent_rows-inl.h"
#include "kernels/cpu/row-inl.h"
#include "kernels/cpu/transpose-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Scratch of one group.
template <class T>
struct LaneGroup {
  LaneRows<T> rows;
  T* grads = nullptr;       // [cols, lanes]
  T* idle = nullptr;        // a row for lanes that do not compute
  double* trace = nullptr;  // [n_iters, lanes]
  LaneTerms<T> terms;
};

/// `cols` is the most that a group will have; 0 where none will be used.
template <class T>
HWY_INLINE LaneGroup<T> TakeLaneGroup(std::size_t cols, std::size_t n_iters, bool backward,
                                      Scratch& scratch) {
  const std::size_t size = Padded(cols) * kMostLanes, steps = n_iters * kMostLanes;
  LaneGroup<T> group;
  group.rows.x = scratch.take<T>(size);
  group.rows.e = scratch.take<T>(backward ? 0 : size);
  group.grads = scratch.take<T>(backward ? size : 0);
  group.idle = scratch.take<T>(Padded(cols));
  group.trace = scratch.take<double>(steps);
  group.terms.limits = scratch.take<T>(backward ? steps : 0);
  group.terms.coefficients = scratch.take<T>(backward ? steps : 0);
  return group;
}

/// Row x of the logits, -inf where nothing is seen: what stands behind its own padding, up to that
/// of the group, is written, since no other row is.
template <class T>
HWY_INLINE void EnterLane(const RowStatistics<T>& row, const RowSolver& solver, std::size_t lane,
                          T* x, LaneGroup<T>& group) {
  std::fill(x + row.span, x + std::max(row.span, Padded(group.rows.cols)), kNothing<T>);
  PutLane(row, solver.clamped_budget(), lane, x, group.rows);
}

/// A lane without a row, or with one that ends by itself.
template <class T>
HWY_INLINE void EnterIdleLane(std::size_t lane, LaneGroup<T>& group) {
  PutLane(RowStatistics<T>(), 1, lane, group.idle, group.rows);
}

/// The lane's part of `from` to row x, 0 behind it up to the padding.
template <class T>
HWY_INLINE void LeaveLane(const T* from, std::size_t lane, std::size_t cols, T* x) {
  TakePieces(from, lane, cols, x);
  std::fill(x + cols, x + Padded(cols), T(0));
}

template <class T>
HWY_INLINE void SolveLanes(const double* eps, std::int64_t n_iters, LaneGroup<T>& group) {
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  TransposePieces(group.rows.x, group.rows.cols);
  IterateLanes(group.rows, eps, n_iters, group.trace);
  HWY_ALIGN double c[kMostLanes];
  for (std::size_t lane = 0; lane < lanes; ++lane) {
    c[lane] = -group.trace[static_cast<std::size_t>(n_iters - 1) * lanes + lane];
  }
  ReadOutLanes(group.rows.x, group.rows.cols, c, eps[n_iters]);
  TransposePieces(group.rows.x, group.rows.cols);
}

/// Upstream gradients in group.grads, as pieces, to those of the scores; of the budgets to
/// `grad_budget`.
template <class T>
HWY_INLINE void DifferentiateLanes(const double* eps, std::int64_t n_iters, LaneGroup<T>& group,
                                   double* grad_budget) {
  TransposePieces(group.rows.x, group.rows.cols);
  TransposePieces(group.grads, group.rows.cols);
  GradientLanes(group.rows, eps, n_iters, group.trace, group.terms, group.grads, grad_budget);
  TransposePieces(group.grads, group.rows.cols);
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_COORDINATE_DESCENT_ATTENTION_LANES_INL_H_
