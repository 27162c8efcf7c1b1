// SPDX-License-Identifier: Apache-2.0
// The kernels of router_logits against sums in scalar double: every instruction set, every Value
// type, all short widths and those around the vectors, rows and routes around the tiles.
#include "kernels/router_logits.h"

#include <gtest/gtest.h>

#include <random>

#include "kernels/coordinate_descent_cases.h"
#include "support/instruction_sets.h"

namespace weir::tests {
namespace {

using Doubles = std::vector<double>;

struct Problem {
  kernels::RouterLogitsShape shape;
  bool cosine = false;
};

struct Answer {
  Doubles output, x, tokens;  // the last two: gradients
};

/// Sums as the formulas say, over what the kernel was given.
Answer textbook(const Problem& p, const Doubles& x, const Doubles& tokens, const Doubles& grad) {
  const auto [batch, rows, routes, dim] =
      std::tuple(p.shape.batch, p.shape.rows, p.shape.routes, p.shape.dim);
  Answer result{Doubles(static_cast<std::size_t>(batch * routes * rows)),
                Doubles(static_cast<std::size_t>(batch * rows * dim)), Doubles(tokens.size())};
  for (std::int64_t b = 0; b < batch; ++b) {
    const std::int64_t first = p.shape.groups == 1 ? 0 : b * routes;
    for (std::int64_t i = 0; i < rows; ++i) {
      const double* row = &x[static_cast<std::size_t>((b * rows + i) * dim)];
      double square = 0;
      for (std::int64_t c = 0; c < dim; ++c) square += row[c] * row[c];
      const double length = p.cosine ? std::max(std::sqrt(square), 1e-12) : 1;
      for (std::int64_t r = 0; r < routes; ++r) {
        const double* token = &tokens[static_cast<std::size_t>((first + r) * dim)];
        const auto at = static_cast<std::size_t>((b * routes + r) * rows + i);
        double product = 0;
        for (std::int64_t c = 0; c < dim; ++c) product += row[c] * token[c];
        result.output[at] = product / length;
        for (std::int64_t c = 0; c < dim; ++c) {
          result.tokens[static_cast<std::size_t>((first + r) * dim + c)] +=
              grad[at] * row[c] / length;
          const double turned = p.cosine ? product / square * row[c] : 0;
          result.x[static_cast<std::size_t>((b * rows + i) * dim + c)] +=
              grad[at] / length * (token[c] - turned);
        }
      }
    }
  }
  return result;
}

void expect_near(const char* what, const Doubles& got, const Doubles& expected, double tolerance) {
  ASSERT_EQ(got.size(), expected.size());
  double largest = 1;
  for (const double value : expected) largest = std::max(largest, std::abs(value));
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_NEAR(got[i], expected[i], tolerance * largest) << what << " at " << i;
  }
}

template <class T>
Doubles widened(const T* from, std::size_t count) {
  Doubles result;
  for (std::size_t i = 0; i < count; ++i) result.push_back(to_real(from[i]));
  return result;
}

/// x `misalignment` elements off, between others that must not count.
template <class Value>
void check(Problem p, std::size_t misalignment) {
  using T = std::conditional_t<std::is_same_v<Value, double>, double, float>;
  auto& s = p.shape;
  s.row_stride = s.dim, s.batch_stride = s.rows * s.dim;
  std::mt19937_64 random(5);
  std::normal_distribution<double> normal;
  const auto count = [](std::int64_t n) { return static_cast<std::size_t>(n); };
  const auto draw = [&](auto like, std::int64_t size, std::size_t offset) {
    std::vector<decltype(like)> values(count(size) + offset + 1, from_double<decltype(like)>(NAN));
    for (std::int64_t i = 0; i < size; ++i) {
      values[offset + count(i)] = from_double<decltype(like)>(normal(random));
    }
    return values;
  };
  const std::int64_t logits = s.batch * s.routes * s.rows, xs = s.batch * s.rows * s.dim;
  const auto x = draw(Value{}, xs, misalignment);
  const auto tokens = draw(T{}, s.groups * s.routes * s.dim, misalignment);
  const auto grad = draw(T{}, logits, 0);
  std::vector<T> output(count(logits) + 1, T(7)), lengths(count(s.batch * s.rows) + 1, T(7));
  T* divisors = p.cosine ? lengths.data() : nullptr;
  kernels::router_logits_forward(
      kernels::RouterLogitsForward<Value, T>{s, x.data() + misalignment,
                                             tokens.data() + misalignment, output.data(), divisors},
      0, s.batch * s.rows);
  const std::int64_t row = kernels::router_logits_row(s.dim), part = s.routes * row;
  std::vector<Value> of_x(count(xs) + 1, from_double<Value>(7));
  std::vector<T> of_tokens(count(s.groups * s.parts * part) + 1, T(7));
  std::vector<std::byte> workspace(kernels::router_logits_workspace_bytes(s));
  const kernels::RouterLogitsBackward<Value, T> backward = {
      s,           x.data() + misalignment, tokens.data() + misalignment,
      grad.data(), output.data(),           divisors,
      of_x.data(), of_tokens.data()};
  kernels::router_logits_backward(backward, 0, s.groups * s.parts, workspace.data());

  Doubles sums(count(s.groups * s.routes * s.dim));
  for (std::int64_t i = 0; i < s.groups * s.parts * s.routes; ++i) {
    const std::int64_t group = i / (s.parts * s.routes), route = i % s.routes;
    for (std::int64_t c = 0; c < s.dim; ++c) {
      sums[count((group * s.routes + route) * s.dim + c)] += of_tokens[count(i * row + c)];
    }
  }
  const Answer expected = textbook(p, widened(x.data() + misalignment, count(xs)),
                                   widened(tokens.data() + misalignment, sums.size()),
                                   widened(grad.data(), count(logits)));
  expect_near("output", widened(output.data(), count(logits)), expected.output,
              tolerance_of<T>().weights);
  expect_near("grad of x", widened(of_x.data(), count(xs)), expected.x,
              tolerance_of<Value>().gradients);
  expect_near("grad of tokens", sums, expected.tokens, tolerance_of<T>().gradients);
  EXPECT_EQ(output.back(), T(7));
  EXPECT_EQ(lengths.back(), T(7));
  EXPECT_EQ(to_real(of_x.back()), to_real(from_double<Value>(7)));
  EXPECT_EQ(of_tokens.back(), T(7));
}

template <class Value>
class RouterLogitsKernel : public ::testing::Test {};
using Values = ::testing::Types<float, double, BFloat16, Float16>;
TYPED_TEST_SUITE(RouterLogitsKernel, Values);

TYPED_TEST(RouterLogitsKernel, EveryShortWidthAndMisalignment) {
  for_each_instruction_set([] {
    for (std::int64_t dim = 1; dim <= 33; ++dim) {
      for (const std::size_t misalignment : {0, 1, 3}) {
        for (const bool cosine : {false, true}) {
          SCOPED_TRACE(std::to_string(dim) + " features, cosine " + std::to_string(cosine));
          check<TypeParam>({{.batch = 1, .rows = 5, .routes = 3, .dim = dim}, cosine},
                           misalignment);
          if (::testing::Test::HasFatalFailure()) return;
        }
      }
    }
  });
}

TYPED_TEST(RouterLogitsKernel, RowsRoutesGroupsAndParts) {
  for_each_instruction_set([] {
    for (const std::int64_t rows : {1, 3, 4, 5, 8, 9, 31}) {
      for (const std::int64_t routes : {1, 2, 3, 4, 5, 6, 9}) {
        for (const std::int64_t groups : {1, 2}) {
          for (const std::int64_t parts : {1, 3}) {
            SCOPED_TRACE(std::to_string(rows) + " rows, " + std::to_string(routes) + " routes");
            const kernels::RouterLogitsShape shape = {.batch = 2,
                                                      .rows = rows,
                                                      .routes = routes,
                                                      .dim = 21,
                                                      .groups = groups,
                                                      .parts = parts};
            check<TypeParam>({shape, parts == 3}, 1);
            if (::testing::Test::HasFatalFailure()) return;
          }
        }
      }
    }
  });
}

}  // namespace
}  // namespace weir::tests
