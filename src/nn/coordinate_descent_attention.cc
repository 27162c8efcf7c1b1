// SPDX-License-Identifier: Apache-2.0
// Causal attention with softmax or coordinate-descent rows. `forward` and `step` share everything
// but where the keys come from: norm, project, gather the keys, attend.
#include "weir/nn/coordinate_descent_attention.h"

#include <torch/nn/functional/activation.h>
#include <torch/nn/init.h>

#include <cmath>
#include <tuple>

#include "nn/check.h"

namespace weir::nn {
namespace {

constexpr auto kName = "CoordinateDescentAttention";

void check(const CoordinateDescentAttentionOptions& options) {
  check_size(kName, "dim", options.dim);
  check_size(kName, "dim_head", options.dim_head);
  check_size(kName, "heads", options.heads);
  check_size(kName, "attn_null_kv", options.attn_null_kv, 0);
  check_positive(kName, "coor_descent_sparsity_k", options.coor_descent_sparsity_k);
  TORCH_CHECK_VALUE(
      options.use_coor_descent || !options.learned_sparsity_k, "weir::", kName,
      ": expected `learned_sparsity_k` only with `use_coor_descent`: a softmax has no k "
      "to learn.");
}

void check(const at::Tensor& x, const CoordinateDescentAttentionInputs& inputs, std::int64_t dim) {
  check_tokens(kName, x, dim);
  check_padding(kName, inputs.mask, x);
}

// Whether the queries at `positions` (..., m) may see the key slots: (..., m, nulls + length).
at::Tensor visible_slots(const at::Tensor& positions, std::int64_t nulls, std::int64_t length) {
  const at::Tensor slots = at::arange(nulls + length, positions.options());
  return slots <= (positions + nulls).unsqueeze(-1);
}

// The same for all n tokens of `x`: (n, nulls + n), with padding (batch, 1, n, nulls + n).
at::Tensor visible_tokens(const at::Tensor& x, const std::optional<at::Tensor>& mask,
                          std::int64_t nulls) {
  const std::int64_t batch = x.size(0), n = x.size(1);
  const at::Tensor causal = visible_slots(at::arange(n, x.options().dtype(at::kLong)), nulls, n);
  if (!mask) return causal;
  const at::Tensor kept = at::cat({mask->new_ones({batch, nulls}), *mask}, 1);
  return causal & kept.view({batch, 1, 1, nulls + n});
}

}  // namespace

CoordinateDescentAttentionImpl::CoordinateDescentAttentionImpl(
    const CoordinateDescentAttentionOptions& options_)
    : options(options_), solver_(coordinate_descent_options(kName, options_)) {
  check(options);
  reset();
}

void CoordinateDescentAttentionImpl::reset() {
  const auto [dim, dim_head, heads] = std::tie(options.dim, options.dim_head, options.heads);
  // Without nulls it is empty but keeps its place in the state dict; no gradient will ever reach
  // it.
  null_kv = register_parameter("null_kv", at::randn({2, heads, options.attn_null_kv, dim_head}),
                               options.attn_null_kv > 0);
  norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({dim})));
  if (options.learned_sparsity_k) {
    to_learned_k = register_module("to_learned_k", torch::nn::Linear(dim, heads));
    torch::nn::init::constant_(to_learned_k->bias, -10);  // starts with k = 1
  }
  to_qkv = register_module(
      "to_qkv", torch::nn::Linear(torch::nn::LinearOptions(dim, 3 * heads * dim_head).bias(false)));
  to_out = register_module(
      "to_out", torch::nn::Linear(torch::nn::LinearOptions(heads * dim_head, dim).bias(false)));
}

at::Tensor CoordinateDescentAttentionImpl::forward(const at::Tensor& x,
                                                   const CoordinateDescentAttentionInputs& inputs) {
  check(x, inputs, options.dim);
  // Zeroing padding at the entry keeps it out for good, NaN included, whatever reads keys later.
  const at::Tensor tokens =
      inputs.mask ? x.masked_fill(inputs.mask->logical_not().unsqueeze(-1), 0) : x;
  const at::Tensor normed = norm(tokens);
  const auto [queries, keys, values] = project(normed);
  const KeyValues seen = {with_nulls(0, keys), with_nulls(1, values)};
  const bool plain = !options.use_coor_descent && !inputs.mask && options.attn_null_kv == 0;
  if (plain) return attend(normed, queries, seen, std::nullopt);
  return attend(normed, queries, seen, visible_tokens(x, inputs.mask, options.attn_null_kv));
}

