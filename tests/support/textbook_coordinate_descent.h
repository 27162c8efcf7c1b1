// SPDX-License-Identifier: Apache-2.0
// Coordinate descent as the papers write it, one row in scalar double, vectors b and all: slow,
// plain, and shared with nothing in src. Gradients by the reverse pass over the iterations.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace weir::tests {

struct TextbookRow {
  std::vector<double> scores;
  std::vector<bool> valid;
  double budget = 1;
};

struct TextbookResult {
  std::vector<double> weights, a;
};

inline std::vector<double> textbook_schedule(std::int64_t n_iters, double eps, double eps_init,
                                             double eps_decay) {
  std::vector<double> schedule = {std::max(eps_init, eps)};
  for (std::int64_t t = 0; t < n_iters; ++t)
    schedule.push_back(std::max(schedule.back() * eps_decay, eps));
  return schedule;
}

/// b = -s; n_iters times: a = eps_t (ln k - LSE((s + b) / eps_t)), b = -relu(s + a); y = exp((s + a
/// + b) / eps_T).
inline TextbookResult textbook_forward(const TextbookRow& row, const std::vector<double>& eps) {
  const std::size_t n = row.scores.size();
  TextbookResult result{std::vector<double>(n, 0.0), {}};
  std::vector<double> b(n);
  for (std::size_t j = 0; j < n; ++j) b[j] = -row.scores[j];
  double a = 0;
  for (std::size_t t = 0; t + 1 < eps.size(); ++t) {
    double top = -std::numeric_limits<double>::infinity(), sum = 0;
    for (std::size_t j = 0; j < n; ++j) {
      if (row.valid[j]) top = std::max(top, (row.scores[j] + b[j]) / eps[t]);
    }
    for (std::size_t j = 0; j < n; ++j) {
      if (row.valid[j]) sum += std::exp((row.scores[j] + b[j]) / eps[t] - top);
    }
    a = eps[t] * (std::log(row.budget) - top - std::log(sum));
    result.a.push_back(a);
    for (std::size_t j = 0; j < n; ++j) b[j] = -std::max(row.scores[j] + a, 0.0);
  }
  for (std::size_t j = 0; j < n; ++j) {
    if (row.valid[j]) result.weights[j] = std::exp((row.scores[j] + a + b[j]) / eps.back());
  }
  return result;
}

struct TextbookGradient {
  std::vector<double> scores;
  double budget = 0;
};

inline TextbookGradient textbook_backward(const TextbookRow& row, const std::vector<double>& eps,
                                          const TextbookResult& forward,
                                          const std::vector<double>& grad) {
  const std::size_t n = row.scores.size();
  const auto& s = row.scores;
  const auto& a = forward.a;
  TextbookGradient result{std::vector<double>(n, 0.0), 0};
  double mass = 0;
  for (std::size_t j = 0; j < n; ++j) {
    if (row.valid[j] && s[j] + a.back() <= 0) {
      result.scores[j] = grad[j] * forward.weights[j] / eps.back();
      mass += result.scores[j];
    }
  }
  for (std::size_t t = a.size() - 1;; --t) {
    result.budget += mass * eps[t] / row.budget;
    if (t == 0) return result;
    double saturated = 0;
    for (std::size_t j = 0; j < n; ++j) {
      if (!row.valid[j]) continue;
      // softmax of the capped scores: its normaliser is budget * exp(-a_t / eps_t)
      const double p = std::exp((std::min(s[j], -a[t - 1]) + a[t]) / eps[t]) / row.budget;
      if (s[j] + a[t - 1] <= 0) {
        result.scores[j] -= mass * p;
      } else {
        saturated += p;
      }
    }
    mass *= saturated;
  }
}

/// The c with sum_j exp(min(s_j - c, 0) / eps) = budget, by bisection.
inline double textbook_exact_threshold(const TextbookRow& row, double eps) {
  double low = std::numeric_limits<double>::infinity(), high = -low;
  std::size_t count = 0;
  for (std::size_t j = 0; j < row.scores.size(); ++j) {
    if (!row.valid[j]) continue;
    low = std::min(low, row.scores[j]);
    high = std::max(high, row.scores[j]);
    ++count;
  }
  high += eps * std::log(static_cast<double>(count) / std::min(row.budget, 1.0)) + 1;
  for (int step = 0; step < 200; ++step) {
    const double middle = low + (high - low) / 2;
    double sum = 0;
    for (std::size_t j = 0; j < row.scores.size(); ++j) {
      if (row.valid[j]) sum += std::exp(std::min(row.scores[j] - middle, 0.0) / eps);
    }
    (sum > row.budget ? low : high) = middle;
  }
  return low;
}

}  // namespace weir::tests
