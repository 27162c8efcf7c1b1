// SPDX-License-Identifier: Apache-2.0
// Attention of routed queries to routed keys. Every head has keys and values of its own from the
// tokens of its route, so that routes are only a matter of which tokens are projected.
#include "weir/nn/heavy_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/randn.h>

#include <vector>

#include "nn/check.h"
#include "nn/rotary.h"
#include "weir/ops/block_sparse_attention.h"

namespace weir::nn {
namespace {

constexpr auto kName = "HeavyAttention";

// With a dimension of routes, (batch, routes, ...), where `dim` is that with it.
at::Tensor with_routes(const at::Tensor& x, std::int64_t dim) {
  return x.dim() == dim ? x : x.unsqueeze(1);
}

// (batch, routes, m, ...) -> (batch, heads, m, ...): head h has those of route h / (heads /
// routes).
at::Tensor of_heads(const at::Tensor& x, std::int64_t heads) {
  return x.size(1) == heads ? x : x.repeat_interleave(heads / x.size(1), 1);
}

void check_like_context(const char* input, const at::Tensor& x, const at::Tensor& context) {
  const at::Tensor routed = with_routes(x, 3);
  TORCH_CHECK_VALUE(routed.sizes() == context.sizes().slice(0, 3), "weir::", kName, ": expected `",
                    input, "` to have shape ", context.sizes().slice(0, 3),
                    " like the tokens of `context`, but got ", x.sizes(), ".");
}

void check_like_x(const char* input, const at::Tensor& given, const at::Tensor& x) {
  TORCH_CHECK_VALUE(given.sizes() == x.sizes().slice(0, 2), "weir::", kName, ": expected `", input,
                    "` to have shape ", x.sizes().slice(0, 2), " like the tokens of `x`, but got ",
                    given.sizes(), ".");
}

// The context with its routes, checked with what belongs to it.
at::Tensor checked_context(const at::Tensor& x, const HeavyAttentionInputs& inputs,
                           const HeavyAttentionOptions& options) {
  check_tokens(kName, x, options.dim);
  const at::Tensor& given = inputs.context ? *inputs.context : x;
  const at::Tensor context = with_routes(given, 4);
  TORCH_CHECK_VALUE(
      context.dim() == 4 && context.size(0) == x.size(0) && context.size(3) == options.dim,
      "weir::", kName, ": expected `context` to have shape [", x.size(0), ", m, ", options.dim,
      "] or [", x.size(0), ", routes, m, ", options.dim, "], but got ", given.sizes(), ".");
  TORCH_CHECK_VALUE(context.size(1) >= 1 && options.heads % context.size(1) == 0, "weir::", kName,
                    ": expected the routes of `context` to divide `heads`, ", options.heads,
                    ", but got ", context.size(1), ".");
  if (inputs.mask) {
    TORCH_CHECK_TYPE(inputs.mask->scalar_type() == at::kBool, "weir::", kName,
                     ": expected `mask` to be bool (true = keep), but got ",
                     inputs.mask->scalar_type(), ".");
    check_like_context("mask", *inputs.mask, context);
  }
  if (inputs.positions_q) check_like_x("positions_q", *inputs.positions_q, x);
  if (inputs.positions_kv) check_like_context("positions_kv", *inputs.positions_kv, context);
  if (inputs.normalized_scores_kv)
    check_like_context("normalized_scores_kv", *inputs.normalized_scores_kv, context);
  if (inputs.normalized_scores_q) {
    check_like_x("normalized_scores_q", *inputs.normalized_scores_q, x);
  }
  return context;
}

// Keys (batch, heads, m, dim_head) rotated by the positions of their routes.
at::Tensor rotated_keys(const at::Tensor& keys, const at::Tensor& positions,
                        const at::Tensor& inv_freq) {
  const at::Tensor routed = with_routes(positions, 3);  // (batch, routes, m)
  const at::Tensor grouped =
      keys.unflatten(1, {routed.size(1), keys.size(1) / routed.size(1)}).flatten(0, 1);
  return rotated(grouped, routed.flatten(0, 1), inv_freq).view(keys.sizes());
}

// 0 ... count - 1 for every entry of the batch of `x`: int64 (batch, count).
at::Tensor from_zero(std::int64_t count, const at::Tensor& x) {
  return at::arange(count, x.options().dtype(at::kLong)).expand({x.size(0), count});
}

// Under autocast projections are in 16 bits and scores are not.
at::Tensor times(const at::Tensor& heads, const at::Tensor& scores) {
  return heads * scores.unsqueeze(-1).to(heads.scalar_type());
}

// `null` (heads, dim_head) in front of `slots` (batch, heads, m, dim_head).
at::Tensor behind_null(const at::Tensor& null, const at::Tensor& slots) {
  return at::cat(
      {null.to(slots.scalar_type()).unsqueeze(1).expand({slots.size(0), -1, 1, -1}), slots}, 2);
}

}  // namespace

HeavyAttentionImpl::HeavyAttentionImpl(const HeavyAttentionOptions& options_) : options(options_) {
  check_size(kName, "dim", options.dim);
  check_size(kName, "dim_head", options.dim_head);
  check_size(kName, "heads", options.heads);
  reset();
}

void HeavyAttentionImpl::reset() {
  const std::int64_t inner = options.heads * options.dim_head;
  const auto linear = [](std::int64_t in, std::int64_t out) {
    return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(false));
  };
  norm = register_module("norm", L2RMSNorm(options.dim));
  null_kv = register_parameter("null_kv", at::randn({2, options.heads, options.dim_head}));
  to_q = register_module("to_q", linear(options.dim, inner));
  to_kv = register_module("to_kv", linear(options.dim, 2 * inner));
  to_out = register_module("to_out", linear(inner, options.dim));
}

