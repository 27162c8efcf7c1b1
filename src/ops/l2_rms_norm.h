// SPDX-License-Identifier: Apache-2.0
// What the backends of l2_rms_norm share: checks, and the composite.
#pragma once

#include <ATen/core/Tensor.h>

#include <tuple>

#include "weir/ops/l2_rms_norm.h"

namespace weir::ops {

/// Checks both tensors and gives the dtype to compute in; the first call of the front and of every
/// backend. Throws c10::Error.
at::ScalarType l2_rms_norm_compute(const at::Tensor& x, const at::Tensor& gamma);

/// The private pair. `gamma` is of the computed type; `lengths` (...) are those of the rows, at
/// least 1e-12.
std::tuple<at::Tensor, at::Tensor> l2_rms_norm_composite(const at::Tensor& x,
                                                         const at::Tensor& gamma);
std::tuple<at::Tensor, at::Tensor> l2_rms_norm_backward_composite(const at::Tensor& grad,
                                                                  const at::Tensor& x,
                                                                  const at::Tensor& gamma,
                                                                  const at::Tensor& lengths);

}  // namespace weir::ops
