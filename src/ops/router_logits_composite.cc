// SPDX-License-Identifier: Apache-2.0
// router_logits from ATen operators.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/matmul.h>
#include <torch/library.h>

#include "kernels/router_logits.h"
#include "ops/router_logits.h"

namespace weir::ops {

std::tuple<at::Tensor, at::Tensor> router_logits_composite(const at::Tensor& x,
                                                           const at::Tensor& tokens, bool cosine) {
  const auto problem = router_logits_problem(x, tokens);
  const at::Tensor wide = x.to(problem.compute);
  const at::Tensor products = at::matmul(tokens, wide.transpose(1, 2));  // (batch, routes, n)
  if (!cosine) return {products, at::empty({0}, wide.options())};
  const at::Tensor lengths = wide.norm(2, -1).clamp_min(kernels::kLeastLength);
  return {products / lengths.unsqueeze(1), lengths};
}

std::tuple<at::Tensor, at::Tensor> router_logits_backward_composite(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& tokens, const at::Tensor& output,
    const at::Tensor& lengths, bool cosine, bool wants_x, bool wants_tokens) {
  const auto problem = router_logits_problem(x, tokens);
  const at::Tensor wide = x.to(problem.compute);
  const at::Tensor weights = cosine ? grad / lengths.unsqueeze(1) : grad;  // (batch, routes, n)
  at::Tensor of_x = at::empty({0}, x.options()), of_tokens = at::empty({0}, tokens.options());
  if (wants_x) {
    of_x = at::matmul(weights.transpose(1, 2), tokens);
    if (cosine) {
      const at::Tensor own = (weights * output).sum(1) / lengths;  // (batch, n)
      of_x = of_x - own.masked_fill(lengths <= kernels::kLeastLength, 0).unsqueeze(-1) * wide;
    }
    of_x = of_x.to(x.scalar_type()).contiguous();
  }
  if (wants_tokens) {
    of_tokens = at::matmul(weights, wide);
    if (tokens.dim() == 2) of_tokens = of_tokens.sum(0);
    of_tokens = of_tokens.contiguous();
  }
  return {of_x, of_tokens};
}

TORCH_LIBRARY_IMPL(weir, CompositeExplicitAutograd, m) {
  m.impl("_router_logits", router_logits_composite);
  m.impl("_router_logits_backward", router_logits_backward_composite);
}

}  // namespace weir::ops
