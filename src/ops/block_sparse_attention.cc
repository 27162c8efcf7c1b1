// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention: checks, public fronts, Meta and Autograd. The work on the CPU:
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
#include "ops/checks.h"

namespace weir::ops {
namespace {

using Problem = BlockSparseAttentionProblem;
using OptionalTensor = std::optional<at::Tensor>;
using OptionalInt = std::optional<std::int64_t>;
using Sizes = std::vector<c10::SymInt>;

constexpr char kExpected[] = "weir::block_sparse_attention: expected ";
constexpr std::int64_t kLargestBlock = 128;

void check_options(std::int64_t block_size, OptionalInt window, std::int64_t stride,
                   std::int64_t prefix, std::optional<double> scale) {
  TORCH_CHECK_VALUE(block_size >= 1 && block_size <= kLargestBlock, kExpected,
                    "`block_size` to lie in [1, ", kLargestBlock, "], but got ", block_size, ".");
  TORCH_CHECK_VALUE(!window || *window >= 1, kExpected, "`window` to be at least 1, but got ",
                    window.value_or(0), ".");
  TORCH_CHECK_VALUE(stride >= 1, kExpected, "`stride` to be at least 1, but got ", stride, ".");
  TORCH_CHECK_VALUE(prefix >= 0, kExpected, "`prefix` to be at least 0, but got ", prefix, ".");
  TORCH_CHECK_VALUE(!scale || std::isfinite(*scale), kExpected, "`scale` to be finite, but got ",
                    scale.value_or(0), ".");
}

void check_device(const char* name, const at::Tensor& tensor, const at::Tensor& query) {
  TORCH_CHECK_VALUE(tensor.device() == query.device(), kExpected, "`", name,
                    "` on the device of `query`, ", query.device(), ", but got ", tensor.device(),
                    ".");
}

void check_operand(const char* name, const char* shape, const at::Tensor& tensor,
                   const at::Tensor& query) {
  TORCH_CHECK_VALUE(tensor.dim() == 4, kExpected, "`", name, "` to have shape ", shape,
                    ", but got ", tensor.sym_sizes(), ".");
  TORCH_CHECK_TYPE(tensor.scalar_type() == query.scalar_type(), kExpected, "`", name,
                   "` to have the dtype of `query`, ", query.scalar_type(), ", but got ",
                   tensor.scalar_type(), ".");
  check_device(name, tensor, query);
}

void check_operands(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  check_operand("query", "(batch, heads, n, dim)", query, query);
  TORCH_CHECK_TYPE(query.is_floating_point(), kExpected, "`query` to be floating point, but got ",
                   query.scalar_type(), ".");
  check_operand("key", "(batch, kv_heads, m, dim)", key, query);
  check_operand("value", "(batch, kv_heads, m, value_dim)", value, query);
  const auto q = query.sym_sizes(), k = key.sym_sizes(), v = value.sym_sizes();
  TORCH_CHECK_VALUE(q[3] >= 1, kExpected,
                    "the last dimension of `query` to be at least 1, but got ", q, ".");
  TORCH_CHECK_VALUE(k[0] == q[0] && k[3] == q[3], kExpected, "`key` to have batch ", q[0],
                    " and dim ", q[3], " like `query`, but got ", k, ".");
  TORCH_CHECK_VALUE(k[1] == q[1] || (k[1] >= 1 && q[1] % k[1] == 0), kExpected,
                    "the heads of `key` to divide those of `query`, ", q[1], ", but got ", k[1],
                    ".");
  TORCH_CHECK_VALUE(v.slice(0, 3) == k.slice(0, 3), kExpected, "`value` to have shape ",
                    k.slice(0, 3), " like `key` in its first 3 dimensions, but got ", v, ".");
}

void check_bool(const char* name, const at::Tensor& mask, const at::Tensor& query) {
  TORCH_CHECK_TYPE(mask.scalar_type() == at::kBool, kExpected, "`", name,
                   "` to be bool (true = keep), but got ", mask.scalar_type(), ".");
  check_device(name, mask, query);
}

void check_layout(const Problem& problem, const at::Tensor& layout, const at::Tensor& query) {
  check_bool("layout", layout, query);
  const auto blocks = [&](const c10::SymInt& positions) {
    return (positions + (problem.block_size - 1)) / problem.block_size;
  };
  const Sizes shared = {blocks(problem.queries), blocks(problem.keys)};
  const Sizes per_head = {problem.heads, shared[0], shared[1]};
  const auto shape = layout.sym_sizes();
  TORCH_CHECK_VALUE(shape == c10::SymIntArrayRef(shared) || shape == c10::SymIntArrayRef(per_head),
                    kExpected, "`layout` to have shape ", c10::SymIntArrayRef(shared), " or ",
                    c10::SymIntArrayRef(per_head), " for blocks of ", problem.block_size,
                    ", but got ", shape, ".");
}

void check_masks(const Problem& problem, const at::Tensor& query, const OptionalTensor& layout,
                 const OptionalTensor& key_mask, const OptionalTensor& mask) {
  if (layout) check_layout(problem, *layout, query);
  if (key_mask) {
    check_bool("key_mask", *key_mask, query);
    const Sizes expected = {problem.batch, problem.keys};
    TORCH_CHECK_VALUE(key_mask->sym_sizes() == c10::SymIntArrayRef(expected), kExpected,
                      "`key_mask` to have shape ", c10::SymIntArrayRef(expected), ", but got ",
                      key_mask->sym_sizes(), ".");
  }
  if (mask) {
    check_bool("mask", *mask, query);
    const Sizes target = {problem.batch, problem.heads, problem.queries, problem.keys};
    TORCH_CHECK_VALUE(broadcasts_to(mask->sym_sizes(), target), kExpected,
                      "`mask` to broadcast to ", c10::SymIntArrayRef(target), ", but got ",
                      mask->sym_sizes(), ".");
  }
}

/// Window, stride and prefix no larger than tells anything apart, so that no backend overflows.
void limit_options(Problem& problem) {
  const auto queries = problem.queries.maybe_as_int(), keys = problem.keys.maybe_as_int();
  if (!queries || !keys) return;  // symbolic: nothing is computed
  const std::int64_t limit = std::max<std::int64_t>(1, *queries + *keys);
  for (std::int64_t* x : {&problem.window, &problem.stride, &problem.prefix}) {
    *x = std::min(*x, limit);
  }
}

}  // namespace

BlockSparseAttentionProblem block_sparse_attention_problem(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const OptionalTensor& layout, const OptionalTensor& key_mask, const OptionalTensor& mask,
    std::int64_t block_size, bool causal, OptionalInt window, std::int64_t stride,
    std::int64_t prefix, std::optional<double> scale) {
  check_options(block_size, window, stride, prefix, scale);
  check_operands(query, key, value);
  Problem problem = {.batch = query.sym_size(0),
                     .heads = query.sym_size(1),
                     .kv_heads = key.sym_size(1),
                     .queries = query.sym_size(2),
                     .keys = key.sym_size(2),
                     .dim = query.sym_size(3),
                     .value_dim = value.sym_size(3),
                     .block_size = block_size,
                     .causal = causal,
                     .window = window.value_or(0),
                     .stride = stride,
                     .prefix = prefix,
                     .compute = query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat};
  const std::int64_t dim = problem.dim.guard_int(__FILE__, __LINE__);
  problem.scale = scale.value_or(1 / std::sqrt(static_cast<double>(dim)));
  check_masks(problem, query, layout, key_mask, mask);
  limit_options(problem);
  return problem;
}

namespace {

using Forward = decltype(block_sparse_attention_composite_forward);
using Backward = decltype(block_sparse_attention_composite_backward);

auto& forward_operator() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("weir::_block_sparse_attention", "")
                       .typed<Forward>();
  return op;
}

auto& backward_operator() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("weir::_block_sparse_attention_backward", "")
                       .typed<Backward>();
  return op;
}

