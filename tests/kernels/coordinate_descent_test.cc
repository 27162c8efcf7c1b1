// SPDX-License-Identifier: Apache-2.0
// The kernels of coordinate_descent against the textbook in scalar double: every instruction set,
// every Value type, all short lengths and those around the sizes at which the code changes path.
#include <gtest/gtest.h>

#include "kernels/coordinate_descent_cases.h"
#include "support/instruction_sets.h"

namespace weir::tests {
namespace {

double largest(const std::vector<double>& values) {
  double result = 1;
  for (double value : values) result = std::max(result, std::abs(value));
  return result;
}

void expect_close(const std::vector<double>& got, const std::vector<double>& expected,
                  double tolerance, const char* what) {
  ASSERT_EQ(got.size(), expected.size());
  const double bound = tolerance * largest(expected);
  for (std::size_t j = 0; j < got.size(); ++j) {
    ASSERT_NEAR(got[j], expected[j], bound) << what << " at " << j << " of " << got.size();
  }
}

/// `rounding` is what rounding thresholds to double already costs the weights.
template <class Value>
void check_iterative(const Case& test, std::size_t misalignment, double rounding = 0) {
  const Result result = run<Value>(test, misalignment);
  for (std::size_t i = 0; i < test.rows.size(); ++i) {
    const TextbookResult forward = textbook_forward(test.rows[i], test.eps);
    const TextbookGradient backward =
        textbook_backward(test.rows[i], test.eps, forward, test.grad[i]);
    expect_close(result.output[i], forward.weights, tolerance_of<Value>().weights + rounding,
                 "weights");
    const double gradients = tolerance_of<Value>().gradients + rounding / test.eps.back();
    expect_close(result.grad_scores[i], backward.scores, gradients, "grad_scores");
    expect_close({result.grad_budget[i]}, {backward.budget}, gradients, "grad_budget");
  }
}

template <class Value>
void check_exact(const Case& test, std::size_t misalignment) {
  const double eps = test.eps.front();
  const Result result = run<Value>(test, misalignment);
  for (std::size_t i = 0; i < test.rows.size(); ++i) {
    const TextbookRow& row = test.rows[i];
    const auto valid = static_cast<double>(std::count(row.valid.begin(), row.valid.end(), true));
    const double c = valid <= row.budget ? -INFINITY : textbook_exact_threshold(row, eps);
    std::vector<double> weights(row.scores.size(), 0.0), gradient(row.scores.size(), 0.0);
    double mass = 0, mean = 0;
    for (std::size_t j = 0; j < weights.size(); ++j) {
      if (!row.valid[j]) continue;
      weights[j] = std::exp(std::min(row.scores[j] - c, 0.0) / eps);
      if (row.scores[j] > c) continue;
      mass += weights[j];
      mean += weights[j] * test.grad[i][j];
    }
    mean = mass > 0 ? mean / mass : 0;
    for (std::size_t j = 0; j < weights.size(); ++j) {
      if (row.valid[j] && row.scores[j] <= c)
        gradient[j] = weights[j] / eps * (test.grad[i][j] - mean);
    }
    expect_close(result.output[i], weights, tolerance_of<Value>().weights, "weights");
    expect_close(result.grad_scores[i], gradient, tolerance_of<Value>().gradients, "grad_scores");
    expect_close({result.grad_budget[i]}, {mean}, tolerance_of<Value>().gradients, "grad_budget");
  }
}

template <class Value>
void check_lengths(const std::vector<std::int64_t>& lengths,
                   const std::vector<std::size_t>& misalignments, std::int64_t rows) {
  std::mt19937_64 random(17);
  for (const std::int64_t cols : lengths) {
    for (const std::size_t misalignment : misalignments) {
      for (const bool masked : {false, true}) {
        SCOPED_TRACE("cols " + std::to_string(cols) + ", misalignment " +
                     std::to_string(misalignment) + (masked ? ", masked" : ""));
        Case test = random_case<Value>(random, rows, cols, masked);
        test.n_iters = 1 + cols % 7;
        test.eps = textbook_schedule(test.n_iters, 0.3, 4.0, 0.7);
        check_iterative<Value>(test, misalignment);
        if (::testing::Test::HasFatalFailure()) return;
        test.n_iters = 2 + cols % 11;  // one eps throughout: exponentials are kept
        test.eps = textbook_schedule(test.n_iters, 0.3, 0.3, 1.0);
        check_iterative<Value>(test, misalignment);
        if (::testing::Test::HasFatalFailure()) return;
        test.n_iters = 0;
        test.eps = {0.3};
        check_exact<Value>(test, misalignment);
        if (::testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

template <class Value>
class CoordinateDescentKernel : public ::testing::Test {};
using Values = ::testing::Types<float, double, BFloat16, Float16>;
TYPED_TEST_SUITE(CoordinateDescentKernel, Values);

TYPED_TEST(CoordinateDescentKernel, EveryShortLengthAndMisalignment) {
  std::vector<std::int64_t> lengths;
  for (std::int64_t cols = 1; cols <= 33; ++cols) lengths.push_back(cols);  // 2 N + 1 of 16 lanes
  for_each_instruction_set([&] { check_lengths<TypeParam>(lengths, {0, 1, 3}, 5); });
}

TYPED_TEST(CoordinateDescentKernel, LengthsAroundBlocksAndPaths) {
  for_each_instruction_set([&] {
    check_lengths<TypeParam>({63, 64, 65, 127, 129, 255, 256, 257, 319, 1000}, {0, 1}, 3);
  });
}

TYPED_TEST(CoordinateDescentKernel, LongRows) {
  // Beyond 4096 elements sums are taken in chunks and the exact solver samples.
  for_each_instruction_set([&] { check_lengths<TypeParam>({4095, 4097, 9001}, {1}, 1); });
}

TYPED_TEST(CoordinateDescentKernel, RowCountsAroundTheLanes) {
  for_each_instruction_set([&] {
    for (const std::int64_t rows : {1, 2, 7, 8, 9, 15, 16, 17, 33}) {
      check_lengths<TypeParam>({19}, {0}, rows);
    }
  });
}

template <class Value>
class CoordinateDescentKernelDrift : public ::testing::Test {};
using WideValues = ::testing::Types<float, double>;
TYPED_TEST_SUITE(CoordinateDescentKernelDrift, WideValues);

TYPED_TEST(CoordinateDescentKernelDrift, ThresholdsThatTravelFar) {
  // Scores far from 0 and wide budgets: the first thresholds lie hundreds of powers of two from the
  // last, above all scores or below them. Half the rows start near their solution.
  std::mt19937_64 random(8);
  for_each_instruction_set([&] {
    for (const std::int64_t cols : {3, 40, 300, 700}) {
      for (const double shift : {-40.0, -4.0, 4.0, 40.0}) {
        for (const double eps : {0.02, 0.1, 1.0}) {
          for (const double decay : {1.0, 0.6}) {
            SCOPED_TRACE("cols " + std::to_string(cols) + ", shift " + std::to_string(shift) +
                         ", eps " + std::to_string(eps) + ", decay " + std::to_string(decay));
            Case test = random_case<TypeParam>(random, 6, cols, true);
            for (std::size_t i = 0; i < test.rows.size(); i += 2) {
              for (double& s : test.rows[i].scores) s = rounded<TypeParam>(s * 3 + shift);
            }
            test.n_iters = 25;
            test.eps = textbook_schedule(test.n_iters, eps, decay == 1 ? eps : 2.0, decay);
            // Over all steps a threshold may lose some units of its last place, in units of eps.
            check_iterative<TypeParam>(test, 0, 16 * 0x1p-53 * std::abs(shift) / eps);
            if (::testing::Test::HasFatalFailure()) return;
          }
        }
      }
    }
  });
}

TEST(CoordinateDescentKernelSplit, RowsDoNotDependOnTheirNeighbours) {
  // The property behind "bit-equal for any number of threads": a row alone gives the bits it gives
  // in a group.
  std::mt19937_64 random(5);
  for_each_instruction_set([&] {
    for (const std::int64_t cols : {5, 64, 200, 300}) {
      Case test = random_case<float>(random, 21, cols, true);
      for (std::size_t i = 0; i < test.rows.size(); i += 3) {  // some that drift, some that do not
        for (double& score : test.rows[i].scores) score = rounded<float>(score * 4 + 30);
      }
      test.n_iters = 30;
      test.eps = textbook_schedule(30, 0.1, 1.0, 0.7);
      const Result together = run<float>(test, 0);
      for (std::size_t i = 0; i < test.rows.size(); ++i) {
        Case alone = test;
        alone.rows = {test.rows[i]};
        alone.grad = {test.grad[i]};
        const Result single = run<float>(alone, 0);
        EXPECT_EQ(single.output[0], together.output[i]);
        EXPECT_EQ(single.grad_scores[0], together.grad_scores[i]);
        EXPECT_EQ(single.grad_budget[0], together.grad_budget[i]);
      }
    }
  });
}

TEST(CoordinateDescentKernelSum, ExactRowsSumToTheirBudget) {
  std::mt19937_64 random(6);
  for_each_instruction_set([&] {
    for (const double spread : {1.0, 3.0, 22.6}) {
      for (const double eps : {0.03, 0.1, 1.0}) {
        for (const std::int64_t cols : {100, 3000, 20000}) {
          Case test = random_case<float>(random, 2, cols, false);
          for (TextbookRow& row : test.rows) {
            for (double& score : row.scores) score = rounded<float>(score * spread);
          }
          test.eps = {eps};
          const Result result = run<float>(test, 0);
          for (std::size_t i = 0; i < test.rows.size(); ++i) {
            double sum = 0;
            for (double weight : result.output[i]) sum += weight;
            EXPECT_NEAR(sum / test.rows[i].budget, 1, kExactSum)
                << "spread " << spread << ", eps " << eps << ", cols " << cols;
          }
        }
      }
    }
  });
}

}  // namespace
}  // namespace weir::tests
