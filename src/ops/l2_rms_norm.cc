// SPDX-License-Identifier: Apache-2.0
// l2_rms_norm: checks, public front, Meta and Autograd. The work on the CPU: l2_rms_norm_cpu.cc; on
// every other device: l2_rms_norm_composite.cc.
#include "ops/l2_rms_norm.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "ops/composite_gradient.h"

namespace weir::ops {
namespace {

using torch::autograd::variable_list;
using Pair = std::tuple<at::Tensor, at::Tensor>;

constexpr char kExpected[] = "weir::l2_rms_norm: expected ";

auto& forward_operator() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("weir::_l2_rms_norm", "")
                       .typed<decltype(l2_rms_norm_composite)>();
  return op;
}

auto& backward_operator() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("weir::_l2_rms_norm_backward", "")
                       .typed<decltype(l2_rms_norm_backward_composite)>();
  return op;
}

// ---- Meta

Pair forward_meta(const at::Tensor& x, const at::Tensor& gamma) {
  const auto compute = l2_rms_norm_compute(x, gamma);
  const auto rows = x.sym_sizes().slice(0, static_cast<std::size_t>(x.dim() - 1));
  return {at::empty_symint(x.sym_sizes(), x.options()),
          at::empty_symint(rows, x.options().dtype(compute))};
}

Pair backward_meta(const at::Tensor& /*grad*/, const at::Tensor& x, const at::Tensor& gamma,
                   const at::Tensor& /*lengths*/) {
  l2_rms_norm_compute(x, gamma);
  return {at::empty_symint(x.sym_sizes(), x.options()),
          at::empty_symint(gamma.sym_sizes(), gamma.options())};
}

// ---- Autograd

class L2RmsNorm : public torch::autograd::Function<L2RmsNorm> {
 public:
  static variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& x,
                               const at::Tensor& gamma) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [output, lengths] = forward_operator().call(x, gamma);
    ctx->save_for_backward({x, gamma, lengths});
    ctx->mark_non_differentiable({lengths});
    return {output, lengths};
  }

  static variable_list backward(torch::autograd::AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    variable_list result(2);
    if (!grads[0].defined()) return result;
    if (at::GradMode::is_enabled()) {  // a second derivative is wanted: differentiate the composite
      const auto composite = [](const variable_list& x) {
        return std::get<0>(l2_rms_norm_composite(x[0], x[1]));
      };
      differentiate_composite(grads[0], saved, 2, composite, result);
      return result;
    }
    std::tie(result[0], result[1]) =
        backward_operator().call(grads[0], saved[0], saved[1], saved[2]);
    return result;
  }
};

Pair forward_autograd(const at::Tensor& x, const at::Tensor& gamma) {
  auto outputs = L2RmsNorm::apply(x, gamma);
  return {outputs[0], outputs[1]};
}

TORCH_LIBRARY_IMPL(weir, CompositeImplicitAutograd, m) { m.impl("l2_rms_norm", l2_rms_norm); }
TORCH_LIBRARY_IMPL(weir, Meta, m) {
  m.impl("_l2_rms_norm", forward_meta);
  m.impl("_l2_rms_norm_backward", backward_meta);
}
TORCH_LIBRARY_IMPL(weir, Autograd, m) { m.impl("_l2_rms_norm", forward_autograd); }

}  // namespace

at::ScalarType l2_rms_norm_compute(const at::Tensor& x, const at::Tensor& gamma) {
  const auto type = x.scalar_type();
  TORCH_CHECK_VALUE(x.dim() >= 1, kExpected,
                    "`x` to have at least 1 dimension, but got a 0-dimensional tensor.");
  TORCH_CHECK_TYPE(
      type == at::kFloat || type == at::kDouble || type == at::kBFloat16 || type == at::kHalf,
      kExpected, "`x` to be float32, float64, bfloat16 or float16, but got ", type, ".");
  TORCH_CHECK_TYPE(gamma.is_floating_point(), kExpected, "`gamma` to be floating point, but got ",
                   gamma.scalar_type(), ".");
  TORCH_CHECK_VALUE(gamma.dim() == 1 && gamma.sym_size(0) == x.sym_size(-1), kExpected,
                    "`gamma` to have shape [", x.sym_size(-1),
                    "] like the last dimension of `x`, but got ", gamma.sym_sizes(), ".");
  TORCH_CHECK_VALUE(gamma.device() == x.device(), kExpected, "`gamma` on the device of `x`, ",
                    x.device(), ", but got ", gamma.device(), ".");
  return type == at::kDouble ? at::kDouble : at::kFloat;
}

at::Tensor l2_rms_norm(const at::Tensor& x, const at::Tensor& gamma) {
  const auto compute = l2_rms_norm_compute(x, gamma);
  return std::get<0>(forward_operator().call(x, gamma.to(compute)));
}

}  // namespace weir::ops