// ---- public fronts

std::tuple<at::Tensor, at::Tensor> front_with_lse(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const OptionalTensor& layout, const OptionalTensor& key_mask, const OptionalTensor& mask,
    std::int64_t block_size, bool causal, OptionalInt window, std::int64_t stride,
    std::int64_t prefix, std::optional<double> scale) {
  return forward_operator().call(query, key, value, layout, key_mask, mask, block_size, causal,
                                 window, stride, prefix, scale);
}

at::Tensor front(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                 const OptionalTensor& layout, const OptionalTensor& key_mask,
                 const OptionalTensor& mask, std::int64_t block_size, bool causal,
                 OptionalInt window, std::int64_t stride, std::int64_t prefix,
                 std::optional<double> scale) {
  return std::get<0>(front_with_lse(query, key, value, layout, key_mask, mask, block_size, causal,
                                    window, stride, prefix, scale));
}

/// `function`, any of those above, with the masks and options out of their structs.
template <class Function>
auto unpacked(const Function& function, const at::Tensor& query, const at::Tensor& key,
              const at::Tensor& value, const BlockSparseAttentionMasks& masks,
              const BlockSparseAttentionOptions& o) {
  return function(query, key, value, masks.layout, masks.key_mask, masks.mask, o.block_size,
                  o.causal, o.window, o.stride, o.prefix, o.scale);
}

