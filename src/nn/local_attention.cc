// SPDX-License-Identifier: Apache-2.0
// Local attention as a module: leading sizes become batch and heads, ops::local_attention does the
// rest. Nothing is padded.
#include "weir/nn/local_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/pow.h>

#include <algorithm>
#include <cmath>

#include "nn/check.h"
#include "weir/ops/local_attention.h"

namespace weir::nn {
namespace {

constexpr auto kName = "LocalAttention";

std::optional<std::int64_t> rotary_dim(const LocalAttentionOptions& options) {
  if (!options.use_rotary_pos_emb) return std::nullopt;
  if (options.rel_pos_emb_config.empty()) return options.dim;
  return options.rel_pos_emb_config.front();
}

void check(const LocalAttentionOptions& options) {
  check_size(kName, "window_size", options.window_size);
  check_size(kName, "look_backward", options.look_backward, 0);
  check_size(kName, "look_forward", options.look_forward.value_or(0), 0);
  TORCH_CHECK_VALUE(!options.causal || options.look_forward.value_or(0) == 0, "weir::", kName,
                    ": expected `look_forward` 0 with `causal`, but got ",
                    options.look_forward.value_or(0), ".");
  check_share(kName, "dropout", options.dropout);
  TORCH_CHECK_VALUE(!options.scale || std::isfinite(*options.scale), "weir::", kName,
                    ": expected `scale` to be finite, but got ", options.scale.value_or(0), ".");
  const auto dim = rotary_dim(options);
  if (!dim) return;
  check_size(kName, "dim", *dim);
  TORCH_CHECK_VALUE(*dim % 2 == 0, "weir::", kName,
                    ": expected `dim` to be even for the rotary embedding, but got ", *dim, ".");
  if (!options.use_xpos) return;
  const std::int64_t half = options.window_size / 2;
  check_positive(kName, "xpos_scale_base",
                 options.xpos_scale_base.value_or(static_cast<double>(half)));
}

void check(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) {
  TORCH_CHECK_VALUE(q.dim() >= 2, "weir::", kName,
                    ": expected `q` to have shape [..., n, dim], but got ", q.sizes(), ".");
  const auto expect_like_q = [&](const char* name, const at::Tensor& x) {
    TORCH_CHECK_VALUE(
        x.dim() == q.dim() && x.sizes().slice(0, q.dim() - 1) == q.sizes().slice(0, q.dim() - 1),
        "weir::", kName, ": expected `", name, "` to have the sizes of `q` but the ", "last, ",
        q.sizes(), ", but got ", x.sizes(), ".");
  };
  expect_like_q("k", k);
  expect_like_q("v", v);
}

/// How the leading sizes of `q` split into batch and heads.
struct Split {
  std::int64_t batch, heads;

  /// (batch, heads, n, dim)
  at::Tensor operator()(const at::Tensor& x) const {
    if (x.dim() == 4 && x.size(0) == batch && x.size(1) == heads) return x;
    return x.reshape({batch, heads, x.size(-2), x.size(-1)});
  }
};

Split split_of(const at::Tensor& q, const std::optional<at::Tensor>& mask,
               const std::optional<at::Tensor>& attn_bias) {
  std::int64_t rows = 1;
  for (const std::int64_t size : q.sizes().slice(0, q.dim() - 2)) rows *= size;
  Split split = {.batch = rows, .heads = 1};
  if (q.dim() == 4) split = {.batch = q.size(0), .heads = q.size(1)};
  if (mask && mask->dim() == 2 && mask->size(0) > 0 && rows % mask->size(0) == 0) {
    split = {.batch = mask->size(0), .heads = rows / mask->size(0)};
  } else if (attn_bias && attn_bias->dim() == 3 && attn_bias->size(0) > 0 &&
             rows % attn_bias->size(0) == 0) {
    split = {.batch = rows / attn_bias->size(0), .heads = attn_bias->size(0)};
  }
  return split;
}

}  // namespace

void RotaryFrequenciesImpl::reset() {
  // Rounded to float32 before the power, as in the published state dicts.
  const at::Tensor exponents = at::arange(0, dim, 2, at::kLong).to(at::kFloat) / dim;
  inv_freq = register_buffer("inv_freq", 1.0 / at::pow(10000, exponents));
}

at::Tensor RotaryFrequenciesImpl::frequencies() const {
  if (inv_freq.scalar_type() == at::kFloat || inv_freq.scalar_type() == at::kDouble) {
    return inv_freq;
  }
  return RotaryFrequenciesImpl(dim).inv_freq.to(inv_freq.device());
}

LocalAttentionImpl::LocalAttentionImpl(const LocalAttentionOptions& options_) : options(options_) {
  check(options);
  reset();
}

void LocalAttentionImpl::reset() {
  if (const auto dim = rotary_dim(options)) {
    rel_pos = register_module("rel_pos", RotaryFrequencies(*dim));
  }
}

at::Tensor LocalAttentionImpl::forward(const at::Tensor& q, const at::Tensor& k,
                                       const at::Tensor& v, const LocalAttentionInputs& inputs) {
  check(q, k, v);
  TORCH_CHECK_VALUE(!inputs.window_size || options.use_xpos, "weir::", kName,
                    ": expected `window_size` only with `use_xpos`, but got ",
                    inputs.window_size.value_or(0), ".");
  const std::int64_t window_size = inputs.window_size.value_or(options.window_size);
  check_size(kName, "window_size", window_size);
  TORCH_CHECK_VALUE(options.autopad || q.size(-2) % window_size == 0, "weir::", kName,
                    ": expected n to be a multiple of `window_size`, ", window_size, ", but got ",
                    q.size(-2), ". With `autopad` any n will do.");
  const auto& mask = inputs.mask ? inputs.mask : inputs.input_mask;
  const Split split = split_of(q, mask, inputs.attn_bias);
  const bool use_xpos = options.use_xpos && !rel_pos.is_empty();
  const at::Tensor out = ops::local_attention(
      split(q), split(k), split(v),
      {.key_mask = mask,
       .attn_bias = inputs.attn_bias,
       .inv_freq = rel_pos.is_empty() ? std::nullopt : std::optional(rel_pos->frequencies())},
      {.window_size = window_size,
       .causal = options.causal,
       .look_backward = options.look_backward,
       .look_forward = options.look_forward,
       .exact_windowsize = options.exact_windowsize,
       .scale = options.scale,
       .shared_qk = options.shared_qk,
       .use_xpos = use_xpos,
       .xpos_scale_base = use_xpos ? std::optional(xpos_base()) : std::nullopt,
       .dropout = is_training() ? options.dropout : 0});
  auto sizes = q.sizes().vec();
  sizes.back() = v.size(-1);
  return out.reshape(sizes);
}

std::int64_t LocalAttentionImpl::reach() const {
  const std::int64_t before = options.look_backward * options.window_size;
  return options.exact_windowsize ? before : before + options.window_size - 1;
}

double LocalAttentionImpl::xpos_base() const {
  return options.xpos_scale_base.value_or(static_cast<double>(options.window_size / 2));
}

void LocalAttentionImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::" << kName << "(window_size=" << options.window_size << std::boolalpha
         << ", causal=" << options.causal << ", exact_windowsize=" << options.exact_windowsize
         << ", rotary=" << !rel_pos.is_empty() << ")" << std::noboolalpha;
}

}  // namespace weir::nn
