// SPDX-License-Identifier: Apache-2.0
// Runs the kernels on rows held as double and brings results back as double, for every Value type.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>
#include <random>
#include <type_traits>
#include <vector>

#include "kernels/coordinate_descent.h"
#include "support/textbook_coordinate_descent.h"
#include "support/tolerance.h"

namespace weir::tests {

using kernels::BFloat16;
using kernels::Float16;

inline float to_real(BFloat16 value) {
  return std::bit_cast<float>(std::uint32_t{value.bits} << 16);
}
inline float to_real(Float16 value) {
  const int exponent = (value.bits >> 10) & 31, fraction = value.bits & 1023;
  const float magnitude = exponent == 31 ? (fraction != 0 ? NAN : INFINITY)
                          : exponent == 0
                              ? std::ldexp(static_cast<float>(fraction), -24)
                              : std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
  return (value.bits & 0x8000) != 0 ? -magnitude : magnitude;
}
inline float to_real(float value) { return value; }
inline double to_real(double value) { return value; }

/// Cuts to the type; test inputs only need to be representable, not correctly rounded.
template <class Value>
Value from_double(double value) {
  if constexpr (std::is_same_v<Value, BFloat16>) {
    return {
        static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(static_cast<float>(value)) >> 16)};
  } else if constexpr (std::is_same_v<Value, Float16>) {
    const std::uint16_t sign = std::signbit(value) ? 0x8000 : 0;
    if (std::isnan(value)) return {0x7E00};
    if (std::isinf(value)) return {static_cast<std::uint16_t>(sign | 0x7C00)};
    if (std::abs(value) < 6.2e-5) return {sign};
    int exponent = 0;
    const double fraction = std::frexp(std::abs(value), &exponent);  // [0.5, 1)
    const auto bits = static_cast<std::uint16_t>((exponent + 14) << 10 |
                                                 (static_cast<int>(fraction * 2048) & 1023));
    return {static_cast<std::uint16_t>(sign | bits)};
  } else {
    return static_cast<Value>(value);
  }
}

template <class Value>
constexpr Tolerance tolerance_of() {
  if constexpr (std::is_same_v<Value, double>) return kFloat64;
  if constexpr (std::is_same_v<Value, float>) return kFloat32;
  if constexpr (std::is_same_v<Value, BFloat16>) return kBFloat16;
  return kFloat16;
}

/// Rows of equal length, with a schedule; n_iters = 0 means the exact solver with eps[0].
struct Case {
  std::vector<TextbookRow> rows;
  std::vector<double> eps;
  std::int64_t n_iters = 0;
  std::vector<std::vector<double>> grad;  // one per row, for the backward
  bool masked = false;
};

struct Result {
  std::vector<std::vector<double>> output, grad_scores;
  std::vector<std::vector<double>> trace;
  std::vector<double> grad_budget;
};