at::Tensor CoordinateDescentAttentionImpl::step(const at::Tensor& x, const at::Tensor& positions,
                                                std::int64_t length, KeyValues& past) {
  at::NoGradGuard no_grad;
  check_tokens(kName, x, options.dim);
  const std::int64_t nulls = options.attn_null_kv;
  const at::Tensor normed = norm(x);
  const auto [queries, keys, values] = project(normed);
  at::Tensor slots = (positions + nulls).unsqueeze(1).unsqueeze(-1);
  slots = slots.expand_as(keys);  // (batch, heads, m, dim_head)
  past.keys.scatter_(2, slots, keys);
  past.values.scatter_(2, slots, values);
  const KeyValues seen = {past.keys.narrow(2, 0, nulls + length),
                          past.values.narrow(2, 0, nulls + length)};
  const at::Tensor visible =
      visible_slots(positions, nulls, length).unsqueeze(1);  // (batch, 1, m, nulls + length)
  return attend(normed, queries, seen, visible);
}

KeyValues CoordinateDescentAttentionImpl::make_cache(std::int64_t batch,
                                                     std::int64_t max_length) const {
  const std::int64_t nulls = options.attn_null_kv;
  const auto empty_cache = [&](const at::Tensor& null) {
    // Zeros, not empty: a weight of 0 times a stray NaN would be NaN.
    at::Tensor slots =
        at::zeros({batch, options.heads, nulls + max_length, options.dim_head}, null.options());
    slots.narrow(2, 0, nulls).copy_(null);
    return slots;
  };
  at::NoGradGuard no_grad;
  return {.keys = empty_cache(null_kv[0]), .values = empty_cache(null_kv[1])};
}

std::array<at::Tensor, 3> CoordinateDescentAttentionImpl::project(const at::Tensor& normed) {
  const at::Tensor qkv =
      to_qkv(normed)
          .view({normed.size(0), normed.size(1), 3, options.heads, options.dim_head})
          .permute({2, 0, 3, 1, 4});  // (3, batch, heads, n, dim_head)
  return {qkv[0], qkv[1], qkv[2]};
}

// The null keys (part 0) or values (part 1) in front of `slots`: (batch, heads, nulls + n,
// dim_head).
at::Tensor CoordinateDescentAttentionImpl::with_nulls(std::int64_t part, const at::Tensor& slots) {
  if (options.attn_null_kv == 0) return slots;
  return at::cat({null_kv[part].expand({slots.size(0), -1, -1, -1}), slots}, 2);
}

// `visible` broadcasts to (batch, heads, n, slots); none: plain causal, which needs no mask.
at::Tensor CoordinateDescentAttentionImpl::attend(const at::Tensor& normed,
                                                  const at::Tensor& queries, const KeyValues& seen,
                                                  const std::optional<at::Tensor>& visible) {
  const at::Tensor out =  // (batch, heads, n, dim_head)
      options.use_coor_descent
          ? at::matmul(choose(normed, queries, seen.keys, *visible), seen.values)
          : at::scaled_dot_product_attention(queries, seen.keys, seen.values, visible,
                                             /*dropout_p=*/0.0, /*is_causal=*/!visible);
  return to_out(out.transpose(1, 2).flatten(2));  // (batch, n, dim)
}

// The coordinate-descent weights, (batch, heads, n, slots).
at::Tensor CoordinateDescentAttentionImpl::choose(const at::Tensor& normed,
                                                  const at::Tensor& queries, const at::Tensor& keys,
                                                  const at::Tensor& visible) {
  const double scale = 1 / std::sqrt(static_cast<double>(options.dim_head));
  const at::Tensor logits = at::matmul(queries * scale, keys.transpose(-2, -1));
  const double k = options.coor_descent_sparsity_k;
  if (!options.learned_sparsity_k) return ops::coordinate_descent(logits, k, visible, solver_);
  const at::Tensor budget =
      1 + (k - 1) * to_learned_k(normed).sigmoid().transpose(1, 2);  // (batch, heads, n)
  return ops::coordinate_descent(logits, budget, visible, solver_);
}

void CoordinateDescentAttentionImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::" << kName << "(dim=" << options.dim << ", dim_head=" << options.dim_head
         << ", heads=" << options.heads;
  if (options.use_coor_descent) {
    stream << ", coor_descent_sparsity_k=" << options.coor_descent_sparsity_k
           << ", coor_descent_solver=" << options.coor_descent_solver;
  }
  stream << ")";
}

}  // namespace weir::nn
