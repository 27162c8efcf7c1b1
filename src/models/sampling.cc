// SPDX-License-Identifier: Apache-2.0
// Filters and draws over the logits of one position, with the meaning they have in Hugging Face's
// `generate` (logits processors and warpers).
#include "models/sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <set>

namespace weir::models {
namespace {

constexpr double kNever = -std::numeric_limits<double>::infinity();

// Softmax without the division; the largest logit gets 1.
std::vector<double> unnormalised(const Logits& logits) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  std::vector<double> weights(logits.size());
  std::transform(logits.begin(), logits.end(), weights.begin(),
                 [&](double logit) { return std::exp(logit - largest); });
  return weights;
}

// Relative to the largest, so that no temperature, however small, makes an infinity.
void heat(Logits& logits, double temperature) {
  const double largest = *std::max_element(logits.begin(), logits.end());
  for (double& logit : logits) logit = (logit - largest) / temperature;
}

// Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators": the output of
// splitmix64.
std::uint64_t mix(std::uint64_t z) {
  z += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

}  // namespace

void penalise_repetition(Logits& logits, const Tokens& seen, double penalty) {
  for (const std::int64_t token : std::set<std::int64_t>(seen.begin(), seen.end())) {
    double& logit = logits.at(static_cast<std::size_t>(token));
    logit = logit > 0 ? logit / penalty : logit * penalty;
  }
}

void keep_top_k(Logits& logits, std::int64_t k) {
  if (k >= static_cast<std::int64_t>(logits.size())) return;
  Logits sorted = logits;
  std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<>());
  const double least = sorted[static_cast<std::size_t>(k - 1)];
  for (double& logit : logits) logit = logit < least ? kNever : logit;
}

void keep_top_p(Logits& logits, double p) {
  std::vector<std::size_t> order(logits.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return logits[a] > logits[b]; });
  const std::vector<double> weights = unnormalised(logits);
  const double enough = p * std::accumulate(weights.begin(), weights.end(), 0.0);
  double before = 0;
  for (const std::size_t token : order) {
    if (before >= enough) logits[token] = kNever;
    before += weights[token];
  }
}

std::int64_t draw(const Logits& logits, double uniform) {
  const std::vector<double> weights = unnormalised(logits);
  const double target = uniform * std::accumulate(weights.begin(), weights.end(), 0.0);
  double sum = 0;
  std::size_t chosen = 0;  // the last possible token where rounding leaves `target` at the sum
  for (std::size_t token = 0; token < weights.size() && sum <= target; ++token) {
    sum += weights[token];
    if (weights[token] > 0) chosen = token;
  }
  return static_cast<std::int64_t>(chosen);
}

std::int64_t sample(Logits logits, const Tokens& seen, const GenerateOptions& options,
                    double uniform) {
  if (options.repetition_penalty != 1) {
    penalise_repetition(logits, seen, options.repetition_penalty);
  }
  if (options.temperature == 0) {
    return std::max_element(logits.begin(), logits.end()) - logits.begin();
  }
  heat(logits, options.temperature);
  if (options.top_k > 0) keep_top_k(logits, options.top_k);
  if (options.top_p < 1) keep_top_p(logits, options.top_p);
  return draw(logits, uniform);
}

double uniform(std::int64_t seed, std::int64_t row, std::int64_t index) {
  const std::uint64_t bits =
      mix(mix(mix(static_cast<std::uint64_t>(seed)) + static_cast<std::uint64_t>(row)) +
          static_cast<std::uint64_t>(index));
  return static_cast<double>(bits >> 11) * 0x1p-53;
}

}  // namespace weir::models
