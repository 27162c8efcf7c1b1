// SPDX-License-Identifier: Apache-2.0
// Root-mean-square normalisation as the CoLT5 layers have it: x / max(|x|, 1e-12) * sqrt(dim) *
// gamma.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>

#include <cstdint>
#include <ostream>

#include "weir/export.h"

namespace weir::nn {

class WEIR_API L2RMSNormImpl : public torch::nn::Cloneable<L2RMSNormImpl> {
 public:
  explicit L2RMSNormImpl(std::int64_t dim_) : dim(dim_) { reset(); }

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// (..., dim) -> (..., dim), of the dtype of `x`; computed in float32 at least. Zeros stay zeros.
  at::Tensor forward(const at::Tensor& x);

  std::int64_t dim;
  at::Tensor gamma;  ///< (dim), starts at 1
};

TORCH_MODULE(L2RMSNorm);

}  // namespace weir::nn