// ---- Meta

std::tuple<at::Tensor, at::Tensor> forward_meta(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const OptionalTensor& layout, const OptionalTensor& key_mask, const OptionalTensor& mask,
    std::int64_t block_size, bool causal, OptionalInt window, std::int64_t stride,
    std::int64_t prefix, std::optional<double> scale) {
  const Problem problem = block_sparse_attention_problem(
      query, key, value, layout, key_mask, mask, block_size, causal, window, stride, prefix, scale);
  return {at::empty_symint(problem.output_shape(), query.options()),
          at::empty_symint(problem.lse_shape(), query.options().dtype(problem.compute))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_meta(
    const at::Tensor& /*grad*/, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const at::Tensor& /*output*/, const at::Tensor& /*lse*/,
    const OptionalTensor& layout, const OptionalTensor& key_mask, const OptionalTensor& mask,
    std::int64_t block_size, bool causal, OptionalInt window, std::int64_t stride,
    std::int64_t prefix, std::optional<double> scale) {
  block_sparse_attention_problem(query, key, value, layout, key_mask, mask, block_size, causal,
                                 window, stride, prefix, scale);
  const auto like = [](const at::Tensor& x) {
    return at::empty_symint(x.sym_sizes(), x.options());
  };
  return {like(query), like(key), like(value)};
}

// ---- Autograd

class BlockSparseAttention : public torch::autograd::Function<BlockSparseAttention> {
 public:
  static torch::autograd::variable_list forward(
      torch::autograd::AutogradContext* ctx, const at::Tensor& query, const at::Tensor& key,
      const at::Tensor& value, const OptionalTensor& layout, const OptionalTensor& key_mask,
      const OptionalTensor& mask, std::int64_t block_size, bool causal, OptionalInt window,
      std::int64_t stride, std::int64_t prefix, std::optional<double> scale) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [output, lse] = forward_operator().call(query, key, value, layout, key_mask, mask,
                                                 block_size, causal, window, stride, prefix, scale);
    ctx->save_for_backward({query, key, value, output, lse, layout.value_or(at::Tensor()),
                            key_mask.value_or(at::Tensor()), mask.value_or(at::Tensor())});
    ctx->mark_non_differentiable({lse});
    ctx->saved_data["block_size"] = block_size;
    ctx->saved_data["causal"] = causal;
    ctx->saved_data["window"] = window;
    ctx->saved_data["stride"] = stride;
    ctx->saved_data["prefix"] = prefix;
    ctx->saved_data["scale"] = scale;
    return {output, lse};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    torch::autograd::variable_list result(12);
    if (!grads[0].defined()) return result;
    const auto optional = [](const at::Tensor& x) {
      return x.defined() ? std::optional(x) : std::nullopt;
    };
    const BlockSparseAttentionMasks masks = {
        .layout = optional(saved[5]), .key_mask = optional(saved[6]), .mask = optional(saved[7])};
    const BlockSparseAttentionOptions o = restored(ctx);
    if (at::GradMode::is_enabled()) {  // a second derivative is wanted: differentiate the composite
      differentiate_composite(grads[0], saved, masks, o, result);
      return result;
    }
    std::tie(result[0], result[1], result[2]) = backward_operator().call(
        grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], masks.layout, masks.key_mask,
        masks.mask, o.block_size, o.causal, o.window, o.stride, o.prefix, o.scale);
    return result;
  }

 private:
  static BlockSparseAttentionOptions restored(torch::autograd::AutogradContext* ctx) {
    const auto& data = ctx->saved_data;
    return {.block_size = data.at("block_size").toInt(),
            .causal = data.at("causal").toBool(),
            .window = data.at("window").toOptional<std::int64_t>(),
            .stride = data.at("stride").toInt(),
            .prefix = data.at("prefix").toInt(),
            .scale = data.at("scale").toOptional<double>()};
  }

  static void differentiate_composite(const at::Tensor& grad,
                                      const torch::autograd::variable_list& saved,
                                      const BlockSparseAttentionMasks& masks,
                                      const BlockSparseAttentionOptions& options,
                                      torch::autograd::variable_list& result) {
    torch::autograd::variable_list operands, inputs;
    for (std::size_t i = 0; i < 3; ++i) {
      operands.push_back(saved[i].view_as(saved[i]));  // apart, even where one tensor is several
      if (saved[i].requires_grad()) inputs.push_back(operands[i]);
    }
    const at::Tensor output =
        block_sparse_attention_composite(operands[0], operands[1], operands[2], masks, options);
    const auto inner = torch::autograd::grad({output}, inputs, {grad}, std::nullopt,
                                             /*create_graph=*/true, /*allow_unused=*/true);
    std::size_t next = 0;
    for (std::size_t i = 0; i < 3; ++i) {
      if (saved[i].requires_grad()) result[i] = inner[next++];
    }
  }
};

