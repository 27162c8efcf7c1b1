// SPDX-License-Identifier: Apache-2.0
// Square windows of a map, row by row: as entries of a batch, and back.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace weir::nn {

/// (batch, height, width, ...) -> (batch * windows, w * w, ...), a copy; `w` divides both sizes.
at::Tensor to_windows(const at::Tensor& map, std::int64_t w);

/// The inverse, into a map of `sizes` (batch, height, width, ...).
at::Tensor from_windows(const at::Tensor& windows, at::IntArrayRef sizes, std::int64_t w);

}  // namespace weir::nn
