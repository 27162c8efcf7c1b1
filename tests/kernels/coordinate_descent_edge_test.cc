// SPDX-License-Identifier: Apache-2.0
// Rows that ordinary numbers never make: masked out, saturated, tied, infinite, NaN, tiny and huge
// budgets.
#include <gtest/gtest.h>

#include "kernels/coordinate_descent_cases.h"
#include "support/instruction_sets.h"

namespace weir::tests {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

Case one_row(std::vector<double> scores, double budget, std::int64_t n_iters, double eps = 0.1) {
  TextbookRow row{
      .scores = scores, .valid = std::vector<bool>(scores.size(), true), .budget = budget};
  Case test{.rows = {row},
            .eps = {eps},
            .n_iters = n_iters,
            .grad = {std::vector<double>(scores.size(), 1.0)}};
  if (n_iters > 0) test.eps = textbook_schedule(n_iters, eps, 4.0, 0.7);
  return test;
}

/// The same row short (one row per lane), and padded by masked entries to be long (one row at a
/// time).
void both_paths(const Case& test, const std::function<void(const Result&)>& check) {
  for_each_instruction_set([&] {
    check(run<float>(test, 0));
    check(run<double>(test, 0));
    Case longer = test;
    longer.masked = true;
    longer.rows[0].scores.resize(300, kNan);  // masked NaN must not be seen
    longer.rows[0].valid.resize(300, false);
    longer.grad[0].resize(300, kNan);
    for (const Result& result : {run<float>(longer, 0), run<double>(longer, 0)}) {
      for (std::size_t j = test.rows[0].scores.size(); j < 300; ++j) {
        ASSERT_EQ(result.output[0][j], 0);
        ASSERT_EQ(result.grad_scores[0][j], 0);
      }
      Result head = result;
      head.output[0].resize(test.rows[0].scores.size());
      head.grad_scores[0].resize(test.rows[0].scores.size());
      check(head);
    }
  });
}

TEST(CoordinateDescentEdge, FullyMaskedRowIsZeroWithZeroGradient) {
  for (const std::int64_t n_iters : {0, 1, 20}) {
    Case test = one_row({1, 2, kNan, kInfinity}, 2, n_iters);
    test.masked = true;
    test.rows[0].valid.assign(4, false);
    both_paths(test, [](const Result& result) {
      EXPECT_EQ(result.output[0], std::vector<double>(4, 0.0));
      EXPECT_EQ(result.grad_scores[0], std::vector<double>(4, 0.0));
      EXPECT_EQ(result.grad_budget[0], 0);
    });
  }
}

TEST(CoordinateDescentEdge, MinusInfinityCountsAsMasked) {
  for (const std::int64_t n_iters : {0, 20}) {
    const Result without = run<double>(one_row({1, 0.5, -2}, 1.5, n_iters), 0);
    both_paths(one_row({1, -kInfinity, 0.5, -2}, 1.5, n_iters), [&](const Result& result) {
      EXPECT_EQ(result.output[0][1], 0);
      EXPECT_EQ(result.grad_scores[0][1], 0);
      EXPECT_NEAR(result.output[0][0], without.output[0][0], kFloat32.weights);
      EXPECT_NEAR(result.output[0][2], without.output[0][1], kFloat32.weights);
    });
    both_paths(one_row({-kInfinity, -kInfinity}, 1, n_iters), [](const Result& result) {
      EXPECT_EQ(result.output[0], std::vector<double>(2, 0.0));
    });
  }
}

TEST(CoordinateDescentEdge, FewerValidThanBudgetAreAllOneWithExact) {
  for (const double budget : {3.0, 3.5, 100.0}) {
    both_paths(one_row({0, -30, -60}, budget, 0), [](const Result& result) {
      EXPECT_EQ(result.output[0], std::vector<double>(3, 1.0));
      EXPECT_EQ(result.grad_scores[0], std::vector<double>(3, 0.0));
      EXPECT_EQ(result.grad_budget[0], 0);
      EXPECT_EQ(result.trace[0][0], kInfinity);
    });
  }
}

TEST(CoordinateDescentEdge, FewerValidThanBudgetAtFiniteIterations) {
  both_paths(one_row({0, -30, -60}, 4, 20), [](const Result& result) {
    EXPECT_EQ(result.output[0][0], 1);
    EXPECT_LT(result.output[0][1], 1e-30);
    EXPECT_LT(result.output[0][2], 1e-30);
  });
}

TEST(CoordinateDescentEdge, NanPoisonsItsRowAndEnds) {
  for (const std::int64_t n_iters : {0, 20}) {
    both_paths(one_row({1, kNan, 2, -kInfinity}, 2, n_iters), [](const Result& result) {
      for (const std::size_t j : {0, 1, 2}) {
        EXPECT_TRUE(std::isnan(result.output[0][j]));
        EXPECT_TRUE(std::isnan(result.grad_scores[0][j]));
      }
      EXPECT_EQ(result.output[0][3], 0);
    });
    both_paths(one_row({1, 2, 3}, kNan, n_iters), [](const Result& result) {
      for (const double weight : result.output[0]) EXPECT_TRUE(std::isnan(weight));
    });
  }
}

TEST(CoordinateDescentEdge, PlusInfinityIsAlwaysChosen) {
  for (const std::int64_t n_iters : {0, 20}) {
    both_paths(one_row({1, kInfinity, 2, 0.5}, 2, n_iters, 1.0), [](const Result& result) {
      EXPECT_EQ(result.output[0][1], 1);
      for (const double weight : result.output[0]) EXPECT_TRUE(weight >= 0 && weight <= 1);
      for (const double value : result.grad_scores[0]) EXPECT_TRUE(std::isfinite(value));
    });
  }
  both_paths(one_row({1, kInfinity, kInfinity, 0.5}, 1, 0, 1.0), [](const Result& result) {
    EXPECT_EQ(result.output[0], (std::vector<double>{0, 1, 1, 0}));
  });
}

TEST(CoordinateDescentEdge, TiesShareTheBudget) {
  both_paths(one_row(std::vector<double>(8, 0.25), 2, 0), [](const Result& result) {
    for (const double weight : result.output[0]) EXPECT_NEAR(weight, 0.25, kFloat32.weights);
  });
  both_paths(one_row({5, 1, 1, 1, -99}, 2, 0, 0.03), [](const Result& result) {
    EXPECT_EQ(result.output[0][0], 1);
    for (const std::size_t j : {1, 2, 3})
      EXPECT_NEAR(result.output[0][j], 1.0 / 3, kFloat32.weights);
    EXPECT_EQ(result.output[0][4], 0);
  });
}

TEST(CoordinateDescentEdge, ExtremeScoresAndBudgetsStayFinite) {
  for (const double budget : {1e-30, 1e-6, 1.0, 2.5, 1e30, kInfinity}) {
    for (const double scale : {1e-30, 1.0, 1e6, 1e38}) {
      for (const std::int64_t n_iters : {0, 1, 2, 50}) {
        both_paths(one_row({1 * scale, -1 * scale, 0.5 * scale, 0}, budget, n_iters, 0.03),
                   [](const Result& result) {
                     for (const double weight : result.output[0]) {
                       EXPECT_TRUE(weight >= 0 && weight <= 1) << weight;
                     }
                     for (const double value : result.grad_scores[0])
                       EXPECT_TRUE(std::isfinite(value));
                     EXPECT_TRUE(std::isfinite(result.grad_budget[0]));
                   });
      }
    }
  }
}

TEST(CoordinateDescentEdge, ResultsHoldNoDenormals) {
  std::vector<double> scores;
  for (int j = 0; j < 250; ++j) scores.push_back(-0.05 * j);
  for (const std::int64_t n_iters : {0, 20}) {
    const Case test = one_row(scores, 2, n_iters, 0.1);
    for_each_instruction_set([&] {
      const double smallest = std::numeric_limits<float>::min();
      const Result result = run<float>(test, 0);
      for (const double weight : result.output[0])
        EXPECT_TRUE(weight == 0 || weight >= smallest) << weight;
    });
  }
}

TEST(CoordinateDescentEdge, EmptyRows) {
  Case test = one_row({}, 1, 5);
  for_each_instruction_set([&] { EXPECT_TRUE(run<float>(test, 0).output[0].empty()); });
}

}  // namespace
}  // namespace weir::tests
