// SPDX-License-Identifier: Apache-2.0
// Local attention: softmax attention over a band of positions.
//
//   query i of bucket m = floor(i / window_size) sees key j in [low, high], where
//     exact_windowsize   low = i - look_backward * window_size
//                        high = causal ? i : i + look_forward * window_size
//     otherwise          low = (m - look_backward) * window_size
//                        high = causal ? i : (m + 1 + look_forward) * window_size - 1
//   out_i = sum_j softmax_j(scale <R_i q_i, R_j k_j> + bias_ij) v_j;  0 where no key is left
//
// R is the rotary embedding at the true positions, so that logits depend on i - j alone.
// docs/operators/local_attention.md has the algorithm and the cost.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "weir/export.h"

namespace weir::ops {

struct LocalAttentionOptions {
  std::int64_t window_size = 0;
  bool causal = false;
  std::int64_t look_backward = 1;
  std::optional<std::int64_t> look_forward = std::nullopt;
  bool exact_windowsize = false;
  std::optional<double> scale = std::nullopt;
  bool shared_qk = false;
  bool use_xpos = false;
  std::optional<double> xpos_scale_base = std::nullopt;
  double dropout = 0;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = LocalAttentionOptions;
    field("window_size", &Self::window_size, "Positions per bucket; required.");
    field("causal", &Self::causal, "Only keys up to the query's position.");
    field("look_backward", &Self::look_backward, "Buckets, or window sizes, seen backward.");
    field("look_forward", &Self::look_forward, "The same forward; none: 0 if causal, else 1.");
    field("exact_windowsize", &Self::exact_windowsize,
          "Windows of equal length around each query instead of whole buckets.");
    field("scale", &Self::scale, "Factor on the logits; none: 1 / sqrt(dim).");
    field("shared_qk", &Self::shared_qk,
          "Keys are normalised, and a query attends to itself only if nothing else is left.");
    field("use_xpos", &Self::use_xpos, "Rotary embedding with the length scaling of xPos.");
    field("xpos_scale_base", &Self::xpos_scale_base,
          "Distance over which xPos decays; none: window_size / 2, rounded down.");
    field("dropout", &Self::dropout, "Share of the weights to drop, in [0, 1).");
  }
};

struct LocalAttentionInputs {
  std::optional<at::Tensor> key_mask = std::nullopt;   ///< bool (batch, m), true = keep
  std::optional<at::Tensor> attn_bias = std::nullopt;  ///< (heads, window_size,
                                                       ///< (look_backward + 1 + look_forward) *
                                                       ///< window_size), added to the logits
  std::optional<at::Tensor> inv_freq = std::nullopt;   ///< (dim / 2): rotary, angle position *
                                                       ///< inv_freq, halves of a head paired
};

/// `query` (batch, heads, n, dim), `key` (batch, kv_heads, m, dim), `value` (batch, kv_heads, m,
/// value_dim), kv_heads dividing heads -> (batch, heads, n, value_dim) of their dtype. The last
/// query stands at the last key; buckets are counted from key 0. Any n: nothing is padded. Computed
/// in float32, in float64 for float64, in memory linear in n. Differentiable in query, key, value
/// and attn_bias. Throws c10::Error on shapes, dtypes or options that do not fit.
///
/// Slot (a, p) of attn_bias is that of query a of a bucket and key p of its span, which begins
/// look_backward buckets earlier.
WEIR_API at::Tensor local_attention(const at::Tensor& query, const at::Tensor& key,
                                    const at::Tensor& value, const LocalAttentionInputs& inputs,
                                    const LocalAttentionOptions& options);

/// The same answer from ATen operators, dense, differentiable any number of times.
WEIR_API at::Tensor local_attention_composite(const at::Tensor& query, const at::Tensor& key,
                                              const at::Tensor& value,
                                              const LocalAttentionInputs& inputs,
                                              const LocalAttentionOptions& options);

}  // namespace weir::ops
