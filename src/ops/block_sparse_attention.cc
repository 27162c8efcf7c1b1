// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention: public fronts, Meta and Autograd. The work on the CPU:
// block_sparse_attention_cpu.cc; on every other device: block_sparse_attention_composite.cc.
#include "weir/ops/block_sparse_attention.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "ops/block_sparse_attention.h"
#include "ops/composite_gradient.h"

namespace weir::ops {
namespace {

using Tensors = c10::List<OptionalTensor>;
using OptionalInt = std::optional<std::int64_t>;
using torch::autograd::variable_list;

constexpr char kExpected[] = "weir::block_sparse_attention: expected ";
constexpr std::int64_t kLargestBlock = 128;

auto& forward_operator() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("weir::_block_sparse_attention", "")
                       .typed<decltype(attend_composite)>();
  return op;
}

auto& backward_operator() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("weir::_block_sparse_attention_backward", "")
                       .typed<decltype(attend_composite_backward)>();
  return op;
}

// ---- public fronts

void check_options(const BlockSparseAttentionOptions& o) {
  TORCH_CHECK_VALUE(o.block_size >= 1 && o.block_size <= kLargestBlock, kExpected,
                    "`block_size` to lie in [1, ", kLargestBlock, "], but got ", o.block_size, ".");
  TORCH_CHECK_VALUE(!o.window || *o.window >= 1, kExpected, "`window` to be at least 1, but got ",
                    o.window.value_or(0), ".");
  TORCH_CHECK_VALUE(o.stride >= 1, kExpected, "`stride` to be at least 1, but got ", o.stride, ".");
  TORCH_CHECK_VALUE(o.prefix >= 0, kExpected, "`prefix` to be at least 0, but got ", o.prefix, ".");
  TORCH_CHECK_VALUE(o.local >= 0, kExpected, "`local` to be at least 0, but got ", o.local, ".");
  TORCH_CHECK_VALUE(!o.scale || std::isfinite(*o.scale), kExpected,
                    "`scale` to be finite, but got ", o.scale.value_or(0), ".");
}

AttentionRule rule_of(const at::Tensor& query, const BlockSparseAttentionOptions& o) {
  check_options(o);
  const std::int64_t reach = o.window ? *o.window - 1 : kUnlimited;
  return {.block_size = o.block_size,
          .causal = o.causal,
          .behind = reach,
          .ahead = reach,
          .stride = o.stride,
          .prefix = o.prefix,
          .local = o.local,
          .scale = attention_scale(query, o.scale)};
}

std::tuple<at::Tensor, at::Tensor> front_with_lse(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const OptionalTensor& layout, const OptionalTensor& key_mask, const OptionalTensor& mask,
    const OptionalTensor& cu_seqlens, const OptionalTensor& cu_seqlens_k,
    const OptionalTensor& document_ids, std::int64_t block_size, bool causal, OptionalInt window,
    std::int64_t stride, std::int64_t prefix, std::int64_t local, std::optional<double> scale) {
  return block_sparse_attention_with_lse(
      query, key, value, {layout, key_mask, mask, cu_seqlens, cu_seqlens_k, document_ids},
      {block_size, causal, window, stride, prefix, local, scale});
}

at::Tensor front(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                 const OptionalTensor& layout, const OptionalTensor& key_mask,
                 const OptionalTensor& mask, const OptionalTensor& cu_seqlens,
                 const OptionalTensor& cu_seqlens_k, const OptionalTensor& document_ids,
                 std::int64_t block_size, bool causal, OptionalInt window, std::int64_t stride,
                 std::int64_t prefix, std::int64_t local, std::optional<double> scale) {
  return std::get<0>(front_with_lse(query, key, value, layout, key_mask, mask, cu_seqlens,
                                    cu_seqlens_k, document_ids, block_size, causal, window, stride,
                                    prefix, local, scale));
}

// ---- Meta

