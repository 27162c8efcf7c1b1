// SPDX-License-Identifier: Apache-2.0
// Top-k attention as a textbook writes it: loops in scalar double, a stable sort of the visible
// logits of each query, softmax over the first k. Which pairs are visible is said by
// textbook_block_sparse_attention.h. Shares nothing with src.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "support/textbook_block_sparse_attention.h"

namespace weir::tests {

/// One query: the keys it keeps, ascending, and their weights.
struct TextbookKeptRow {
  std::vector<std::int64_t> keys;
  std::vector<double> weights;

  TextbookKeptRow(const TextbookAttention& in, std::int64_t k, std::int64_t b, std::int64_t h,
                  std::int64_t i) {
    std::vector<std::int64_t> visible;
    std::vector<double> logits(static_cast<std::size_t>(in.keys));
    for (std::int64_t j = 0; j < in.keys; ++j) {
      if (!in.allowed(b, h, i, j)) continue;
      visible.push_back(j);
      const double* key = in.key.data() + in.key_index(b, h, j) * in.dim;
      logits[static_cast<std::size_t>(j)] =
          in.scale * textbook_dot(in.query_row(b, h, i), key, in.dim);
    }
    const auto logit = [&](std::int64_t j) { return logits[static_cast<std::size_t>(j)]; };
    std::stable_sort(visible.begin(), visible.end(),
                     [&](std::int64_t a, std::int64_t c) { return logit(a) > logit(c); });
    if (static_cast<std::int64_t>(visible.size()) > k) visible.resize(static_cast<std::size_t>(k));
    std::sort(visible.begin(), visible.end());
    keys = visible;
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (const std::int64_t j : keys) top = std::max(top, logit(j));
    for (const std::int64_t j : keys) weights.push_back(std::exp(logit(j) - top));
    for (const double weight : weights) sum += weight;
    for (double& weight : weights) weight /= sum;
  }
};

struct TextbookTopK {
  std::vector<double> output, query, key, value;  // the last three: gradients
  std::vector<double> indices, weights;           // of min(k, keys) places, the last ones -1 and 0
};

/// Output, and the gradients of sum(output * grad): those of block-sparse attention, over the kept
/// keys.
inline TextbookTopK textbook_top_k(const TextbookAttention& in, std::int64_t k,
                                   const std::vector<double>& grad) {
  TextbookTopK result;
  result.query.assign(in.query.size(), 0.0);
  result.key.assign(in.key.size(), 0.0);
  result.value.assign(in.value.size(), 0.0);
  const auto places = static_cast<std::size_t>(std::min(k, in.keys));
  for_each_query(in, [&](std::int64_t b, std::int64_t h, std::int64_t i) {
    const TextbookKeptRow row(in, k, b, h, i);
    const std::int64_t query = (b * in.heads + h) * in.queries + i;
    const double* g = grad.data() + query * in.value_dim;
    std::vector<double> output(static_cast<std::size_t>(in.value_dim), 0.0), products;
    double mean = 0;
    for (std::size_t t = 0; t < row.keys.size(); ++t) {
      const std::int64_t first = in.key_index(b, h, row.keys[t]) * in.value_dim;
      products.push_back(textbook_dot(g, in.value.data() + first, in.value_dim));
      mean += row.weights[t] * products[t];
      for (std::int64_t d = 0; d < in.value_dim; ++d) {
        const auto slot = static_cast<std::size_t>(first + d);
        output[static_cast<std::size_t>(d)] += row.weights[t] * in.value[slot];
        result.value[slot] += row.weights[t] * g[d];
      }
    }
    for (std::size_t t = 0; t < row.keys.size(); ++t) {
      const double of_logit = in.scale * row.weights[t] * (products[t] - mean);
      for (std::int64_t d = 0; d < in.dim; ++d) {
        const auto to = static_cast<std::size_t>(in.key_index(b, h, row.keys[t]) * in.dim + d);
        result.query[static_cast<std::size_t>(query * in.dim + d)] += of_logit * in.key[to];
        result.key[to] += of_logit * in.query_row(b, h, i)[d];
      }
    }
    result.output.insert(result.output.end(), output.begin(), output.end());
    for (std::size_t t = 0; t < places; ++t) {
      const bool there = t < row.keys.size();
      result.indices.push_back(there ? static_cast<double>(row.keys[t]) : -1.0);
      result.weights.push_back(there ? row.weights[t] : 0.0);
    }
  });
  return result;
}

}  // namespace weir::tests