std::tuple<at::Tensor, at::Tensor> forward_autograd(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const OptionalTensor& layout, const OptionalTensor& key_mask, const OptionalTensor& mask,
    std::int64_t block_size, bool causal, OptionalInt window, std::int64_t stride,
    std::int64_t prefix, std::optional<double> scale) {
  auto outputs = BlockSparseAttention::apply(query, key, value, layout, key_mask, mask, block_size,
                                             causal, window, stride, prefix, scale);
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

at::Tensor block_sparse_attention(const at::Tensor& query, const at::Tensor& key,
                                  const at::Tensor& value, const BlockSparseAttentionMasks& masks,
                                  const BlockSparseAttentionOptions& options) {
  return unpacked(front, query, key, value, masks, options);
}

std::tuple<at::Tensor, at::Tensor> block_sparse_attention_with_lse(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const BlockSparseAttentionMasks& masks, const BlockSparseAttentionOptions& options) {
  return unpacked(front_with_lse, query, key, value, masks, options);
}

at::Tensor block_sparse_attention_composite(const at::Tensor& query, const at::Tensor& key,
                                            const at::Tensor& value,
                                            const BlockSparseAttentionMasks& masks,
                                            const BlockSparseAttentionOptions& options) {
  return std::get<0>(
      unpacked(block_sparse_attention_composite_forward, query, key, value, masks, options));
}

}  // namespace weir::ops
