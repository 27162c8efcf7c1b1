// SPDX-License-Identifier: Apache-2.0
// The norm is bounded from below, where torch's RMSNorm adds to the mean square.
#include "weir/nn/l2_rms_norm.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/ones.h>

#include <cmath>

namespace weir::nn {

void L2RMSNormImpl::reset() { gamma = register_parameter("gamma", at::ones({dim})); }

at::Tensor L2RMSNormImpl::forward(const at::Tensor& x) {
  const at::Tensor wide = x.scalar_type() == at::kDouble ? x : x.to(at::kFloat);
  const at::Tensor length = wide.norm(2, -1, /*keepdim=*/true).clamp_min(1e-12);
  return (wide * (std::sqrt(static_cast<double>(dim)) / length) * gamma).to(x.scalar_type());
}

void L2RMSNormImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::L2RMSNorm(dim=" << dim << ")";
}

}  // namespace weir::nn
