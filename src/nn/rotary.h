// SPDX-License-Identifier: Apache-2.0
// Rotary embedding of keys and queries one by one, for attention with a cache; whole sequences are
// rotated by ops::local_attention.
//
//   y = x cos(p w) + rot(x) sin(p w),  rot(x) = (-second half of x, first half)
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace weir::nn {

/// `x` (batch, heads, m, dim) at `positions` (batch, m), by angles position * `inv_freq` (dim / 2).
at::Tensor rotated(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& inv_freq);

/// xPos: factors zeta_i^(distance / base), zeta_i = (2 i + 0.4 dim) / (1.4 dim), i and i + dim / 2
/// alike. `distances` (batch, m) -> (batch, 1, m, dim), float64.
at::Tensor xpos_factors(const at::Tensor& distances, double base, std::int64_t dim);

}  // namespace weir::nn
