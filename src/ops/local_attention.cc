// SPDX-License-Identifier: Apache-2.0
// local_attention: checks, and its translation into _block_sparse_attention: a window and a bucket,
// a bias per bucket, rotations as tables of cosines and sines.
#include "weir/ops/local_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/local_attention.h"

namespace weir::ops {
namespace {

constexpr char kOp[] = "local_attention";
constexpr char kExpected[] = "weir::local_attention: expected ";

// ---- checks

void check_options(const LocalAttentionOptions& o) {
  static constexpr std::int64_t kMost = std::int64_t{1} << 30;
  const auto check = [](const char* name, std::int64_t value, std::int64_t least) {
    TORCH_CHECK_VALUE(value >= least && value <= kMost, kExpected, "`", name, "` to lie in [",
                      least, ", ", kMost, "], but got ", value, ".");
  };
  check("window_size", o.window_size, 1);
  check("look_backward", o.look_backward, 0);
  check("look_forward", o.look_forward.value_or(0), 0);
  TORCH_CHECK_VALUE(!o.causal || o.look_forward.value_or(0) == 0, kExpected,
                    "`look_forward` 0 with `causal`, but got ", o.look_forward.value_or(0), ".");
  TORCH_CHECK_VALUE(!o.scale || std::isfinite(*o.scale), kExpected,
                    "`scale` to be finite, but got ", o.scale.value_or(0), ".");
  TORCH_CHECK_VALUE(o.dropout >= 0 && o.dropout < 1, kExpected,
                    "`dropout` to lie in [0, 1), but got ", o.dropout, ".");
}

void check_inputs(const at::Tensor& query, const LocalAttentionInputs& inputs,
                  const LocalAttentionOptions& o) {
  if (inputs.attn_bias) {
    const std::int64_t span = (o.look_backward + 1 + forward_buckets(o)) * o.window_size;
    const std::vector<c10::SymInt> expected = {query.sym_size(1), o.window_size, span};
    const at::Tensor& bias = *inputs.attn_bias;
    TORCH_CHECK_TYPE(bias.is_floating_point(), kExpected,
                     "`attn_bias` to be floating point, but got ", bias.scalar_type(), ".");
    TORCH_CHECK_VALUE(bias.sym_sizes() == c10::SymIntArrayRef(expected), kExpected,
                      "`attn_bias` to have shape ", c10::SymIntArrayRef(expected), ", but got ",
                      bias.sym_sizes(), ".");
    TORCH_CHECK_VALUE(bias.device() == query.device(), kExpected,
                      "`attn_bias` on the device of `query`, ", query.device(), ", but got ",
                      bias.device(), ".");
  }
  if (inputs.inv_freq) {
    const at::Tensor& inv_freq = *inputs.inv_freq;
    TORCH_CHECK_VALUE(query.sym_size(3) % 2 == 0, kExpected,
                      "an even dim with `inv_freq`, but got ", query.sym_size(3), ".");
    TORCH_CHECK_VALUE(inv_freq.dim() == 1 && inv_freq.sym_size(0) * 2 == query.sym_size(3),
                      kExpected, "`inv_freq` to have shape [", query.sym_size(3) / 2, "], but got ",
                      inv_freq.sym_sizes(), ".");
    TORCH_CHECK_VALUE(inv_freq.device() == query.device(), kExpected,
                      "`inv_freq` on the device of `query`, ", query.device(), ", but got ",
                      inv_freq.device(), ".");
  }
  if (!o.use_xpos) return;
  TORCH_CHECK_VALUE(inputs.inv_freq, kExpected, "`inv_freq` with `use_xpos`, but got none.");
  TORCH_CHECK_VALUE(xpos_base(o) > 0 && std::isfinite(xpos_base(o)), kExpected,
                    "`xpos_scale_base` to be positive, but got ", xpos_base(o), ".");
}

// ---- translation

AttentionRule rule_of(const at::Tensor& query, const LocalAttentionOptions& o) {
  return {.causal = o.causal,
          .behind = o.look_backward * o.window_size,
          .ahead = forward_buckets(o) * o.window_size,
          .bucket = o.exact_windowsize ? 1 : o.window_size,
          .self_last = o.shared_qk,
          .bias_behind = o.look_backward * o.window_size,
          .scale = attention_scale(query, o.scale),
          .dropout = o.dropout};
}

/// Cosines and sines of position * inv_freq, (count, dim); with xPos scaled by
/// zeta^(sign * (position - center) / base), zeta_i = (2 i / dim + 0.4) / 1.4. In float64: at
/// position 65,536 a float32 angle is wrong by 0.004.
at::Tensor rotation(const at::Tensor& inv_freq, const c10::SymInt& count, const c10::SymInt& first,
                    const c10::SymInt& center, double sign, const LocalAttentionOptions& o,
                    at::ScalarType compute) {
  const auto options = at::TensorOptions(at::kDouble).device(inv_freq.device());
  const at::Tensor positions =
      (at::arange(at::Scalar(count), options) + at::Scalar(first)).unsqueeze(-1);
  const at::Tensor angles = positions * inv_freq.to(at::kDouble);
  at::Tensor cosine = angles.cos(), sine = angles.sin();
  if (o.use_xpos) {
    const auto half = static_cast<double>(inv_freq.size(0));
    const at::Tensor zeta = (at::arange(inv_freq.size(0), options) / half + 0.4) / 1.4;
    const at::Tensor factor =
        zeta.pow((positions - at::Scalar(center)) * (sign / xpos_base(o)));  // (count, dim / 2)
    cosine = cosine * factor, sine = sine * factor;
  }
  return at::cat({cosine, sine}, -1).to(compute);
}

void add_rotation(const OptionalTensor& inv_freq, const LocalAttentionOptions& o,
                  LocalAttentionCall& call) {
  if (!inv_freq) return;
  const c10::SymInt queries = call.query.sym_size(2), keys = call.key.sym_size(2);
  const auto compute = call.query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const c10::SymInt offset =
      call.rule.offset == kUnlimited ? keys - queries : c10::SymInt(call.rule.offset);
  call.tensors.query_rotation = rotation(*inv_freq, queries, offset, keys / 2, 1, o, compute);
  call.tensors.key_rotation = rotation(*inv_freq, keys, 0, keys / 2, -1, o, compute);
}

/// Each key divided by its length. One that is not finite stays as it is: to divide it would hand
/// it a NaN for a gradient even if nobody attends it. (Only what has a Meta kernel.)
at::Tensor normalised(const at::Tensor& key) {
  const at::Tensor bad = (key - key).ne(0).any(-1, /*keepdim=*/true);  // of NaN and infinity
  const at::Tensor clean = key.masked_fill(bad, 0);
  const at::Tensor square = clean.square().sum(-1, /*keepdim=*/true);
  return clean * square.masked_fill(square < 1e-24, 1e-24).rsqrt() + key.masked_fill(bad.eq(0), 0);
}

LocalAttentionCall call_of(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const LocalAttentionInputs& inputs, const LocalAttentionOptions& o) {
  check_options(o);
  check_attention_operands(kOp, query, key, value);
  check_key_mask(kOp, inputs.key_mask, query, key);
  check_inputs(query, inputs, o);
  LocalAttentionCall call = {.query = query,
                             .key = key,
                             .value = value,
                             .bias = inputs.attn_bias,
                             .tensors = {},
                             .rule = rule_of(query, o)};
  call.tensors.key_mask = inputs.key_mask;
  if (o.shared_qk) {
    call = widened(call);
    call.key = normalised(call.key);
  }
  if (o.dropout > 0) {
    call.tensors.dropout_seed =
        at::randint(std::numeric_limits<std::int64_t>::max(), {}, query.options().dtype(at::kLong));
  }
  return call;
}

/// `run(call)` gives (batch, heads, n, value_dim).
template <class Run>
at::Tensor local_attention_by(const Run& run, const at::Tensor& query, const at::Tensor& key,
                              const at::Tensor& value, const LocalAttentionInputs& inputs,
                              const LocalAttentionOptions& o) {
  LocalAttentionCall call = call_of(query, key, value, inputs, o);
  if (o.use_xpos) call = nearby(call, o);
  const std::int64_t keys = o.use_xpos ? size_of(call.key, 2) : 0;
  const bool cut = o.use_xpos && needs_chunks(call, o);
  if (cut) call = in_chunks(widened(call), o);  // the gradients of chunks that overlap are added
  add_rotation(inputs.inv_freq, o, call);
  const at::Tensor output = run(call).to(query.scalar_type());
  return cut ? joined(output, size_of(query, 0), size_of(query, 2), keys) : output;
}

at::Tensor front(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                 std::int64_t window_size, const OptionalTensor& key_mask,
                 const OptionalTensor& attn_bias, const OptionalTensor& inv_freq, bool causal,
                 std::int64_t look_backward, std::optional<std::int64_t> look_forward,
                 bool exact_windowsize, std::optional<double> scale, bool shared_qk, bool use_xpos,
                 std::optional<double> xpos_scale_base, double dropout) {
  return local_attention(query, key, value, {key_mask, attn_bias, inv_freq},
                         {window_size, causal, look_backward, look_forward, exact_windowsize, scale,
                          shared_qk, use_xpos, xpos_scale_base, dropout});
}

TORCH_LIBRARY_IMPL(weir, CompositeImplicitAutograd, m) { m.impl("local_attention", front); }

}  // namespace

at::Tensor local_attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                           const LocalAttentionInputs& inputs,
                           const LocalAttentionOptions& options) {
  const auto run = [](const LocalAttentionCall& c) {
    return std::get<0>(attend(c.query, c.key, c.value, c.bias, c.tensors, c.rule));
  };
  return local_attention_by(run, query, key, value, inputs, options);
}

at::Tensor local_attention_composite(const at::Tensor& query, const at::Tensor& key,
                                     const at::Tensor& value, const LocalAttentionInputs& inputs,
                                     const LocalAttentionOptions& options) {
  const auto run = [](const LocalAttentionCall& c) {
    return std::get<0>(attend_composite(c.query, c.key, c.value, c.bias, c.tensors.list(),
                                        c.rule.integers(), c.rule.numbers()));
  };
  return local_attention_by(run, query, key, value, inputs, options);
}

}  // namespace weir::ops
