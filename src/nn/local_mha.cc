// SPDX-License-Identifier: Apache-2.0
// Local attention with projections, whole and step by step. A cache holds keys already rotated by
// their absolute position: logits depend on distances alone, and a key is rotated once.
#include "weir/nn/local_mha.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scaled_dot_product_attention.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "nn/check.h"
#include "nn/rotary.h"
#include "weir/nn/dynamic_position_bias.h"

namespace weir::nn {
namespace {

constexpr auto kName = "LocalMHA";
constexpr double kSelf = -5e4;  // shared_qk: what the published package gives a token's own key

void check(const LocalMHAOptions& options) {
  check_size(kName, "dim", options.dim);
  check_size(kName, "window_size", options.window_size);
  check_size(kName, "dim_head", options.dim_head);
  check_size(kName, "heads", options.heads);
  if (options.qk_rmsnorm) check_positive(kName, "qk_scale", options.qk_scale);
}

void check(const at::Tensor& x, const LocalMHAInputs& inputs, std::int64_t dim) {
  check_tokens(kName, x, dim);
  check_padding(kName, inputs.mask, x);
}

LocalAttentionOptions attention_options(const LocalMHAOptions& options) {
  return {.window_size = options.window_size,
          .causal = options.causal,
          .look_backward = options.look_backward,
          .look_forward = options.look_forward,
          .dropout = options.dropout,
          .shared_qk = options.shared_qk,
          .dim = options.dim_head,
          .autopad = true,
          .exact_windowsize = options.exact_windowsize,
          .scale = options.qk_rmsnorm ? std::optional(options.qk_scale) : std::nullopt,
          .use_rotary_pos_emb = options.use_rotary_pos_emb,
          .use_xpos = options.use_xpos,
          .xpos_scale_base = options.xpos_scale_base};
}

at::Tensor unit_length(const at::Tensor& x) {
  return x / x.norm(2, -1, /*keepdim=*/true).clamp_min(1e-12);
}

/// Slots `begin` to `end`, not included.
KeyValues slots_of(const KeyValues& past, std::int64_t begin, std::int64_t end) {
  return {.keys = past.keys.slice(2, begin, end),
          .values = past.values.slice(2, begin, end),
          .positions = past.positions.slice(1, begin, end)};
}

}  // namespace

LocalMHAImpl::LocalMHAImpl(const LocalMHAOptions& options_) : options(options_) {
  check(options);
  reset();
}

void LocalMHAImpl::reset() {
  const auto [dim, dim_head, heads] = std::tie(options.dim, options.dim_head, options.heads);
  const auto without_bias = [](std::int64_t in, std::int64_t out) {
    return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(false));
  };
  if (options.prenorm) {
    norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({dim})));
  }
  to_qkv = register_module("to_qkv", without_bias(dim, 3 * heads * dim_head));
  if (options.qk_rmsnorm) {
    q_scale = register_parameter("q_scale", at::ones({dim_head}));
    k_scale = register_parameter("k_scale", at::ones({dim_head}));
  }
  attn_fn = register_module("attn_fn", LocalAttention(attention_options(options)));
  if (options.gate_values_per_head) {
    to_v_gate = register_module("to_v_gate", torch::nn::Sequential(torch::nn::Linear(dim, heads)));
  }
  to_out = register_module("to_out", without_bias(heads * dim_head, dim));
}

at::Tensor LocalMHAImpl::forward(const at::Tensor& x, const LocalMHAInputs& inputs) {
  check(x, inputs, options.dim);
  // Zeroing padding at the entry keeps it out for good, NaN included.
  const at::Tensor tokens =
      inputs.mask ? x.masked_fill(inputs.mask->logical_not().unsqueeze(-1), 0) : x;
  const at::Tensor normed = options.prenorm ? norm(tokens) : tokens;
  const auto [queries, keys, values] = project(normed);
  return merge(normed, attn_fn->forward(queries, keys, values,
                                        {.mask = inputs.mask, .attn_bias = inputs.attn_bias}));
}

at::Tensor LocalMHAImpl::step(const at::Tensor& x, const at::Tensor& positions, KeyValues& past,
                              const std::optional<at::Tensor>& distance_bias) {
  at::NoGradGuard no_grad;
  check_tokens(kName, x, options.dim);
  TORCH_CHECK_VALUE(options.causal, "weir::", kName,
                    ": expected `causal` for a step: later tokens would change earlier ones.");
  const at::Tensor normed = options.prenorm ? norm(x) : x;
  const auto [queries, keys, values] = project(normed);
  if (x.size(0) == 0 || x.size(1) == 0) return merge(normed, values);
  const std::int64_t w = options.window_size, reach = attn_fn->reach(), count = x.size(1);
  past.prepare(positions.select(1, 0), reach);
  const std::int64_t old = past.slots();
  past.append(stored_keys(keys, positions), values, positions);
  const bool drops = is_training() && options.dropout > 0;
  if (old == 0 && count > 1 && !drops) {  // all that a token sees is here
    const auto bias =
        distance_bias
            ? std::optional(position_bias(*distance_bias, w, (options.look_backward + 1) * w))
            : std::nullopt;
    return merge(normed, attn_fn->forward(queries, keys, values, {.attn_bias = bias}));
  }
  // A window at a time, so that logits take memory linear in `count`.
  std::vector<at::Tensor> parts;
  for (std::int64_t begin = 0; begin < count; begin += w) {
    const std::int64_t size = std::min(w, count - begin);
    const std::int64_t first = begin < reach ? 0 : old + begin - reach;
    parts.push_back(attend(queries.narrow(2, begin, size), positions.narrow(1, begin, size),
                           slots_of(past, first, old + begin + size), distance_bias));
  }
  return merge(normed, at::cat(parts, 2));
}

