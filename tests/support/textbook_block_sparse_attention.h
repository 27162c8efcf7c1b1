// SPDX-License-Identifier: Apache-2.0
// Attention over allowed pairs as a textbook writes it: loops over pairs in scalar double, a pair
// that is not allowed is never read. Shares nothing with src.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace weir::tests {

struct TextbookAttention {
  std::int64_t batch = 1, heads = 1, kv_heads = 1, queries = 0, keys = 0, dim = 1, value_dim = 1;
  std::int64_t block_size = 32, window = 0, stride = 1, prefix = 0, local = 0;  // window 0: none
  bool causal = false;
  double scale = 1;
  std::int64_t layout_heads = 0, layout_rows = 0, layout_cols = 0;  // 0 heads: no layout
  std::vector<bool> layout;                            // [layout_heads][query blocks][key blocks]
  std::vector<std::int64_t> cu_seqlens, cu_seqlens_k;  // or empty
  std::vector<std::int64_t> document_ids;              // [batch][queries], or empty
  std::vector<bool> key_mask;                          // [batch][keys], or empty
  std::vector<bool> mask;                              // [batch][heads][queries][keys], or empty
  std::vector<double> query, key, value;

  /// The sequence that a position belongs to.
  struct Sequence {
    std::int64_t first = 0, length = 0, id = 0;
  };

  Sequence sequence_of(std::int64_t b, std::int64_t i, std::int64_t total,
                       const std::vector<std::int64_t>& cu) const {
    if (!document_ids.empty()) {
      const std::int64_t* ids = document_ids.data() + b * queries;
      std::int64_t first = i, last = i;
      while (first > 0 && ids[first - 1] == ids[i]) --first;
      while (last + 1 < queries && ids[last + 1] == ids[i]) ++last;
      return {first, last + 1 - first, first};
    }
    for (std::size_t s = 0; s + 1 < cu.size(); ++s) {
      if (cu[s] <= i && i < cu[s + 1]) {
        return {cu[s], cu[s + 1] - cu[s], static_cast<std::int64_t>(s)};
      }
    }
    return {0, total, 0};
  }

  bool allowed(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    const auto at = [](const std::vector<bool>& x, std::int64_t index) {
      return static_cast<bool>(x[static_cast<std::size_t>(index)]);
    };
    if (!key_mask.empty() && !at(key_mask, b * keys + j)) return false;
    if (!mask.empty() && !at(mask, ((b * heads + h) * queries + i) * keys + j)) return false;
    const Sequence of_query = sequence_of(b, i, queries, cu_seqlens),
                   of_key = sequence_of(b, j, keys, cu_seqlens_k);
    if (of_query.id != of_key.id) return false;
    i -= of_query.first, j -= of_key.first;
    // how far the key lies before the query
    const std::int64_t back = i + of_key.length - of_query.length - j;
    const bool in_time = !causal || back >= 0;
    if (in_time && std::abs(back) < local) return true;
    if (layout_heads > 0) {
      const std::int64_t head = layout_heads == 1 ? 0 : h;
      const std::int64_t line = head * layout_rows + i / block_size;
      if (!at(layout, line * layout_cols + j / block_size)) return false;
    }
    if (back % stride != 0) return false;
    if (j < prefix) return true;
    return in_time && (window == 0 || std::abs(back) < window);
  }

  const double* query_row(std::int64_t b, std::int64_t h, std::int64_t i) const {
    return query.data() + ((b * heads + h) * queries + i) * dim;
  }
  std::int64_t key_index(std::int64_t b, std::int64_t h, std::int64_t j) const {
    return (b * kv_heads + h * kv_heads / heads) * keys + j;
  }
};

struct TextbookAttentionResult {
  std::vector<double> output, lse;
};

struct TextbookAttentionGradient {
  std::vector<double> query, key, value;
};

inline double textbook_dot(const double* a, const double* b, std::int64_t n) {
  double sum = 0;
  for (std::int64_t d = 0; d < n; ++d) sum += a[d] * b[d];
  return sum;
}

