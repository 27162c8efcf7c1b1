// SPDX-License-Identifier: Apache-2.0
// The norm is bounded from below, where torch's RMSNorm adds to the mean square.
#include "weir/nn/l2_rms_norm.h"

#include <ATen/ops/ones.h>

#include "weir/ops/l2_rms_norm.h"

namespace weir::nn {

void L2RMSNormImpl::reset() { gamma = register_parameter("gamma", at::ones({dim})); }

at::Tensor L2RMSNormImpl::forward(const at::Tensor& x) { return ops::l2_rms_norm(x, gamma); }

void L2RMSNormImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::L2RMSNorm(dim=" << dim << ")";
}

}  // namespace weir::nn
