// SPDX-License-Identifier: Apache-2.0
// top_k_attention: checks, public front, Meta and Autograd. The work on the CPU:
// top_k_attention_cpu.cc; on every other device: top_k_attention_composite.cc.
#include "ops/top_k_attention.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/checks.h"
#include "ops/composite_gradient.h"

namespace weir::ops {
namespace {

using torch::autograd::variable_list;

constexpr char kOp[] = "top_k_attention";
constexpr char kExpected[] = "weir::top_k_attention: expected ";

auto& forward_operator() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("weir::_top_k_attention", "")
                       .typed<decltype(keep_and_attend_composite)>();
  return op;
}

auto& backward_operator() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("weir::_top_k_attention_backward", "")
                       .typed<decltype(attend_kept_backward_composite)>();
  return op;
}

at::Tensor front(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                 std::int64_t k, const OptionalTensor& key_mask, const OptionalTensor& mask,
                 bool causal, std::optional<double> scale) {
  return top_k_attention(query, key, value, k, {key_mask, mask}, {causal, scale});
}

// ---- Meta

TopKAttentionResult forward_meta(const at::Tensor& query, const at::Tensor& key,
                                 const at::Tensor& value, const OptionalTensor& key_mask,
                                 const OptionalTensor& mask, std::int64_t k, bool causal,
                                 double scale) {
  const auto problem = top_k_attention_problem(query, key, value, key_mask, mask, k, causal, scale);
  const auto shape = problem.kept_shape();
  return {at::empty_symint(problem.attention.output_shape(), query.options()),
          at::empty_symint(shape, query.options().dtype(at::kInt)),
          at::empty_symint(shape, query.options().dtype(problem.attention.compute))};
}

TopKAttentionGradients backward_meta(const at::Tensor& /*grad*/, const at::Tensor& query,
                                     const at::Tensor& key, const at::Tensor& value,
                                     const at::Tensor& /*indices*/, const at::Tensor& /*weights*/,
                                     double /*scale*/) {
  check_attention_operands(kOp, query, key, value);
  const auto like = [](const at::Tensor& x) {
    return at::empty_symint(x.sym_sizes(), x.options());
  };
  return {like(query), like(key), like(value)};
}

// ---- Autograd

class TopKAttention : public torch::autograd::Function<TopKAttention> {
 public:
  static variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& query,
                               const at::Tensor& key, const at::Tensor& value,
                               const OptionalTensor& key_mask, const OptionalTensor& mask,
                               std::int64_t k, bool causal, double scale) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [output, indices, weights] =
        forward_operator().call(query, key, value, key_mask, mask, k, causal, scale);
    ctx->save_for_backward({query, key, value, indices, weights});
    ctx->mark_non_differentiable({indices, weights});
    ctx->saved_data["scale"] = scale;
    return {output, indices, weights};
  }

  static variable_list backward(torch::autograd::AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    variable_list result(kInputs);
    if (!grads[0].defined()) return result;
    const double scale = ctx->saved_data.at("scale").toDouble();
    if (at::GradMode::is_enabled()) {  // a second derivative is wanted: differentiate the composite
      // The choice of keys is constant almost everywhere: only what follows it is differentiated.
      const auto composite = [&](const variable_list& x) {
        return std::get<0>(attend_kept(x[0], x[1], x[2], saved[3], scale));
      };
      differentiate_composite(grads[0], saved, kDifferentiable, composite, result);
      return result;
    }
    std::tie(result[0], result[1], result[2]) =
        backward_operator().call(grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], scale);
    return result;
  }

 private:
  static constexpr std::size_t kInputs = 8, kDifferentiable = 3;
};

TopKAttentionResult forward_autograd(const at::Tensor& query, const at::Tensor& key,
                                     const at::Tensor& value, const OptionalTensor& key_mask,
                                     const OptionalTensor& mask, std::int64_t k, bool causal,
                                     double scale) {
  auto outputs = TopKAttention::apply(query, key, value, key_mask, mask, k, causal, scale);
  return {outputs[0], outputs[1], outputs[2]};
}

TORCH_LIBRARY_IMPL(weir, CompositeImplicitAutograd, m) { m.impl("top_k_attention", front); }
TORCH_LIBRARY_IMPL(weir, Meta, m) {
  m.impl("_top_k_attention", forward_meta);
  m.impl("_top_k_attention_backward", backward_meta);
}
TORCH_LIBRARY_IMPL(weir, Autograd, m) { m.impl("_top_k_attention", forward_autograd); }

}  // namespace

TopKAttentionProblem top_k_attention_problem(const at::Tensor& query, const at::Tensor& key,
                                             const at::Tensor& value,
                                             const OptionalTensor& key_mask,
                                             const OptionalTensor& mask, std::int64_t k,
                                             bool causal, double scale) {
  check_attention_operands(kOp, query, key, value);
  TORCH_CHECK_VALUE(k >= 1, kExpected, "`k` to be at least 1, but got ", k, ".");
  TORCH_CHECK_VALUE(std::isfinite(scale), kExpected, "`scale` to be finite, but got ", scale, ".");
  const c10::SymInt keys = key.sym_size(2);
  TORCH_CHECK_VALUE(keys <= std::numeric_limits<std::int32_t>::max(), kExpected,
                    "`key` to have less than 2^31 positions, but got ", keys, ".");
  check_key_mask(kOp, key_mask, query, key);
  check_pair_mask(kOp, mask, query, key);
  AttentionTensors tensors;
  tensors.key_mask = key_mask, tensors.mask = mask;
  const AttentionRule rule = {.causal = causal, .scale = scale};
  return {.attention = block_sparse_attention_problem(
              query, key, value, std::nullopt, tensors.list(), rule.integers(), rule.numbers()),
          .kept = keys.min(k)};
}

at::Tensor top_k_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           std::int64_t k, const AttentionMasks& masks,
                           const TopKAttentionOptions& options) {
  return std::get<0>(forward_operator().call(query, key, value, masks.key_mask, masks.mask, k,
                                             options.causal,
                                             attention_scale(query, options.scale)));
}

}  // namespace weir::ops