/// Forward and backward of all rows, inputs and outputs `misalignment` elements off an aligned
/// start, between guards that must survive.
template <class Value>
Result run(const Case& test, std::size_t misalignment) {
  constexpr std::uint8_t kGuard = 0xA5;
  const auto rows = static_cast<std::int64_t>(test.rows.size());
  const auto cols = static_cast<std::int64_t>(test.rows.front().scores.size());
  const auto count = static_cast<std::size_t>(rows * cols);
  const std::int64_t trace_size = std::max<std::int64_t>(test.n_iters, 1);
  const auto array = [&](auto pick) {
    std::vector<Value> values(count + misalignment + 64, from_double<Value>(0));
    for (std::int64_t i = 0; i < rows; ++i) {
      for (std::int64_t j = 0; j < cols; ++j) {
        values[misalignment + static_cast<std::size_t>(i * cols + j)] =
            from_double<Value>(pick(i, j));
      }
    }
    return values;
  };
  const auto scores = array([&](auto i, auto j) { return test.rows[i].scores[j]; });
  const auto grad =
      array([&](auto i, auto j) { return test.grad.empty() ? 0.0 : test.grad[i][j]; });
  auto output = array([](auto, auto) { return 7.0; });
  auto grad_scores = output;
  const auto guard = output;
  std::vector<std::uint8_t> mask(count + 1);
  std::vector<std::int64_t> offsets;
  std::vector<double> budget, trace(static_cast<std::size_t>(rows * trace_size)),
      grad_budget(test.rows.size());
  for (std::int64_t i = 0; i < rows; ++i) {
    offsets.push_back(i * cols);
    budget.push_back(test.rows[i].budget);
    for (std::int64_t j = 0; j < cols; ++j)
      mask[static_cast<std::size_t>(i * cols + j)] = test.rows[i].valid[j];
  }
  const kernels::CoordinateDescentRows<Value> in = {.cols = cols,
                                                    .scores = scores.data() + misalignment,
                                                    .budget = budget.data(),
                                                    .budget_stride = 1,
                                                    .mask = test.masked ? mask.data() : nullptr,
                                                    .mask_offsets = offsets.data(),
                                                    .eps = test.eps.data(),
                                                    .n_iters = test.n_iters};
  const std::size_t bytes = kernels::coordinate_descent_workspace_bytes(cols, test.n_iters);
  std::vector<std::byte> workspace(bytes + 64, std::byte{kGuard});
  kernels::coordinate_descent_forward({in, output.data() + misalignment, trace.data()}, 0, rows,
                                      workspace.data());
  kernels::coordinate_descent_backward({in, grad.data() + misalignment, trace.data(),
                                        grad_scores.data() + misalignment, grad_budget.data()},
                                       0, rows, workspace.data());
  for (std::size_t i = bytes; i < workspace.size(); ++i) {
    EXPECT_EQ(workspace[i], std::byte{kGuard}) << "wrote past the workspace";
  }
  for (const auto* written : {&output, &grad_scores}) {
    EXPECT_EQ(std::memcmp(written->data(), guard.data(), misalignment * sizeof(Value)), 0);
    EXPECT_EQ(std::memcmp(written->data() + misalignment + count,
                          guard.data() + misalignment + count, 64 * sizeof(Value)),
              0)
        << "wrote past the end";
  }
  Result result;
  for (std::int64_t i = 0; i < rows; ++i) {
    std::vector<double> y, g;
    for (std::int64_t j = 0; j < cols; ++j) {
      const std::size_t at = misalignment + static_cast<std::size_t>(i * cols + j);
      y.push_back(to_real(output[at]));
      g.push_back(to_real(grad_scores[at]));
    }
    result.output.push_back(y);
    result.grad_scores.push_back(g);
    result.trace.emplace_back(trace.begin() + i * trace_size, trace.begin() + (i + 1) * trace_size);
  }
  result.grad_budget = grad_budget;
  return result;
}

/// What the type keeps of a number.
template <class Value>
double rounded(double value) {
  return to_real(from_double<Value>(value));
}

template <class Value>
Case random_case(std::mt19937_64& random, std::int64_t rows, std::int64_t cols, bool masked) {
  std::normal_distribution<double> normal;
  std::uniform_real_distribution<double> uniform;
  Case test{.rows = {}, .eps = {}, .grad = {}, .masked = masked};
  for (std::int64_t i = 0; i < rows; ++i) {
    TextbookRow row;
    std::vector<double> grad;
    for (std::int64_t j = 0; j < cols; ++j) {
      row.scores.push_back(rounded<Value>(normal(random)));
      row.valid.push_back(!masked || uniform(random) < 0.7);
      grad.push_back(rounded<Value>(normal(random)));
    }
    if (masked && cols > 0)
      row.valid[static_cast<std::size_t>(uniform(random) * static_cast<double>(cols))] = true;
    row.budget = 0.3 + uniform(random) * static_cast<double>(cols) / 3;
    test.rows.push_back(std::move(row));
    test.grad.push_back(std::move(grad));
  }
  return test;
}

}  // namespace weir::tests
