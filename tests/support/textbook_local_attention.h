// SPDX-License-Identifier: Apache-2.0
// Local attention as a textbook writes it: loops over pairs in scalar double, a pair that is not
// allowed is never read. The rotary embedding is that of the distance of a pair and xPos a factor
// zeta^(distance / base) on each pair of features, so that nothing overflows and no sequence is
// cut. Shares nothing with src.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace weir::tests {

struct TextbookLocalAttention {
  std::int64_t batch = 1, heads = 1, kv_heads = 1, queries = 0, keys = 0, dim = 1, value_dim = 1;
  std::int64_t window = 1, look_backward = 1, look_forward = 0;
  bool causal = false, exact = false, shared_qk = false;
  double scale = 1, xpos_base = 0;  // 0: no xPos
  std::vector<double> inv_freq;     // [dim / 2], or empty
  std::vector<double> bias;         // [heads][window][span], or empty
  std::vector<bool> key_mask;       // [batch][keys], or empty
  std::vector<double> query, key, value;

  std::int64_t position(std::int64_t i) const { return i + keys - queries; }
  /// The first position of the bucket of query i; positions before key 0 have buckets, too.
  std::int64_t bucket_start(std::int64_t i) const {
    std::int64_t start = 0;
    while (start > position(i)) start -= window;
    while (start + window <= position(i)) start += window;
    return start;
  }

  bool allowed(std::int64_t b, std::int64_t i, std::int64_t j) const {
    if (!key_mask.empty() && !key_mask[static_cast<std::size_t>(b * keys + j)]) return false;
    const std::int64_t p = position(i), start = bucket_start(i);
    if (causal && j > p) return false;
    if (exact) return j >= p - look_backward * window && j <= p + look_forward * window;
    return j >= start - look_backward * window && j < start + (1 + look_forward) * window;
  }

  std::size_t query_index(std::int64_t b, std::int64_t h, std::int64_t i) const {
    return static_cast<std::size_t>((b * heads + h) * queries + i);
  }
  std::size_t key_index(std::int64_t b, std::int64_t h, std::int64_t j) const {
    return static_cast<std::size_t>((b * kv_heads + h / (heads / kv_heads)) * keys + j);
  }
  std::size_t bias_index(std::int64_t h, std::int64_t i, std::int64_t j) const {
    const std::int64_t span = (look_backward + 1 + look_forward) * window;
    const std::int64_t start = bucket_start(i);
    return static_cast<std::size_t>((h * window + position(i) - start) * span + j - start +
                                    look_backward * window);
  }
};

struct TextbookLocalGradient {
  std::vector<double> query, key, value, bias;
};

/// The keys as they are compared with, and what the distance of a pair does to them.
struct TextbookLocalKeys {
  const TextbookLocalAttention& in;
  std::vector<double> keys, norms;
  std::vector<double> cosine, sine;  // [distance + queries + keys][dim / 2], times the xPos factor

  explicit TextbookLocalKeys(const TextbookLocalAttention& from) : in(from), keys(from.key) {
    const auto dim = static_cast<std::size_t>(in.dim), half = in.inv_freq.size();
    for (std::size_t row = 0; in.shared_qk && row < keys.size(); row += dim) {
      double square = 0;
      for (std::size_t d = 0; d < dim; ++d) square += keys[row + d] * keys[row + d];
      norms.push_back(std::max(std::sqrt(square), 1e-12));
      for (std::size_t d = 0; d < dim; ++d) keys[row + d] /= norms.back();
    }
    const std::int64_t far = half == 0 ? -1 : in.queries + in.keys;
    for (std::int64_t distance = -far; distance <= far; ++distance) {
      const auto apart = static_cast<double>(distance);
      for (std::size_t f = 0; f < half; ++f) {
        const double ratio = static_cast<double>(f) / static_cast<double>(half);
        const double zeta = (ratio + 0.4) / 1.4;
        const double factor = in.xpos_base == 0 ? 1 : std::pow(zeta, apart / in.xpos_base);
        cosine.push_back(factor * std::cos(apart * in.inv_freq[f]));
        sine.push_back(factor * std::sin(apart * in.inv_freq[f]));
      }
    }
  }

  /// `x` of a key as a query `distance` positions later meets it; direction -1: `x` of a query as
  /// the key meets it.
  std::vector<double> turned(const double* x, std::int64_t distance, double direction) const {
    std::vector<double> result(x, x + in.dim);
    const std::size_t half = in.inv_freq.size();
    const std::size_t row = static_cast<std::size_t>(distance + in.queries + in.keys) * half;
    for (std::size_t f = 0; f < half; ++f) {
      const double c = cosine[row + f], s = direction * sine[row + f];
      result[f] = c * x[f] + s * x[f + half];
      result[f + half] = c * x[f + half] - s * x[f];
    }
    return result;
  }
};

/// One query: the keys it may see and their softmax weights.
struct TextbookLocalRow {
  std::vector<std::int64_t> keys;
  std::vector<double> weights;

