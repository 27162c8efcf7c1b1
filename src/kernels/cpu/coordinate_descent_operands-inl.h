// SPDX-License-Identifier: Apache-2.0
// From the arguments of coordinate_descent to scratch and back: a row for itself, or a group of
// rows transposed so that each has a lane.
#if defined(WEIR_KERNELS_CPU_COORDINATE_DESCENT_OPERANDS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_COORDINATE_DESCENT_OPERANDS_INL_H_
#undef WEIR_KERNELS_CPU_COORDINATE_DESCENT_OPERANDS_INL_H_
#else
#define WEIR_KERNELS_CPU_COORDINATE_DESCENT_OPERANDS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/coordinate_descent.h"
#include "kernels/cpu/coordinate_descent_lanes-inl.h"
#include "kernels/cpu/coordinate_descent_rows-inl.h"
#include "kernels/cpu/row-inl.h"
#include "kernels/cpu/transpose-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class Value>
HWY_INLINE const std::uint8_t* MaskOf(const CoordinateDescentRows<Value>& in, std::int64_t index) {
  return in.mask == nullptr ? nullptr : in.mask + in.mask_offsets[index];
}

template <class Value, class T>
HWY_INLINE RowStatistics<T> Load(const CoordinateDescentRows<Value>& in, std::int64_t index, T* x) {
  return LoadMaskedRow(in.scores + index * in.cols, MaskOf(in, index),
                       static_cast<std::size_t>(in.cols), x);
}

template <class Value>
HWY_INLINE RowSolver SolverOf(const CoordinateDescentRows<Value>& in, std::int64_t index) {
  return {.eps = in.eps, .n_iters = in.n_iters, .budget = in.budget[index * in.budget_stride]};
}

// ---- groups of rows

/// Brings rows [begin, begin + count) into lanes.
template <class Value, class T>
HWY_INLINE void LoadLanes(const CoordinateDescentRows<Value>& in, std::int64_t begin,
                          std::size_t count, LaneRows<T>& rows, T* row_scratch) {
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  rows.cols = static_cast<std::size_t>(in.cols);
  for (std::size_t lane = 0; lane < lanes; ++lane) {
    RowStatistics<T> row;
    double budget = 1;
    if (lane < count) {
      const std::int64_t index = begin + static_cast<std::int64_t>(lane);
      row = LoadWholeRow(in.scores + index * in.cols, MaskOf(in, index), rows.cols, row_scratch);
      budget = SolverOf(in, index).clamped_budget();
    }
    PutLane(row, budget, lane, row_scratch, rows);
  }
  TransposePieces(rows.x, rows.cols);
}

/// The whole row of a lane that does not compute: zeros, or NaN where it counts.
template <class Value, class T>
HWY_INLINE void StoreIdleLane(const CoordinateDescentRows<Value>& in, std::int64_t index,
                              T* row_scratch, Value* to) {
  const RowStatistics<T> row = Load(in, index, row_scratch);
  if (row.valid == 0) {
    std::fill(row_scratch, row_scratch + row.span, T(0));
  } else {
    PropagateNan(row_scratch, row.span, row_scratch);
  }
  StoreMaskedRow(row_scratch, row, static_cast<std::size_t>(in.cols), to);
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_COORDINATE_DESCENT_OPERANDS_INL_H_
