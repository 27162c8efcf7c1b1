// SPDX-License-Identifier: Apache-2.0
// Rows of length sqrt(dim), times gamma: x sqrt(dim) / max(|x|, 1e-12) gamma.
// docs/operators/l2_rms_norm.md has the gradient. The caller owns every byte and calls forward or
// backward over ranges split in any way.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/half.h"

namespace weir::kernels {

/// Compute type T: float, or double for double.
template <class Value, class T>
struct L2RmsNormForward {
  std::int64_t dim = 0;
  const Value* x = nullptr;  // [rows, dim]
  const T* gamma = nullptr;  // [dim]
  Value* output = nullptr;   // [rows, dim]
  T* lengths = nullptr;      // [rows], 1e-12 at least
};

template <class Value, class T>
struct L2RmsNormBackward {
  std::int64_t rows = 0, dim = 0;
  std::int64_t parts = 1;  // of the rows, for the gradient of gamma
  const Value* grad = nullptr;
  const Value* x = nullptr;
  const T* gamma = nullptr;
  const T* lengths = nullptr;
  Value* grad_x = nullptr;
  T* grad_gamma = nullptr;  // [parts, l2_rms_norm_row(dim)]
};

/// Entries of a row of grad_gamma: dim, up to whole vectors.
std::int64_t l2_rms_norm_row(std::int64_t dim);

/// Ranges of rows.
void l2_rms_norm_forward(const L2RmsNormForward<float, float>& args, std::int64_t begin,
                         std::int64_t end);
void l2_rms_norm_forward(const L2RmsNormForward<double, double>& args, std::int64_t begin,
                         std::int64_t end);
void l2_rms_norm_forward(const L2RmsNormForward<BFloat16, float>& args, std::int64_t begin,
                         std::int64_t end);
void l2_rms_norm_forward(const L2RmsNormForward<Float16, float>& args, std::int64_t begin,
                         std::int64_t end);

/// Ranges of parts.
void l2_rms_norm_backward(const L2RmsNormBackward<float, float>& args, std::int64_t begin,
                          std::int64_t end);
void l2_rms_norm_backward(const L2RmsNormBackward<double, double>& args, std::int64_t begin,
                          std::int64_t end);
void l2_rms_norm_backward(const L2RmsNormBackward<BFloat16, float>& args, std::int64_t begin,
                          std::int64_t end);
void l2_rms_norm_backward(const L2RmsNormBackward<Float16, float>& args, std::int64_t begin,
                          std::int64_t end);

}  // namespace weir::kernels