at::Tensor HeavyAttentionImpl::forward(const at::Tensor& x, const HeavyAttentionInputs& inputs) {
  const at::Tensor context = checked_context(x, inputs, options);
  const at::Tensor of_x = queries(x, inputs);
  auto [keys, values] = keys_and_values(context);
  if (inputs.normalized_scores_kv) {
    const at::Tensor scores = of_heads(with_routes(*inputs.normalized_scores_kv, 3), options.heads);
    values = times(values, scores);
    if (options.multiply_keys_by_score) keys = times(keys, scores);
  }
  if (inputs.inv_freq) {
    keys = rotated_keys(keys, inputs.positions_kv.value_or(from_zero(context.size(2), x)),
                        *inputs.inv_freq);
  }
  std::optional<at::Tensor> mask;  // (batch, heads, 1, 1 + m)
  if (inputs.mask) {
    const at::Tensor routed = with_routes(*inputs.mask, 3);
    const at::Tensor null = routed.new_ones({routed.size(0), routed.size(1), 1});
    mask = of_heads(at::cat({null, routed}, 2), options.heads).unsqueeze(2);
  }
  const at::Tensor out = ops::block_sparse_attention(
      of_x, behind_null(null_kv[0], keys), behind_null(null_kv[1], values), {.mask = mask});
  return to_out(out.transpose(1, 2).flatten(2));
}

// (batch, heads, n, dim_head)
at::Tensor HeavyAttentionImpl::queries(const at::Tensor& x, const HeavyAttentionInputs& inputs) {
  at::Tensor result =
      to_q(norm(x)).unflatten(-1, {options.heads, options.dim_head}).transpose(1, 2);
  if (inputs.normalized_scores_q) {
    result = times(result, inputs.normalized_scores_q->unsqueeze(1));
  }
  if (!inputs.inv_freq) return result;
  return rotated(result, inputs.positions_q.value_or(from_zero(x.size(1), x)), *inputs.inv_freq);
}

// `context` (batch, routes, m, dim): twice (batch, heads, m, dim_head).
std::pair<at::Tensor, at::Tensor> HeavyAttentionImpl::keys_and_values(const at::Tensor& context) {
  const at::Tensor normed = norm(context);
  std::vector<at::Tensor> parts;  // (batch, heads / routes, m, 2 dim_head)
  const auto weights = to_kv->weight.chunk(context.size(1), 0);
  for (std::size_t route = 0; route < weights.size(); ++route) {
    parts.push_back(at::linear(normed.select(1, static_cast<std::int64_t>(route)), weights[route])
                        .unflatten(-1, {-1, 2 * options.dim_head})
                        .transpose(1, 2));
  }
  const auto halves = (parts.size() == 1 ? parts[0] : at::cat(parts, 1)).chunk(2, -1);
  return {halves[0], halves[1]};
}

void HeavyAttentionImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::" << kName << "(dim=" << options.dim << ", dim_head=" << options.dim_head
         << ", heads=" << options.heads << ")";
}

}  // namespace weir::nn
