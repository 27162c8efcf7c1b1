// SPDX-License-Identifier: Apache-2.0
// Routing as its definition reads, one row in scalar double: similarities, coordinate descent of
// each block without any padding, and a sort.
#pragma once

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "support/textbook_coordinate_descent.h"
#include "weir/nn/coordinate_descent_router.h"

namespace weir::nn {

struct TextbookRoute {
  std::vector<std::int64_t> indices;
  std::vector<double> scores;
  std::vector<bool> kept;
};

inline std::vector<double> textbook_similarities(const at::Tensor& x, const at::Tensor& token,
                                                 const CoordinateDescentRouterOptions& o) {
  std::vector<double> result;
  for (std::int64_t j = 0; j < x.size(0); ++j) {
    double product = 0, of_x = 0, of_token = 0;
    for (std::int64_t i = 0; i < x.size(1); ++i) {
      const double a = x[j][i].item<double>(), b = token[i].item<double>();
      product += a * b;
      of_x += a * a;
      of_token += b * b;
    }
    const double cosine = product / std::sqrt(of_x) / std::sqrt(of_token);
    result.push_back(o.cosine_sim_routing ? o.cosine_sim_scale * cosine : product);
  }
  return result;
}

inline std::vector<double> textbook_scores(const tests::TextbookRow& row,
                                           const CoordinateDescentRouterOptions& o) {
  if (o.router_type == "cum_softmax") {
    std::vector<double> weights(row.scores.size(), 0.0);
    double top = -std::numeric_limits<double>::infinity();
    for (std::size_t j = 0; j < row.scores.size(); ++j) {
      if (row.valid[j]) top = std::max(top, row.scores[j]);
    }
    for (std::size_t j = 0; j < row.scores.size(); ++j) {
      double sum = 0;
      for (std::size_t i = 0; i < row.scores.size(); ++i) {
        if (!row.valid[i] || row.scores[i] > row.scores[j]) continue;
        sum += std::exp((row.scores[i] - top) / o.temperature);
      }
      if (!row.valid[j]) continue;
      weights[j] = std::exp((row.scores[j] - top) / o.temperature) / std::max(sum, 1e-6);
    }
    return weights;
  }
  if (o.solver == "iterative") {
    const auto eps =
        tests::textbook_schedule(o.n_iters, o.eps, o.eps_init.value_or(o.eps), o.eps_decay);
    return tests::textbook_forward(row, eps).weights;
  }
  const auto valid = std::count(row.valid.begin(), row.valid.end(), true);
  const double c = static_cast<double>(valid) <= row.budget
                       ? -std::numeric_limits<double>::infinity()
                       : tests::textbook_exact_threshold(row, o.eps);
  std::vector<double> weights;
  for (std::size_t j = 0; j < row.scores.size(); ++j) {
    weights.push_back(row.valid[j] ? std::exp(std::min(row.scores[j] - c, 0.0) / o.eps) : 0.0);
  }
  return weights;
}

/// One route of one entry `x` (n, dim) that routes `number` tokens in a batch whose largest number
/// is `largest`. `valid` (n).
inline TextbookRoute textbook_route(const at::Tensor& x, const at::Tensor& token,
                                    const std::vector<bool>& valid, std::int64_t number,
                                    std::int64_t largest, const CoordinateDescentRouterOptions& o) {
  const std::int64_t n = x.size(0), size = std::min(n, o.route_block_size.value_or(n));
  const std::int64_t count = (n + size - 1) / size;
  const auto share = [&](std::int64_t k) { return k >= n ? size : (k + count - 1) / count; };
  const std::vector<double> s = textbook_similarities(x, token, o);
  TextbookRoute route;
  for (std::int64_t begin = 0; begin < n; begin += size) {
    const std::int64_t end = std::min(n, begin + size);
    tests::TextbookRow row;
    row.scores.assign(s.begin() + begin, s.begin() + end);
    row.valid.assign(valid.begin() + begin, valid.begin() + end);
    row.budget =
        std::min(static_cast<double>(share(number)) * o.fetch_k_ratio, static_cast<double>(size));
    std::vector<double> y(row.scores.size(), 1.0);
    if (share(number) > 0 && number < n) y = textbook_scores(row, o);

    const auto& by = o.select_by == "scores" ? y : row.scores;
    std::vector<std::int64_t> order(row.scores.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](std::int64_t a, std::int64_t b) {
      return row.valid[a] != row.valid[b] ? row.valid[a] : row.valid[a] && by[a] > by[b];
    });
    for (std::int64_t i = 0; i < share(largest); ++i) {
      const bool there = i < std::min(share(number), end - begin);
      const bool kept = there && row.valid[order[i]];
      // Beyond the end of the last block indices go on; beyond the entry's own number they are n.
      route.indices.push_back(there ? begin + order[i] : i < share(number) ? begin + i : n);
      route.scores.push_back(!kept ? 0.0 : o.straight_through ? 1.0 : y[order[i]]);
      route.kept.push_back(kept);
    }
  }
  return route;
}

}  // namespace weir::nn
