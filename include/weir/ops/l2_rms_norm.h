// SPDX-License-Identifier: Apache-2.0
// Rows of length sqrt(dim), times gamma: y = x sqrt(dim) / max(|x|, 1e-12) gamma.
//
// docs/operators/l2_rms_norm.md has the gradient and the cost.
#pragma once

#include <ATen/core/Tensor.h>

#include "weir/export.h"

namespace weir::ops {

/// `x` (..., dim) in float32, float64, bfloat16 or float16, `gamma` (dim) -> (..., dim) of the
/// dtype of `x`. Computed in float32, in float64 for float64, from one read of `x`. Throws
/// c10::Error on shapes or dtypes that do not fit.
WEIR_API at::Tensor l2_rms_norm(const at::Tensor& x, const at::Tensor& gamma);

}  // namespace weir::ops
