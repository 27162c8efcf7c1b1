// SPDX-License-Identifier: Apache-2.0
// What the backends of router_logits share: the checked sizes, and the composite.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <tuple>
#include <vector>

#include "weir/ops/router_logits.h"

namespace weir::ops {

/// The arguments of one call, checked.
struct RouterLogitsProblem {
  c10::SymInt batch, rows, routes;
  at::ScalarType compute = at::kFloat;

  std::vector<c10::SymInt> output_shape() const { return {batch, routes, rows}; }
  std::vector<c10::SymInt> lengths_shape(bool cosine) const {
    return cosine ? std::vector<c10::SymInt>{batch, rows} : std::vector<c10::SymInt>{0};
  }
};

/// Checks all tensors; the first call of the front and of every backend. Throws c10::Error.
RouterLogitsProblem router_logits_problem(const at::Tensor& x, const at::Tensor& tokens);

/// The private pair. `tokens` are of the computed type; `lengths` (batch, n) are those of x, at
/// least kernels::kLeastLength, and empty without cosine.
std::tuple<at::Tensor, at::Tensor> router_logits_composite(const at::Tensor& x,
                                                           const at::Tensor& tokens, bool cosine);
std::tuple<at::Tensor, at::Tensor> router_logits_backward_composite(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& tokens, const at::Tensor& output,
    const at::Tensor& lengths, bool cosine, bool wants_x, bool wants_tokens);

}  // namespace weir::ops
