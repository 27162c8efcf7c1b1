// SPDX-License-Identifier: Apache-2.0
// Strict causal routing as its definition reads: one row, position after position, in scalar
// double.
#pragma once

#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "support/textbook_coordinate_descent.h"
#include "weir/nn/coordinate_descent_router.h"

namespace weir::nn {

struct TextbookCausalRow {
  std::vector<double> scores;  // of the router, one per position
  std::int64_t window = 0, budget = 0;
  CoordinateDescentRouterOptions router;  // its schedule
  bool exact = true;
};

inline double textbook_threshold(std::vector<double> scores, double budget,
                                 const CoordinateDescentRouterOptions& o, bool exact) {
  const std::vector<bool> valid(scores.size(), true);
  const tests::TextbookRow row{std::move(scores), valid, budget};
  if (exact) return -tests::textbook_exact_threshold(row, o.eps);
  return tests::textbook_forward(
             row,
             tests::textbook_schedule(o.n_iters, o.eps, o.eps_init.value_or(o.eps), o.eps_decay))
      .a.back();
}

/// The score with which position `i` is routed; -1: it is not.
inline double textbook_causal_score(const TextbookCausalRow& row, std::int64_t i) {
  const auto& s = row.scores;
  const std::int64_t begin = i / row.window * row.window, m = i / row.window;
  if (row.window <= row.budget) return 1;
  const double eps = row.exact
                         ? row.router.eps
                         : tests::textbook_schedule(row.router.n_iters, row.router.eps,
                                                    row.router.eps_init.value_or(row.router.eps),
                                                    row.router.eps_decay)
                               .back();
  const double share = static_cast<double>(row.budget) / static_cast<double>(row.window);
  const double a =
      m == 0 ? eps * std::log(share)
             : textbook_threshold({s.begin(), s.begin() + begin},
                                  share * static_cast<double>(begin), row.router, row.exact);
  const auto weight = [&](std::int64_t j) { return std::exp(std::min(s[j] + a, 0.0) / eps); };
  std::int64_t before = 0;
  for (std::int64_t j = begin; j < i; ++j) before += weight(j) >= 0.5;
  return weight(i) >= 0.5 && before < row.budget ? weight(i) : -1;
}

/// The `number` largest of the first `length` scores, by ascending position.
inline std::vector<std::int64_t> textbook_largest(const std::vector<double>& scores,
                                                  std::int64_t length, std::int64_t number) {
  std::vector<std::int64_t> order(static_cast<std::size_t>(length));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t a, std::int64_t b) { return scores[a] > scores[b]; });
  order.resize(static_cast<std::size_t>(std::min(number, length)));
  std::sort(order.begin(), order.end());
  return order;
}

}  // namespace weir::nn
