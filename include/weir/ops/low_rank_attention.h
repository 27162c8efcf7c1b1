// SPDX-License-Identifier: Apache-2.0
// Low-rank attention: cheap routing heads choose k keys for each query, full heads attend to them.
//
//   r_ij    = route_scale <route_query_i, route_key_j> at visible j: kept by key_mask and mask,
//             causal: j <= i + m - n
//   kept(i) = the k visible j of the largest r_ij, of equal ones the smaller j;
//             all of them if there are fewer
//   p_ij    = softmax_j(scale <q_i, k_j>) over kept(i)
//   s_ij    = score_j(r_ij) over kept(i): how much the choice wants key j
//   out_i   = sum_j p_ij (1 + s_ij - stop_gradient(s_ij)) v_j over kept(i);  0 where it is empty
//
// docs/operators/low_rank_attention.md has the gradient, the algorithm and the cost.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "weir/export.h"
#include "weir/ops/attention_masks.h"

namespace weir::ops {

struct LowRankAttentionOptions {
  bool causal = false;
  std::optional<double> scale = std::nullopt;
  std::optional<double> route_scale = std::nullopt;
  std::string score = "softmax";
  double eps = 0.1;
  double k_ratio = 9.0 / 8;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = LowRankAttentionOptions;
    field("causal", &Self::causal,
          "Only keys up to the query's position; the last query stands at the last key.");
    field("scale", &Self::scale, "Factor on the logits; none: 1 / sqrt(dim).");
    field("route_scale", &Self::route_scale,
          "Factor on the routing logits; none: 1 / sqrt(route_dim).");
    field("score", &Self::score, "How the choice learns: softmax or coordinate_descent.");
    field("eps", &Self::eps, "Entropy of coordinate_descent; smaller is closer to a hard choice.");
    field("k_ratio", &Self::k_ratio,
          "coordinate_descent has the budget k / k_ratio, so that kept keys compete; at least 1.");
  }
};

/// `route_query` (batch, route_heads, n, route_dim) and `route_key` (batch, route_kv_heads, m,
/// route_dim) choose; `query` (batch, heads, n, dim), `key` (batch, kv_heads, m, dim) and `value`
/// (batch, kv_heads, m, value_dim) attend -> (batch, heads, n, value_dim) of their dtype. kv_heads
/// and route_heads divide heads, route_kv_heads divides route_heads. Head h takes the choice of
/// routing head h / (heads / route_heads) and reads key head h / (heads / kv_heads). `k` is at
/// least 1. `masks.mask` broadcasts to (batch, route_heads, n, m). Computed in float32, in float64
/// for float64.
///
/// The forward pass is plain softmax attention over the kept keys. The gradient reaches what is
/// kept, and nothing else: query, key and value as of attention, the routing heads through s.
/// Stored for it are n k indices and s per routing head and n k weights per head; nothing of size
/// n x m. What is not visible is never read into a result, NaN included. Throws c10::Error on
/// shapes, dtypes or options that do not fit.
WEIR_API at::Tensor low_rank_attention(const at::Tensor& route_query, const at::Tensor& route_key,
                                       const at::Tensor& query, const at::Tensor& key,
                                       const at::Tensor& value, std::int64_t k,
                                       const AttentionMasks& masks = {},
                                       const LowRankAttentionOptions& options = {});

}  // namespace weir::ops
