// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/ones.h>

#include <algorithm>

#include "ops/local_attention.h"

namespace weir::ops {
namespace {

constexpr char kExpected[] = "weir::local_attention: expected ";

// |ln zeta| <= 1.26: over this many times the base, factors stay within e^(+-41).
constexpr double kMostXpos = 64;
// Within e^(+-61) if one window is longer. Beyond it keys below 1e-12 would be flushed to zero.
constexpr double kMostXposWindow = 96;

/// Positions in units of which a sequence is cut, and how far beyond such a chunk keys are seen.
struct Chunks {
  std::int64_t step = 0, before = 0, after = 0;

  explicit Chunks(const LocalAttentionOptions& o)
      : before(o.look_backward * o.window_size), after(forward_buckets(o) * o.window_size) {
    const std::int64_t w = o.window_size;
    const auto most = static_cast<std::int64_t>(std::min(kMostXpos * xpos_base(o), 1e15));
    step = std::max(w, (most - before - after) / w * w);
  }
  std::int64_t span() const { return before + step + after; }
};

/// (b, h, n, d) -> (b * chunks, h, span, d): chunk c holds positions c * step - before ... .
at::Tensor chunked(const at::Tensor& x, std::int64_t step, std::int64_t before,
                   std::int64_t after) {
  const std::int64_t n = size_of(x, 2), chunks = (n + step - 1) / step;
  return at::constant_pad_nd(x, {0, 0, before, chunks * step - n + after})
      .unfold(2, before + step + after, step)  // (b, h, chunks, d, span)
      .permute({0, 2, 1, 4, 3})
      .flatten(0, 1);
}

/// Marks of `kept` (b, x) as rows of the chunks, (b * chunks, span).
at::Tensor chunked_marks(const at::Tensor& kept, std::int64_t step, std::int64_t before,
                         std::int64_t after) {
  return chunked(kept.unsqueeze(1).unsqueeze(-1), step, before, after).squeeze(-1).squeeze(1);
}

}  // namespace

std::int64_t forward_buckets(const LocalAttentionOptions& o) {
  return o.look_forward.value_or(o.causal ? 0 : 1);
}

double xpos_base(const LocalAttentionOptions& o) {
  return o.xpos_scale_base.value_or(static_cast<double>(o.window_size / 2));
}

LocalAttentionCall widened(const LocalAttentionCall& call) {
  LocalAttentionCall wide = call;
  const auto compute = call.query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  for (at::Tensor* x : {&wide.query, &wide.key, &wide.value}) *x = x->to(compute);
  return wide;
}

std::int64_t size_of(const at::Tensor& x, std::int64_t dimension) {
  return x.sym_size(dimension).guard_int(__FILE__, __LINE__);
}

LocalAttentionCall nearby(const LocalAttentionCall& call, const LocalAttentionOptions& o) {
  const std::int64_t n = size_of(call.query, 2), m = size_of(call.key, 2);
  const std::int64_t first = std::max<std::int64_t>(0, m - n) / o.window_size - o.look_backward;
  if (first <= 0) return call;
  LocalAttentionCall near = call;
  for (at::Tensor* x : {&near.key, &near.value}) *x = x->slice(2, first * o.window_size);
  if (near.tensors.key_mask) {
    near.tensors.key_mask = near.tensors.key_mask->slice(1, first * o.window_size);
  }
  return near;
}

bool needs_chunks(const LocalAttentionCall& call, const LocalAttentionOptions& o) {
  const std::int64_t length = std::max(size_of(call.query, 2), size_of(call.key, 2));
  const Chunks chunks(o);
  const bool cut = static_cast<double>(length) > kMostXpos * xpos_base(o) && length > chunks.span();
  const std::int64_t whole = cut ? chunks.span() : length;
  TORCH_CHECK_NOT_IMPLEMENTED(static_cast<double>(whole) <= kMostXposWindow * xpos_base(o),
                              kExpected, "windows of at most ", kMostXposWindow,
                              " times `xpos_scale_base`, ", kMostXposWindow * xpos_base(o),
                              " positions, but got ", whole, ".");
  return cut && size_of(call.key, 0) > 0;
}

LocalAttentionCall in_chunks(const LocalAttentionCall& call, const LocalAttentionOptions& o) {
  const auto [step, before, after] = Chunks(o);
  const std::int64_t n = size_of(call.query, 2), m = size_of(call.key, 2);
  TORCH_CHECK_NOT_IMPLEMENTED(n <= m, kExpected, "at most as many queries as keys, ", m,
                              ", with `use_xpos`, but got ", n, ".");
  LocalAttentionCall parts = call;
  parts.query = chunked(at::constant_pad_nd(call.query, {0, 0, m - n, 0}), step, 0, 0);
  parts.key = chunked(call.key, step, before, after);
  parts.value = chunked(call.value, step, before, after);
  const at::Tensor all = at::ones({size_of(call.key, 0), m}, call.key.options().dtype(at::kBool));
  parts.tensors.key_mask = chunked_marks(call.tensors.key_mask.value_or(all), step, before, after);
  if (n < m) {  // no query of the padding, which would see keys that no query sees
    const at::Tensor real = at::constant_pad_nd(all.slice(1, m - n), {m - n, 0});
    parts.tensors.mask = chunked_marks(real, step, 0, 0).unsqueeze(1).unsqueeze(-1);
  }
  parts.rule.offset = before;
  return parts;
}

at::Tensor joined(const at::Tensor& x, std::int64_t batch, std::int64_t n, std::int64_t m) {
  return x.unflatten(0, {batch, size_of(x, 0) / batch})
      .transpose(1, 2)
      .flatten(2, 3)
      .slice(2, m - n, m);
}

}  // namespace weir::ops
