// SPDX-License-Identifier: Apache-2.0
// The scalar a of coordinate descent over prefixes of a row, and its gradient.
// docs/operators/prefix_thresholds.md has the formulas. Serial over a range; the caller owns every
// byte. T is float or double.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weir::kernels {

/// What forward and backward read.
template <class T>
struct PrefixThresholdsRows {
  std::int64_t cols = 0, prefixes = 0;
  const T* scores = nullptr;              // [rows, cols]
  const std::int64_t* lengths = nullptr;  // [prefixes], ascending, at most cols
  const double* budgets = nullptr;        // [rows, prefixes]
  const double* eps = nullptr;            // iterative: [n_iters + 1]; exact: [1]
  std::int64_t n_iters = 0;               // 0: the exact solver
};

template <class T>
struct PrefixThresholdsForward {
  PrefixThresholdsRows<T> in;
  double* trace = nullptr;  // [rows, prefixes, max(n_iters, 1)]; the last of each is the threshold
};

template <class T>
struct PrefixThresholdsBackward {
  PrefixThresholdsRows<T> in;
  const double* grad = nullptr;   // [rows, prefixes], of the thresholds
  const double* trace = nullptr;  // [rows, prefixes, max(n_iters, 1)]
  T* grad_scores = nullptr;       // [rows, cols]
};

/// Scratch that one call of either function needs; enough for every T. Any alignment.
std::size_t prefix_thresholds_workspace_bytes(std::int64_t cols, std::int64_t n_iters);

/// Problems [begin, end) of rows * prefixes.
void prefix_thresholds_forward(const PrefixThresholdsForward<float>& args, std::int64_t begin,
                               std::int64_t end, std::byte* workspace);
void prefix_thresholds_forward(const PrefixThresholdsForward<double>& args, std::int64_t begin,
                               std::int64_t end, std::byte* workspace);

/// Rows [begin, end): the prefixes of a row add to the same gradient, in their order.
void prefix_thresholds_backward(const PrefixThresholdsBackward<float>& args, std::int64_t begin,
                                std::int64_t end, std::byte* workspace);
void prefix_thresholds_backward(const PrefixThresholdsBackward<double>& args, std::int64_t begin,
                                std::int64_t end, std::byte* workspace);

}  // namespace weir::kernels