  TextbookLocalRow(const TextbookLocalAttention& in, const TextbookLocalKeys& all, std::int64_t b,
                   std::int64_t h, std::int64_t i) {
    const double* query =
        in.query.data() + in.query_index(b, h, i) * static_cast<std::size_t>(in.dim);
    for (std::int64_t j = 0; j < in.keys; ++j) {
      if (!in.allowed(b, i, j)) continue;
      const std::int64_t distance = in.position(i) - j;
      const double* key =
          all.keys.data() + in.key_index(b, h, j) * static_cast<std::size_t>(in.dim);
      const std::vector<double> turned = all.turned(key, distance, 1);
      double logit = 0;
      for (std::size_t d = 0; d < turned.size(); ++d) logit += in.scale * query[d] * turned[d];
      if (!in.bias.empty()) logit += in.bias[in.bias_index(h, i, j)];
      keys.push_back(j);
      weights.push_back(in.shared_qk && distance == 0 ? -5e4 : logit);
    }
    if (keys.empty()) return;
    const double top = *std::max_element(weights.begin(), weights.end());
    double sum = 0;
    for (const double logit : weights) sum += std::exp(logit - top);
    for (double& weight : weights) weight = std::exp(weight - top) / sum;
  }
};

/// body(b, h, i, row) for every query.
template <class Body>
void for_each_local_row(const TextbookLocalAttention& in, const TextbookLocalKeys& all,
                        const Body& body) {
  for (std::int64_t b = 0; b < in.batch; ++b) {
    for (std::int64_t h = 0; h < in.heads; ++h) {
      for (std::int64_t i = 0; i < in.queries; ++i) {
        body(b, h, i, TextbookLocalRow(in, all, b, h, i));
      }
    }
  }
}

inline std::vector<double> textbook_forward(const TextbookLocalAttention& in) {
  std::vector<double> result;
  const TextbookLocalKeys all(in);
  const auto dim = static_cast<std::size_t>(in.value_dim);
  for_each_local_row(in, all, [&](auto b, auto h, auto, const TextbookLocalRow& row) {
    std::vector<double> output(dim, 0.0);
    for (std::size_t t = 0; t < row.keys.size(); ++t) {
      const double* value = in.value.data() + in.key_index(b, h, row.keys[t]) * dim;
      for (std::size_t d = 0; d < dim; ++d) output[d] += row.weights[t] * value[d];
    }
    result.insert(result.end(), output.begin(), output.end());
  });
  return result;
}

/// Of normalised keys: dk = (dk^ - k^ <k^, dk^>) / |k|.
inline void undo_normalisation(const TextbookLocalKeys& all, std::vector<double>& grad_key) {
  const auto dim = static_cast<std::size_t>(all.in.dim);
  for (std::size_t row = 0; row < all.norms.size(); ++row) {
    const double* key = all.keys.data() + row * dim;
    double* grad = grad_key.data() + row * dim;
    double along = 0;
    for (std::size_t d = 0; d < dim; ++d) along += key[d] * grad[d];
    for (std::size_t d = 0; d < dim; ++d) grad[d] = (grad[d] - key[d] * along) / all.norms[row];
  }
}

/// dv_j = sum_i p_ij g_i;  ds_ij = p_ij (<g_i, v_j> - sum_j' p_ij' <g_i, v_j'>), 0 for the constant
/// logit of a pair of one position;  dbias = ds;  dq_i = scale sum_j ds_ij T_ij k_j;
/// dk_j = scale sum_i ds_ij T_ij^T q_i, T what the distance does.
inline TextbookLocalGradient textbook_backward(const TextbookLocalAttention& in,
                                               const std::vector<double>& grad) {
  const auto zeros = [](const std::vector<double>& x) {
    return std::vector<double>(x.size(), 0.0);
  };
  TextbookLocalGradient result = {zeros(in.query), zeros(in.key), zeros(in.value), zeros(in.bias)};
  const TextbookLocalKeys all(in);
  const auto dim = static_cast<std::size_t>(in.dim),
             value_dim = static_cast<std::size_t>(in.value_dim);
  for_each_local_row(in, all, [&](auto b, auto h, auto i, const TextbookLocalRow& row) {
    const std::size_t query = in.query_index(b, h, i);
    const double* g = grad.data() + query * value_dim;
    std::vector<double> products(row.keys.size(), 0.0);
    double mean = 0;
    for (std::size_t t = 0; t < row.keys.size(); ++t) {
      const std::size_t value = in.key_index(b, h, row.keys[t]) * value_dim;
      for (std::size_t d = 0; d < value_dim; ++d) {
        products[t] += g[d] * in.value[value + d];
        result.value[value + d] += row.weights[t] * g[d];
      }
      mean += row.weights[t] * products[t];
    }
    for (std::size_t t = 0; t < row.keys.size(); ++t) {
      const std::int64_t j = row.keys[t], distance = in.position(i) - j;
      if (in.shared_qk && distance == 0) continue;
      const double ds = row.weights[t] * (products[t] - mean);
      if (!in.bias.empty()) result.bias[in.bias_index(h, i, j)] += ds;
      const std::size_t key = in.key_index(b, h, j) * dim;
      const std::vector<double> for_query = all.turned(all.keys.data() + key, distance, 1);
      const std::vector<double> for_key = all.turned(in.query.data() + query * dim, distance, -1);
      for (std::size_t d = 0; d < dim; ++d) {
        result.query[query * dim + d] += in.scale * ds * for_query[d];
        result.key[key + d] += in.scale * ds * for_key[d];
      }
    }
  });
  undo_normalisation(all, result.key);
  return result;
}

}  // namespace weir::tests