/// One query: the keys it may see and their softmax weights.
struct TextbookAttentionRow {
  std::vector<std::int64_t> keys;
  std::vector<double> weights;
  double lse = -std::numeric_limits<double>::infinity();

  TextbookAttentionRow(const TextbookAttention& in, std::int64_t b, std::int64_t h,
                       std::int64_t i) {
    for (std::int64_t j = 0; j < in.keys; ++j) {
      if (!in.allowed(b, h, i, j)) continue;
      keys.push_back(j);
      const double* key = in.key.data() + in.key_index(b, h, j) * in.dim;
      weights.push_back(in.scale * textbook_dot(in.query_row(b, h, i), key, in.dim));
    }
    if (keys.empty()) return;
    const double top = *std::max_element(weights.begin(), weights.end());
    double sum = 0;
    for (const double logit : weights) sum += std::exp(logit - top);
    lse = top + std::log(sum);
    for (double& weight : weights) weight = std::exp(weight - top) / sum;
  }
};

template <class Body>
void for_each_query(const TextbookAttention& in, const Body& body) {
  for (std::int64_t b = 0; b < in.batch; ++b) {
    for (std::int64_t h = 0; h < in.heads; ++h) {
      for (std::int64_t i = 0; i < in.queries; ++i) body(b, h, i);
    }
  }
}

inline TextbookAttentionResult textbook_forward(const TextbookAttention& in) {
  TextbookAttentionResult result;
  for_each_query(in, [&](std::int64_t b, std::int64_t h, std::int64_t i) {
    const TextbookAttentionRow row(in, b, h, i);
    result.lse.push_back(row.lse);
    std::vector<double> output(static_cast<std::size_t>(in.value_dim), 0.0);
    for (std::size_t t = 0; t < row.keys.size(); ++t) {
      const double* value = in.value.data() + in.key_index(b, h, row.keys[t]) * in.value_dim;
      for (std::size_t d = 0; d < output.size(); ++d) output[d] += row.weights[t] * value[d];
    }
    result.output.insert(result.output.end(), output.begin(), output.end());
  });
  return result;
}

/// dv_j = sum_i p_ij g_i;  ds_ij = p_ij (<g_i, v_j> - sum_j' p_ij' <g_i, v_j'>);
/// dq_i = scale sum_j ds_ij k_j;  dk_j = scale sum_i ds_ij q_i.
inline TextbookAttentionGradient textbook_backward(const TextbookAttention& in,
                                                   const std::vector<double>& grad) {
  TextbookAttentionGradient result = {std::vector<double>(in.query.size(), 0.0),
                                      std::vector<double>(in.key.size(), 0.0),
                                      std::vector<double>(in.value.size(), 0.0)};
  for_each_query(in, [&](std::int64_t b, std::int64_t h, std::int64_t i) {
    const TextbookAttentionRow row(in, b, h, i);
    const std::int64_t query = (b * in.heads + h) * in.queries + i;
    const double* g = grad.data() + query * in.value_dim;
    const double* q = in.query.data() + query * in.dim;
    double* dq = result.query.data() + query * in.dim;
    std::vector<double> products;
    double mean = 0;
    for (std::size_t t = 0; t < row.keys.size(); ++t) {
      const std::int64_t key = in.key_index(b, h, row.keys[t]);
      products.push_back(textbook_dot(g, in.value.data() + key * in.value_dim, in.value_dim));
      mean += row.weights[t] * products[t];
    }
    for (std::size_t t = 0; t < row.keys.size(); ++t) {
      const std::int64_t key = in.key_index(b, h, row.keys[t]);
      const double ds = in.scale * row.weights[t] * (products[t] - mean);
      for (std::int64_t d = 0; d < in.dim; ++d) {
        dq[d] += ds * in.key[static_cast<std::size_t>(key * in.dim + d)];
        result.key[static_cast<std::size_t>(key * in.dim + d)] += ds * q[d];
      }
      for (std::int64_t d = 0; d < in.value_dim; ++d) {
        result.value[static_cast<std::size_t>(key * in.value_dim + d)] += row.weights[t] * g[d];
      }
    }
  });
  return result;
}

}  // namespace weir::tests
