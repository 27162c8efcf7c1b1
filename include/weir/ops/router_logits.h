// SPDX-License-Identifier: Apache-2.0
// Router logits: how much each route wants each token.
//
//   logit_rj = scale <t_r, x_j>;  cosine: scale <t_r, x_j> / (|t_r| |x_j|)
//
// docs/operators/router_logits.md has the gradient and the cost.
#pragma once

#include <ATen/core/Tensor.h>

#include "weir/export.h"

namespace weir::ops {

struct RouterLogitsOptions {
  bool cosine = false;
  double scale = 1;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = RouterLogitsOptions;
    field("cosine", &Self::cosine, "Divide by the lengths of token and routing token.");
    field("scale", &Self::scale, "Factor on the logits.");
  }
};

/// `x` (batch, n, dim) in float32, float64, bfloat16 or float16, `tokens` (routes, dim), or (batch,
/// routes, dim) with others for each entry of the batch -> (batch, routes, n) in float32, in
/// float64 for float64. `x` is read once as it is, forward and backward, and never converted or
/// copied as long as its last dimension is contiguous. Lengths count as 1e-12 at least. Throws
/// c10::Error on shapes, dtypes or options that do not fit.
WEIR_API at::Tensor router_logits(const at::Tensor& x, const at::Tensor& tokens,
                                  const RouterLogitsOptions& options = {});

}  // namespace weir::ops