std::tuple<at::Tensor, at::Tensor> forward_meta(const at::Tensor& query, const at::Tensor& key,
                                                const at::Tensor& value, const OptionalTensor& bias,
                                                const Tensors& tensors, at::IntArrayRef integers,
                                                at::ArrayRef<double> numbers) {
  const auto problem =
      block_sparse_attention_problem(query, key, value, bias, tensors, integers, numbers);
  return {at::empty_symint(problem.output_shape(), query.options()),
          at::empty_symint(problem.lse_shape(), query.options().dtype(problem.compute))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward_meta(
    const at::Tensor& /*grad*/, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const OptionalTensor& bias, const at::Tensor& /*output*/,
    const at::Tensor& /*lse*/, const Tensors& tensors, at::IntArrayRef integers,
    at::ArrayRef<double> numbers) {
  block_sparse_attention_problem(query, key, value, bias, tensors, integers, numbers);
  const auto like = [](const at::Tensor& x) {
    return at::empty_symint(x.sym_sizes(), x.options());
  };
  return {like(query), like(key), like(value),
          bias ? like(*bias) : at::empty({0}, query.options())};
}

// ---- Autograd

class BlockSparseAttention : public torch::autograd::Function<BlockSparseAttention> {
 public:
  static variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& query,
                               const at::Tensor& key, const at::Tensor& value,
                               const OptionalTensor& bias, const Tensors& tensors,
                               const std::vector<std::int64_t>& integers,
                               const std::vector<double>& numbers) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [output, lse] =
        forward_operator().call(query, key, value, bias, tensors, integers, numbers);
    variable_list saved = {query, key, value, bias.value_or(at::Tensor()), output, lse};
    for (const OptionalTensor& tensor : tensors) saved.push_back(tensor.value_or(at::Tensor()));
    ctx->save_for_backward(std::move(saved));
    ctx->mark_non_differentiable({lse});
    ctx->saved_data["integers"] = integers;
    ctx->saved_data["numbers"] = numbers;
    return {output, lse};
  }

  static variable_list backward(torch::autograd::AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    variable_list result(kInputs);
    if (!grads[0].defined()) return result;
    Tensors tensors;
    for (std::size_t i = 6; i < saved.size(); ++i) tensors.push_back(optional(saved[i]));
    const auto integers = ctx->saved_data.at("integers").toIntVector();
    const auto numbers = ctx->saved_data.at("numbers").toDoubleVector();
    if (at::GradMode::is_enabled()) {  // a second derivative is wanted: differentiate the composite
      const auto composite = [&](const variable_list& x) {
        return std::get<0>(
            attend_composite(x[0], x[1], x[2], optional(x[3]), tensors, integers, numbers));
      };
      differentiate_composite(grads[0], saved, kDifferentiable, composite, result);
      return result;
    }
    std::tie(result[0], result[1], result[2], result[3]) =
        backward_operator().call(grads[0], saved[0], saved[1], saved[2], optional(saved[3]),
                                 saved[4], saved[5], tensors, integers, numbers);
    if (!saved[3].defined()) result[3] = at::Tensor();
    return result;
  }

 private:
  static constexpr std::size_t kInputs = 7, kDifferentiable = 4;

  static OptionalTensor optional(const at::Tensor& x) {
    return x.defined() ? OptionalTensor(x) : std::nullopt;
  }
};

std::tuple<at::Tensor, at::Tensor> forward_autograd(const at::Tensor& query, const at::Tensor& key,
                                                    const at::Tensor& value,
                                                    const OptionalTensor& bias,
                                                    const Tensors& tensors,
                                                    at::IntArrayRef integers,
                                                    at::ArrayRef<double> numbers) {
  auto outputs =
      BlockSparseAttention::apply(query, key, value, bias, tensors, integers.vec(), numbers.vec());
  return {outputs[0], outputs[1]};
}

TORCH_LIBRARY_IMPL(weir, CompositeImplicitAutograd, m) {
  m.impl("block_sparse_attention", front);
  m.impl("block_sparse_attention_with_lse", front_with_lse);
}
TORCH_LIBRARY_IMPL(weir, Meta, m) {
  m.impl("_block_sparse_attention", forward_meta);
  m.impl("_block_sparse_attention_backward", backward_meta);
}
TORCH_LIBRARY_IMPL(weir, Autograd, m) { m.impl("_block_sparse_attention", forward_autograd); }

}  // namespace

std::tuple<at::Tensor, at::Tensor> attend(const at::Tensor& query, const at::Tensor& key,
                                          const at::Tensor& value, const OptionalTensor& bias,
                                          const AttentionTensors& tensors,
                                          const AttentionRule& rule) {
  return forward_operator().call(query, key, value, bias, tensors.list(), rule.integers(),
                                 rule.numbers());
}

at::Tensor block_sparse_attention(const at::Tensor& query, const at::Tensor& key,
                                  const at::Tensor& value, const BlockSparseAttentionMasks& masks,
                                  const BlockSparseAttentionOptions& options) {
  return std::get<0>(block_sparse_attention_with_lse(query, key, value, masks, options));
}

std::tuple<at::Tensor, at::Tensor> block_sparse_attention_with_lse(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const BlockSparseAttentionMasks& masks, const BlockSparseAttentionOptions& options) {
  return attend(query, key, value, std::nullopt, AttentionTensors{masks}, rule_of(query, options));
}

at::Tensor block_sparse_attention_composite(const at::Tensor& query, const at::Tensor& key,
                                            const at::Tensor& value,
                                            const BlockSparseAttentionMasks& masks,
                                            const BlockSparseAttentionOptions& options) {
  const AttentionRule rule = rule_of(query, options);
  return std::get<0>(attend_composite(query, key, value, std::nullopt,
                                      AttentionTensors{masks}.list(), rule.integers(),
                                      rule.numbers()));
}

}  // namespace weir::ops
