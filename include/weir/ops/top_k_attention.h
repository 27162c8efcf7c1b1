// SPDX-License-Identifier: Apache-2.0
// Top-k attention: softmax attention of each query over the k keys of its largest logits.
//
//   logit_ij = scale <q_i, k_j> at visible j: kept by key_mask and mask, causal: j <= i + m - n
//   kept(i)  = the k visible j of the largest logits, of equal ones the smaller j;
//              all of them if there are fewer
//   out_i    = sum_j softmax_j(logit_ij) v_j over kept(i);  0 where it is empty
//
// docs/operators/top_k_attention.md has the algorithm and the cost.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "weir/export.h"
#include "weir/ops/attention_masks.h"

namespace weir::ops {

struct TopKAttentionOptions {
  bool causal = false;
  std::optional<double> scale = std::nullopt;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = TopKAttentionOptions;
    field("causal", &Self::causal,
          "Only keys up to the query's position; the last query stands at the last key.");
    field("scale", &Self::scale, "Factor on the logits; none: 1 / sqrt(dim).");
  }
};

/// `query` (batch, heads, n, dim), `key` (batch, kv_heads, m, dim), `value` (batch, kv_heads, m,
/// value_dim), kv_heads dividing heads -> (batch, heads, n, value_dim) of their dtype. Head h reads
/// key head h / (heads / kv_heads). `k` is at least 1. Computed in float32, in float64 for float64.
/// The gradient reaches what is kept, and nothing else. Stored for it are the kept keys and their
/// weights, n k of each; nothing of size n x m. Keys and values that are not visible are never read
/// into a result, NaN included. Throws c10::Error on shapes, dtypes or options that do not fit.
///
/// Gupta et al. 2021, "Memory-efficient Transformers via Top-k Attention", arXiv:2106.06899.
WEIR_API at::Tensor top_k_attention(const at::Tensor& query, const at::Tensor& key,
                                    const at::Tensor& value, std::int64_t k,
                                    const AttentionMasks& masks = {},
                                    const TopKAttentionOptions& options = {});

}  // namespace weir::ops
