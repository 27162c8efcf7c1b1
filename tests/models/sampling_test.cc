// SPDX-License-Identifier: Apache-2.0
// The filters and the draw, each on its own: as in Hugging Face's `generate`, ties included.
#include "models/sampling.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <set>

namespace weir::models {
namespace {

using ::testing::ElementsAre;
constexpr double kNever = -std::numeric_limits<double>::infinity();

Logits logs(std::initializer_list<double> probabilities) {
  Logits logits;
  for (const double p : probabilities) logits.push_back(std::log(p));
  return logits;
}

std::vector<bool> kept(const Logits& logits) {
  std::vector<bool> result;
  for (const double logit : logits) result.push_back(logit != kNever);
  return result;
}

TEST(Sampling, PenaltyMakesSeenTokensLessLikelyOnce) {
  Logits logits = {2, -2, 0, 4, kNever};
  penalise_repetition(logits, {0, 1, 1, 0, 4, 2}, 2);
  EXPECT_THAT(logits, ElementsAre(1, -4, 0, 4, kNever));
}

TEST(Sampling, TopKKeepsTies) {
  Logits logits = {1, 3, 2, 2, 0};
  keep_top_k(logits, 2);
  EXPECT_THAT(logits, ElementsAre(kNever, 3, 2, 2, kNever));
  keep_top_k(logits, 1);
  EXPECT_THAT(logits, ElementsAre(kNever, 3, kNever, kNever, kNever));
  Logits all = {1, 2};
  keep_top_k(all, 7);
  EXPECT_THAT(all, ElementsAre(1, 2));
}

TEST(Sampling, TopPKeepsTheFewestThatReachIt) {
  const auto kept_at = [](double p) {
    Logits logits = logs({0.125, 0.5, 0.0, 0.25, 0.125});
    keep_top_p(logits, p);
    return kept(logits);
  };
  EXPECT_THAT(kept_at(1e-9), ElementsAre(false, true, false, false, false));
  EXPECT_THAT(kept_at(0.5), ElementsAre(false, true, false, false, false));
  EXPECT_THAT(kept_at(0.51), ElementsAre(false, true, false, true, false));
  EXPECT_THAT(kept_at(0.8), ElementsAre(true, true, false, true, false)) << "of ties the first";
  EXPECT_THAT(kept_at(0.9), ElementsAre(true, true, false, true, true));
}

TEST(Sampling, DrawDividesTheUnitIntervalByProbability) {
  const Logits logits = logs({0.25, 0.0, 0.5, 0.25});
  EXPECT_EQ(draw(logits, 0.0), 0);
  EXPECT_EQ(draw(logits, 0.24), 0);
  EXPECT_EQ(draw(logits, 0.26), 2);
  EXPECT_EQ(draw(logits, 0.74), 2);
  EXPECT_EQ(draw(logits, 0.76), 3);
  EXPECT_EQ(draw(logits, std::nextafter(1.0, 0.0)), 3);
  EXPECT_EQ(draw({kNever, 5, kNever}, 0.0), 1);
  EXPECT_EQ(draw({kNever, 5, kNever}, std::nextafter(1.0, 0.0)), 1);
}

TEST(Sampling, TemperatureZeroTakesTheFirstOfTheLargest) {
  EXPECT_EQ(sample({1, 3, 3, 2}, {}, {.temperature = 0}, 0.99), 1);
  EXPECT_EQ(sample({1, 3, 3, 2}, {1}, {.temperature = 0, .repetition_penalty = 2}, 0.99), 2);
}

TEST(Sampling, TemperatureDividesTheLogits) {
  const Logits logits = logs({0.2, 0.8});
  const auto first = [&](double temperature) {  // the probability of token 0
    double low = 0, high = 1;
    for (int step = 0; step < 40; ++step) {
      const double middle = (low + high) / 2;
      (sample(logits, {}, {.temperature = temperature}, middle) == 0 ? low : high) = middle;
    }
    return low;
  };
  EXPECT_NEAR(first(1), 0.2, 1e-9);
  EXPECT_NEAR(first(0.5), 0.04 / (0.04 + 0.64), 1e-9);
  EXPECT_NEAR(first(1e9), 0.5, 1e-6);
  EXPECT_EQ(sample(logits, {}, {.temperature = 1e-320}, 0.0), 1) << "no infinity, no NaN";
}

TEST(Sampling, FiltersWorkTogether) {
  // Penalty: 3 -> 1.5. Temperature 0.5: (1.5, 2, 1, 0.5) -> (3, 4, 2, 1). top_k = 3 drops the last;
  // top_p = 0.6 of the softmax (.245, .665, .09) keeps the largest.
  const GenerateOptions options = {
      .temperature = 0.5, .top_k = 3, .top_p = 0.6, .repetition_penalty = 2};
  EXPECT_EQ(sample({3, 2, 1, 0.5}, {0}, options, 0.0), 1);
  EXPECT_EQ(sample({3, 2, 1, 0.5}, {0}, options, 0.999), 1);
}

TEST(Sampling, UniformIsUniform) {
  constexpr int kDraws = 100000;
  std::vector<int> counts(10);
  std::set<double> distinct;
  for (int i = 0; i < kDraws; ++i) {
    const double u = uniform(7, i % 10, i / 10);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    distinct.insert(u);
    ++counts[static_cast<std::size_t>(u * 10)];
  }
  EXPECT_EQ(distinct.size(), kDraws);
  for (const int count : counts) EXPECT_NEAR(count, kDraws / 10, 5 * std::sqrt(kDraws * 0.09));
}

TEST(Sampling, UniformIsTheSameInEveryRelease) {
  EXPECT_EQ(uniform(0, 0, 0), 0.13870941014555427);
  EXPECT_EQ(uniform(-1, 2, 3), 0.9386090038521101);
}

}  // namespace
}  // namespace weir::models
