// SPDX-License-Identifier: Apache-2.0
// router_logits: checks, public front, Meta and Autograd. Routing tokens are few: what is done to
// them alone stands in the front. The work on the CPU: router_logits_cpu.cc; on every other device:
// router_logits_composite.cc.
#include "ops/router_logits.h"

#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <cmath>

#include "kernels/router_logits.h"
#include "ops/composite_gradient.h"

namespace weir::ops {
namespace {

using torch::autograd::variable_list;
using Pair = std::tuple<at::Tensor, at::Tensor>;

constexpr char kExpected[] = "weir::router_logits: expected ";

auto& forward_operator() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("weir::_router_logits", "")
                       .typed<decltype(router_logits_composite)>();
  return op;
}

auto& backward_operator() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("weir::_router_logits_backward", "")
                       .typed<decltype(router_logits_backward_composite)>();
  return op;
}

at::Tensor front(const at::Tensor& x, const at::Tensor& tokens, bool cosine, double scale) {
  return router_logits(x, tokens, {cosine, scale});
}

// ---- Meta

Pair forward_meta(const at::Tensor& x, const at::Tensor& tokens, bool cosine) {
  const auto problem = router_logits_problem(x, tokens);
  const auto options = x.options().dtype(problem.compute);
  return {at::empty_symint(problem.output_shape(), options),
          at::empty_symint(problem.lengths_shape(cosine), options)};
}

Pair backward_meta(const at::Tensor& /*grad*/, const at::Tensor& x, const at::Tensor& tokens,
                   const at::Tensor& /*output*/, const at::Tensor& /*lengths*/, bool /*cosine*/,
                   bool wants_x, bool wants_tokens) {
  router_logits_problem(x, tokens);
  const auto like = [](const at::Tensor& tensor, bool wanted) {
    return wanted ? at::empty_symint(tensor.sym_sizes(), tensor.options())
                  : at::empty({0}, tensor.options());
  };
  return {like(x, wants_x), like(tokens, wants_tokens)};
}

// ---- Autograd

class RouterLogits : public torch::autograd::Function<RouterLogits> {
 public:
  static variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x,
                               const at::Tensor& tokens, bool cosine) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [output, lengths] = forward_operator().call(x, tokens, cosine);
    // Callers may overwrite logits that the gradient does not read.
    ctx->save_for_backward({x, tokens, lengths, cosine ? output : lengths});
    ctx->mark_non_differentiable({lengths});
    ctx->saved_data["cosine"] = cosine;
    return {output, lengths};
  }

  static variable_list backward(torch::autograd::AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    variable_list result(3);
    if (!grads[0].defined()) return result;
    const bool cosine = ctx->saved_data.at("cosine").toBool();
    if (at::GradMode::is_enabled()) {  // a second derivative is wanted: differentiate the composite
      const auto composite = [&](const variable_list& x) {
        return std::get<0>(router_logits_composite(x[0], x[1], cosine));
      };
      differentiate_composite(grads[0], saved, 2, composite, result);
      return result;
    }
    const bool wants_x = ctx->needs_input_grad(0), wants_tokens = ctx->needs_input_grad(1);
    const auto [of_x, of_tokens] = backward_operator().call(
        grads[0], saved[0], saved[1], saved[3], saved[2], cosine, wants_x, wants_tokens);
    if (wants_x) result[0] = of_x;
    if (wants_tokens) result[1] = of_tokens;
    return result;
  }
};

Pair forward_autograd(const at::Tensor& x, const at::Tensor& tokens, bool cosine) {
  auto outputs = RouterLogits::apply(x, tokens, cosine);
  return {outputs[0], outputs[1]};
}

TORCH_LIBRARY_IMPL(weir, CompositeImplicitAutograd, m) { m.impl("router_logits", front); }
TORCH_LIBRARY_IMPL(weir, Meta, m) {
  m.impl("_router_logits", forward_meta);
  m.impl("_router_logits_backward", backward_meta);
}
TORCH_LIBRARY_IMPL(weir, Autograd, m) { m.impl("_router_logits", forward_autograd); }

}  // namespace

RouterLogitsProblem router_logits_problem(const at::Tensor& x, const at::Tensor& tokens) {
  const auto type = x.scalar_type();
  TORCH_CHECK_VALUE(x.dim() == 3, kExpected, "`x` to have shape (batch, n, dim), but got ",
                    x.sym_sizes(), ".");
  TORCH_CHECK_TYPE(
      type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf,
      kExpected, "`x` to be float32, float64, bfloat16 or float16, but got ", type, ".");
  TORCH_CHECK_TYPE(tokens.is_floating_point(), kExpected, "`tokens` to be floating point, but got ",
                   tokens.scalar_type(), ".");
  const auto shape = tokens.sym_sizes();
  const bool fits = shape.size() == 2 || (shape.size() == 3 && shape[0] == x.sym_size(0));
  TORCH_CHECK_VALUE(fits && shape.back() == x.sym_size(2), kExpected,
                    "`tokens` to have shape (routes, ", x.sym_size(2), ") or (", x.sym_size(0),
                    ", routes, ", x.sym_size(2), ") like `x`, but got ", shape, ".");
  TORCH_CHECK_VALUE(tokens.device() == x.device(), kExpected, "`tokens` on the device of `x`, ",
                    x.device(), ", but got ", tokens.device(), ".");
  return {.batch = x.sym_size(0),
          .rows = x.sym_size(1),
          .routes = shape[shape.size() - 2],
          .compute = type == at::kDouble ? at::kDouble : at::kFloat};
}

at::Tensor router_logits(const at::Tensor& x, const at::Tensor& tokens,
                         const RouterLogitsOptions& options) {
  const auto problem = router_logits_problem(x, tokens);
  TORCH_CHECK_VALUE(std::isfinite(options.scale), kExpected, "`scale` to be finite, but got ",
                    options.scale, ".");
  at::Tensor factors = tokens.to(problem.compute);
  if (options.cosine) {
    // clamp_min would do, but its gradient has no Meta kernel in C++.
    const at::Tensor lengths = factors.norm(2, -1, /*keepdim=*/true);
    factors = factors / lengths.masked_fill(lengths < kernels::kLeastLength, kernels::kLeastLength);
  }
  if (options.scale != 1) factors = factors * options.scale;
  return std::get<0>(forward_operator().call(x, factors, options.cosine));
}

}  // namespace weir::ops
