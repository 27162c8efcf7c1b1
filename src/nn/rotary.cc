// SPDX-License-Identifier: Apache-2.0
// Rotary embedding and xPos at given positions.
#include "nn/rotary.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>

namespace weir::nn {

at::Tensor rotated(const at::Tensor& x, const at::Tensor& positions, const at::Tensor& inv_freq) {
  const auto compute = x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  // In double: at position 65,536 a float32 angle is wrong by 0.004.
  const at::Tensor angles = positions.to(at::kDouble).unsqueeze(-1) * inv_freq.to(at::kDouble);
  const at::Tensor cosine = angles.cos().to(compute).unsqueeze(1);  // (batch, 1, m, dim / 2)
  const at::Tensor sine = angles.sin().to(compute).unsqueeze(1);
  const auto halves = x.to(compute).chunk(2, -1);
  return at::cat({halves[0] * cosine - halves[1] * sine, halves[1] * cosine + halves[0] * sine}, -1)
      .to(x.scalar_type());
}

at::Tensor xpos_factors(const at::Tensor& distances, double base, std::int64_t dim) {
  const at::Tensor pair = at::arange(dim / 2, distances.options().dtype(at::kDouble));
  const at::Tensor zeta =
      (2 * pair + 0.4 * static_cast<double>(dim)) / (1.4 * static_cast<double>(dim));
  const at::Tensor factors = zeta.pow(distances.to(at::kDouble).unsqueeze(-1) / base);
  return at::cat({factors, factors}, -1).unsqueeze(1);  // (batch, 1, m, dim)
}

}  // namespace weir::nn