KeyValues LocalMHAImpl::make_cache(std::int64_t batch) const {
  return empty_key_values(batch, options.heads, options.dim_head, to_out->weight.options());
}

std::array<at::Tensor, 3> LocalMHAImpl::project(const at::Tensor& normed) {
  // unbind and not [0], [1], [2]: the gradient of each of those is a whole qkv of zeros.
  const auto qkv = to_qkv(normed)
                       .view({normed.size(0), normed.size(1), 3, options.heads, options.dim_head})
                       .unbind(2);
  const at::Tensor q = qkv[0].transpose(1, 2), k = qkv[1].transpose(1, 2),
                   v = qkv[2].transpose(1, 2);  // (batch, heads, n, dim_head)
  if (!options.qk_rmsnorm) return {q, k, v};
  return {unit_length(q) * q_scale, unit_length(k) * k_scale, v};
}

// `attended` (batch, heads, n, dim_head) -> (batch, n, dim)
at::Tensor LocalMHAImpl::merge(const at::Tensor& normed, const at::Tensor& attended) {
  at::Tensor out = attended.transpose(1, 2);  // (batch, n, heads, dim_head)
  if (options.gate_values_per_head) out = out * to_v_gate->forward(normed).sigmoid().unsqueeze(-1);
  return to_out(out.flatten(2));
}

at::Tensor LocalMHAImpl::stored_keys(const at::Tensor& keys, const at::Tensor& positions) const {
  const at::Tensor normed = options.shared_qk ? unit_length(keys) : keys;
  if (!options.use_rotary_pos_emb) return normed;
  return rotated(normed, positions, attn_fn->rel_pos->frequencies());
}

// The queries (batch, heads, m, dim_head) at `positions` (batch, m) over slots of a cache.
at::Tensor LocalMHAImpl::attend(const at::Tensor& queries, const at::Tensor& positions,
                                const KeyValues& seen,
                                const std::optional<at::Tensor>& distance_bias) const {
  const std::int64_t w = options.window_size;
  const at::Tensor at_query = positions.unsqueeze(-1);    // (batch, m, 1)
  const at::Tensor at_key = seen.positions.unsqueeze(1);  // (batch, 1, slots)
  const at::Tensor begin = options.exact_windowsize ? at_query : at_query.div(w, "floor") * w;
  const at::Tensor oldest = (begin - options.look_backward * w).clamp_min(0);
  const at::Tensor visible = ((at_key >= oldest) & (at_key <= at_query)).unsqueeze(1);
  at::Tensor q = queries, k = seen.keys, v = seen.values, mask = visible;
  if (options.use_rotary_pos_emb) q = rotated(q, positions, attn_fn->rel_pos->frequencies());
  if (options.use_rotary_pos_emb && options.use_xpos) {
    const auto compute = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const at::Tensor centre = positions.narrow(1, 0, 1);
    const auto scaled = [&](const at::Tensor& x, const at::Tensor& distances) {
      return (x * xpos_factors(distances, attn_fn->xpos_base(), options.dim_head)).to(compute);
    };
    q = scaled(q, positions - centre);
    k = scaled(k, centre - seen.positions);
    v = v.to(compute);
  }
  if (distance_bias || options.shared_qk) {
    const at::Tensor distances = at_query - at_key;  // (batch, m, slots)
    mask = (distances == 0).unsqueeze(1).to(q.scalar_type()) * (options.shared_qk ? kSelf : 0);
    if (distance_bias) {
      const at::Tensor index = distances.clamp(0, distance_bias->size(1) - 1);
      const at::Tensor bias = distance_bias->index_select(1, index.flatten());  // (heads, ...)
      mask = mask + bias.unflatten(1, index.sizes()).transpose(0, 1).to(q.scalar_type());
    }
    mask = mask.masked_fill(visible.logical_not(), -INFINITY);
  }
  const auto scale = options.qk_rmsnorm ? std::optional(options.qk_scale) : std::nullopt;
  return at::scaled_dot_product_attention(q, k, v, mask, /*dropout_p=*/0.0, /*is_causal=*/false,
                                          scale)
      .to(queries.scalar_type());
}

void LocalMHAImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::" << kName << "(dim=" << options.dim
         << ", window_size=" << options.window_size << ", dim_head=" << options.dim_head
         << ", heads=" << options.heads << ")";
}

}  // namespace weir::nn
