// SPDX-License-Identifier: Apache-2.0
// l2_rms_norm from ATen operators.
#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include <cmath>

#include "ops/l2_rms_norm.h"

namespace weir::ops {
namespace {

constexpr double kLeast = 1e-12;

double target_length(const at::Tensor& x) { return std::sqrt(static_cast<double>(x.size(-1))); }

}  // namespace

std::tuple<at::Tensor, at::Tensor> l2_rms_norm_composite(const at::Tensor& x,
                                                         const at::Tensor& gamma) {
  const at::Tensor wide = x.to(l2_rms_norm_compute(x, gamma));
  const at::Tensor lengths = wide.norm(2, -1).clamp_min(kLeast);
  const at::Tensor output = wide * (target_length(x) / lengths).unsqueeze(-1) * gamma;
  return {output.to(x.scalar_type()).contiguous(), lengths};
}

std::tuple<at::Tensor, at::Tensor> l2_rms_norm_backward_composite(const at::Tensor& grad,
                                                                  const at::Tensor& x,
                                                                  const at::Tensor& gamma,
                                                                  const at::Tensor& lengths) {
  const auto compute = l2_rms_norm_compute(x, gamma);
  const at::Tensor wide = x.to(compute), upstream = grad.to(compute);
  const at::Tensor rows = lengths.unsqueeze(-1), factor = target_length(x) / rows;
  const at::Tensor inner = upstream * gamma;
  const at::Tensor along =
      ((inner * wide).sum(-1, /*keepdim=*/true) / rows / rows).masked_fill(rows <= kLeast, 0);
  const at::Tensor of_gamma = (upstream * wide * factor).sum_to_size(gamma.sizes());
  return {(factor * (inner - along * wide)).to(x.scalar_type()).contiguous(), of_gamma};
}

TORCH_LIBRARY_IMPL(weir, CompositeExplicitAutograd, m) {
  m.impl("_l2_rms_norm", l2_rms_norm_composite);
  m.impl("_l2_rms_norm_backward", l2_rms_norm_backward_composite);
}

}  // namespace weir::ops
