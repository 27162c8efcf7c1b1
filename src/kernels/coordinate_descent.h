// SPDX-License-Identifier: Apache-2.0
// Soft top-k rows: y_j = exp(min(s_j + a, 0) / eps), one scalar a per row.
// docs/operators/coordinate_descent.md has the formulas. Serial over a range of rows; the caller
// owns every byte.
//
// Value is float, double, BFloat16 or Float16; the 16-bit types are computed in float.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/half.h"

namespace weir::kernels {

/// What forward and backward read.
template <class Value>
struct CoordinateDescentRows {
  std::int64_t cols = 0;
  const Value* scores = nullptr;               // [rows, cols]
  const double* budget = nullptr;              // [rows], or one value for all
  std::int64_t budget_stride = 0;              // 1, or 0
  const std::uint8_t* mask = nullptr;          // optional bytes, 1 = keep
  const std::int64_t* mask_offsets = nullptr;  // [rows]: where the mask of a row starts
  const double* eps = nullptr;                 // iterative: [n_iters + 1]; exact: [1]
  std::int64_t n_iters = 0;                    // 0: the exact solver
};

template <class Value>
struct CoordinateDescentForward {
  CoordinateDescentRows<Value> in;
  Value* output = nullptr;  // [rows, cols]
  double* trace = nullptr;  // [rows, max(n_iters, 1)]
};

template <class Value>
struct CoordinateDescentBackward {
  CoordinateDescentRows<Value> in;
  const Value* grad = nullptr;    // [rows, cols]
  const double* trace = nullptr;  // [rows, max(n_iters, 1)]
  Value* grad_scores = nullptr;   // [rows, cols]
  double* grad_budget = nullptr;  // [rows]
};

/// Scratch that one call of either function needs; enough for every Value. Any alignment.
std::size_t coordinate_descent_workspace_bytes(std::int64_t cols, std::int64_t n_iters);

void coordinate_descent_forward(const CoordinateDescentForward<float>& args, std::int64_t begin,
                                std::int64_t end, std::byte* workspace);
void coordinate_descent_forward(const CoordinateDescentForward<double>& args, std::int64_t begin,
                                std::int64_t end, std::byte* workspace);
void coordinate_descent_forward(const CoordinateDescentForward<BFloat16>& args, std::int64_t begin,
                                std::int64_t end, std::byte* workspace);
void coordinate_descent_forward(const CoordinateDescentForward<Float16>& args, std::int64_t begin,
                                std::int64_t end, std::byte* workspace);

void coordinate_descent_backward(const CoordinateDescentBackward<float>& args, std::int64_t begin,
                                 std::int64_t end, std::byte* workspace);
void coordinate_descent_backward(const CoordinateDescentBackward<double>& args, std::int64_t begin,
                                 std::int64_t end, std::byte* workspace);
void coordinate_descent_backward(const CoordinateDescentBackward<BFloat16>& args,
                                 std::int64_t begin, std::int64_t end, std::byte* workspace);
void coordinate_descent_backward(const CoordinateDescentBackward<Float16>& args, std::int64_t begin,
                                 std::int64_t end, std::byte* workspace);

}  // namespace weir::kernels
