// SPDX-License-Identifier: Apache-2.0
// Low-rank attention as a textbook writes it: loops in scalar double. The routing heads are a
// textbook's top-k attention of their own, whose kept keys the other heads attend to; the exact
// scores of coordinate descent come from bisection. Shares nothing with src.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "support/textbook_coordinate_descent.h"
#include "support/textbook_top_k_attention.h"

namespace weir::tests {

struct TextbookScore {
  bool descends = false;  // coordinate descent, else softmax
  double eps = 0.1, budget = 1;

  /// Scores of the logits of one row.
  std::vector<double> of(const std::vector<double>& logits) const {
    std::vector<double> scores(logits.size(), 1.0);
    if (!descends) {
      double top = -std::numeric_limits<double>::infinity(), sum = 0;
      for (const double r : logits) top = std::max(top, r);
      for (const double r : logits) sum += std::exp(r - top);
      for (std::size_t t = 0; t < logits.size(); ++t) scores[t] = std::exp(logits[t] - top) / sum;
      return scores;
    }
    if (static_cast<double>(logits.size()) <= budget) return scores;
    const double c = threshold(logits);
    for (std::size_t t = 0; t < logits.size(); ++t) {
      scores[t] = std::exp(std::min(logits[t] - c, 0.0) / eps);
    }
    return scores;
  }

  /// Gradient of sum(scores * grad) by the logits.
  std::vector<double> gradient(const std::vector<double>& logits,
                               const std::vector<double>& grad) const {
    std::vector<double> result(logits.size(), 0.0);
    if (descends && static_cast<double>(logits.size()) <= budget) return result;
    const std::vector<double> scores = of(logits);
    const double c = descends ? threshold(logits) : std::numeric_limits<double>::infinity();
    double mass = 0, weighted = 0;  // over what is not saturated
    for (std::size_t t = 0; t < logits.size(); ++t) {
      if (logits[t] > c) continue;
      mass += scores[t], weighted += scores[t] * grad[t];
    }
    for (std::size_t t = 0; t < logits.size(); ++t) {
      if (logits[t] > c) continue;
      result[t] = scores[t] * (grad[t] - weighted / mass) / (descends ? eps : 1);
    }
    return result;
  }

 private:
  double threshold(const std::vector<double>& logits) const {
    return textbook_exact_threshold({logits, std::vector<bool>(logits.size(), true), budget}, eps);
  }
};

struct TextbookLowRank {
  std::vector<double> output, weights;         // [batch, heads, queries, ...]
  std::vector<double> indices, scores;         // [batch, route_heads, queries, places]
  std::vector<double> route_query, route_key;  // gradients
  std::vector<double> query, key, value;       // gradients
};

/// `route` has the routing heads as query and key, `in` the others; which pairs are visible is said
/// by `route`. Output, and the gradients of sum(output * grad).
inline TextbookLowRank textbook_low_rank(const TextbookAttention& route,
                                         const TextbookAttention& in, std::int64_t k,
                                         const TextbookScore& score,
                                         const std::vector<double>& grad) {
  const auto places = static_cast<std::size_t>(std::min(k, in.keys));
  const auto rows = static_cast<std::size_t>(in.batch * in.heads * in.queries);
  TextbookLowRank result;
  result.output.assign(rows * static_cast<std::size_t>(in.value_dim), 0.0);
  result.weights.assign(rows * places, 0.0);
  result.route_query.assign(route.query.size(), 0.0);
  result.route_key.assign(route.key.size(), 0.0);
  result.query.assign(in.query.size(), 0.0);
  result.key.assign(in.key.size(), 0.0);
  result.value.assign(in.value.size(), 0.0);
  const std::int64_t group = in.heads / std::max<std::int64_t>(1, route.heads);
  for_each_query(route, [&](std::int64_t b, std::int64_t a, std::int64_t i) {
    const TextbookKeptRow kept(route, k, b, a, i);
    const std::size_t count = kept.keys.size();
    std::vector<double> logits, of_scores(count, 0.0);
    for (const std::int64_t j : kept.keys) {
      const double* key = route.key.data() + route.key_index(b, a, j) * route.dim;
      logits.push_back(route.scale * textbook_dot(route.query_row(b, a, i), key, route.dim));
    }
    const std::vector<double> scores = score.of(logits);
    for (std::size_t t = 0; t < places; ++t) {
      result.indices.push_back(t < count ? static_cast<double>(kept.keys[t]) : -1.0);
      result.scores.push_back(t < count ? scores[t] : 0.0);
    }
    for (std::int64_t h = a * group; h < (a + 1) * group; ++h) {
      const std::int64_t query = (b * in.heads + h) * in.queries + i;
      const double* g = grad.data() + query * in.value_dim;
      std::vector<double> attention, products;
      for (const std::int64_t j : kept.keys) {
        const double* key = in.key.data() + in.key_index(b, h, j) * in.dim;
        const double* value = in.value.data() + in.key_index(b, h, j) * in.value_dim;
        attention.push_back(in.scale * textbook_dot(in.query_row(b, h, i), key, in.dim));
        products.push_back(textbook_dot(g, value, in.value_dim));
      }
      const std::vector<double> weights = TextbookScore{}.of(attention);
      const std::vector<double> of_logits = TextbookScore{}.gradient(attention, products);
      for (std::size_t t = 0; t < count; ++t) {
        const std::int64_t row = in.key_index(b, h, kept.keys[t]);
        result.weights[static_cast<std::size_t>(query) * places + t] = weights[t];
        of_scores[t] += weights[t] * products[t];
        for (std::int64_t d = 0; d < in.value_dim; ++d) {
          const auto slot = static_cast<std::size_t>(row * in.value_dim + d);
          result.output[static_cast<std::size_t>(query * in.value_dim + d)] +=
              weights[t] * in.value[slot];
          result.value[slot] += weights[t] * g[d];
        }
        for (std::int64_t d = 0; d < in.dim; ++d) {
          const auto slot = static_cast<std::size_t>(row * in.dim + d);
          result.query[static_cast<std::size_t>(query * in.dim + d)] +=
              in.scale * of_logits[t] * in.key[slot];
          result.key[slot] += in.scale * of_logits[t] * in.query_row(b, h, i)[d];
        }
      }
    }
    const std::vector<double> of_logits = score.gradient(logits, of_scores);
    const std::int64_t query = (b * route.heads + a) * route.queries + i;
    for (std::size_t t = 0; t < count; ++t) {
      for (std::int64_t d = 0; d < route.dim; ++d) {
        const auto slot =
            static_cast<std::size_t>(route.key_index(b, a, kept.keys[t]) * route.dim + d);
        result.route_query[static_cast<std::size_t>(query * route.dim + d)] +=
            route.scale * of_logits[t] * route.key[slot];
        result.route_key[slot] += route.scale * of_logits[t] * route.query_row(b, a, i)[d];
      }
    }
  });
  return result;
}

}  // namespace weir::tests
