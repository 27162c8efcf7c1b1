// SPDX-License-Identifier: Apache-2.0
// The kernel and the composite agree on every dtype and layout; Meta agrees with both; threads do
// not change a bit.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <fstream>
#include <string>
#include <thread>

#include "support/same_results.h"
#include "support/tolerance.h"
#include "weir/ops/coordinate_descent.h"

namespace weir::tests {
namespace {

using ops::coordinate_descent;
using ops::coordinate_descent_composite;
using ops::CoordinateDescentOptions;
using torch::Tensor;

const CoordinateDescentOptions kIterative = {
    .n_iters = 9, .eps = 0.2, .eps_init = 4.0, .eps_decay = 0.7};
const CoordinateDescentOptions kExact = {.eps = 0.2, .solver = "exact"};

struct Layout {
  const char* name;
  torch::Dtype dtype;
  Tolerance tolerance;
  CoordinateDescentOptions options;
};

class CoordinateDescentBackends : public ::testing::TestWithParam<Layout> {};

std::vector<Tensor> with_gradients(const Tensor& scores, const Tensor& budget,
                                   const Tensor& upstream, const auto& call) {
  const Tensor s = scores.detach().requires_grad_(true),
               k = budget.detach().clone().requires_grad_(true);
  const Tensor weights = call(s, k);
  auto grads = torch::autograd::grad({weights}, {s, k}, {upstream.to(weights.scalar_type())});
  return {weights.detach(), grads[0], grads[1]};
}

void expect_close(const Tensor& got, const Tensor& expected, double tolerance) {
  ASSERT_EQ(got.sizes(), expected.sizes());
  const Tensor wide = expected.to(torch::kDouble);
  const double scale = std::max(1.0, wide.abs().max().item<double>());
  EXPECT_LE((got.to(torch::kDouble) - wide).abs().max().item<double>(), tolerance * scale);
}

/// Kernel in the dtype against the composite in float64, on the same (rounded) scores.
void check(const Layout& layout, const Tensor& scores, const Tensor& budget,
           const std::optional<Tensor>& mask) {
  const Tensor upstream = torch::randn(scores.sizes()).to(layout.dtype);
  const auto got = with_gradients(scores, budget, upstream, [&](const Tensor& s, const Tensor& k) {
    return coordinate_descent(s, k, mask, layout.options);
  });
  const auto expected = with_gradients(
      scores.to(torch::kDouble), budget, upstream, [&](const Tensor& s, const Tensor& k) {
        return coordinate_descent_composite(s, k, mask, layout.options);
      });
  EXPECT_EQ(got[0].scalar_type(), layout.dtype);
  EXPECT_EQ(got[1].scalar_type(), layout.dtype);
  EXPECT_EQ(got[2].scalar_type(), budget.scalar_type());
  expect_close(got[0], expected[0], layout.tolerance.weights);
  expect_close(got[1], expected[1], layout.tolerance.gradients);
  expect_close(got[2], expected[2], layout.tolerance.gradients);
}

TEST_P(CoordinateDescentBackends, KernelEqualsComposite) {
  torch::manual_seed(11);
  for (const std::int64_t cols : {1, 5, 64, 300}) {
    const Tensor scores = torch::randn({2, 3, 17, cols}).to(GetParam().dtype);
    const Tensor budget =
        torch::rand({2, 3, 17}, torch::kDouble) * static_cast<double>(cols) / 3 + 0.5;
    check(GetParam(), scores, budget, std::nullopt);
    check(GetParam(), scores, budget, torch::rand({2, 3, 17, cols}) < 0.6);
  }
}

TEST_P(CoordinateDescentBackends, MasksInTheirBroadcastShape) {
  torch::manual_seed(12);
  const Tensor scores = torch::randn({2, 3, 16, 16}).to(GetParam().dtype);
  const Tensor budget = torch::full({}, 2.5, torch::kDouble);
  const Tensor causal = torch::ones({16, 16}, torch::kBool).tril();
  for (const Tensor& mask :
       {causal, torch::rand({2, 1, 1, 16}) < 0.6, torch::rand({3, 16, 1}) < 0.6,
        torch::rand({1}) < 2, torch::ones({}, torch::kBool), (torch::rand({16, 16}) < 0.6).t(),
        (torch::rand({2, 3, 16, 32}) < 0.6).slice(-1, 0, 32, 2)}) {
    check(GetParam(), scores, budget, mask);
  }
}

TEST_P(CoordinateDescentBackends, NonContiguousScores) {
  torch::manual_seed(13);
  const Tensor budget = torch::full({}, 2.5, torch::kDouble);
  check(GetParam(), torch::randn({20, 6}).to(GetParam().dtype).t(), budget, std::nullopt);
  check(GetParam(), torch::randn({6, 40}).to(GetParam().dtype).slice(1, 1, 40, 2), budget,
        std::nullopt);
  check(GetParam(), torch::randn({1, 20}).to(GetParam().dtype).expand({6, 20}), budget,
        std::nullopt);
}

TEST_P(CoordinateDescentBackends, EmptyInputs) {
  for (const std::vector<std::int64_t>& shape :
       std::vector<std::vector<std::int64_t>>{{0}, {0, 5}, {5, 0}, {2, 0, 3}}) {
    const Tensor scores = torch::randn(shape).to(GetParam().dtype).requires_grad_(true);
    const Tensor weights = coordinate_descent(scores, 2.0, std::nullopt, GetParam().options);
    EXPECT_EQ(weights.sizes(), scores.sizes());
    weights.sum().backward();
    EXPECT_EQ(scores.grad().sizes(), scores.sizes());
  }
}

INSTANTIATE_TEST_SUITE_P(
    Dtypes, CoordinateDescentBackends,
    ::testing::Values(Layout{"float64", torch::kDouble, kFloat64, kIterative},
                      Layout{"float32", torch::kFloat, kFloat32, kIterative},
                      Layout{"bfloat16", torch::kBFloat16, kBFloat16, kIterative},
                      Layout{"float16", torch::kHalf, kFloat16, kIterative},
                      Layout{"float64_exact", torch::kDouble, kFloat64, kExact},
                      Layout{"float32_exact", torch::kFloat, kFloat32, kExact},
                      Layout{"bfloat16_exact", torch::kBFloat16, kBFloat16, kExact},
                      Layout{"float16_exact", torch::kHalf, kFloat16, kExact}),
    [](const auto& info) { return info.param.name; });

TEST(CoordinateDescentMeta, ShapesAndDtypesOfTheCpu) {
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
    for (const auto& options : {kIterative, kExact}) {
      const auto on = [&](torch::Device device) {
        const Tensor scores =
            torch::zeros({3, 4, 7}, torch::dtype(dtype).device(device)).requires_grad_(true);
        const Tensor budget =
            torch::ones({4}, torch::dtype(torch::kDouble).device(device)).requires_grad_(true);
        const Tensor weights = coordinate_descent(
            scores, budget, torch::ones({4, 7}, torch::dtype(torch::kBool).device(device)),
            options);
        auto grads = torch::autograd::grad({weights.sum()}, {scores, budget});
        grads.push_back(weights);
        return grads;
      };
      const auto cpu = on(torch::kCPU), meta = on(torch::kMeta);
      expect_meta_like(cpu, meta);
    }
  }
}

TEST(CoordinateDescentThreads, ResultsDoNotDependOnTheirNumber) {
  torch::manual_seed(14);
  for (const std::int64_t cols : {40, 3000}) {
    const Tensor scores = torch::randn({203, cols});
    const Tensor upstream = torch::randn({203, cols}),
                 budget = torch::full({203}, 3.5, torch::kDouble);
    for (const auto& options : {kIterative, kExact}) {
      expect_same_with_any_threads([&] {
        return with_gradients(scores, budget, upstream, [&](const Tensor& s, const Tensor& k) {
          return coordinate_descent(s, k, std::nullopt, options);
        });
      });
    }
  }
}

TEST(CoordinateDescentThreads, TwoThreadsAreFaster) {
  // at::parallel_for without OpenMP runs serially and says nothing; a second thread then uses no
  // processor time.
  if (std::thread::hardware_concurrency() < 2) GTEST_SKIP() << "one processor";
  const int before = torch::get_num_threads();
  torch::set_num_threads(2);
  const Tensor scores = torch::randn({64, 65536});
  const auto cpu_seconds = [](clockid_t clock) {
    timespec time{};
    clock_gettime(clock, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  };
  coordinate_descent(scores, 100.0, std::nullopt, kIterative);
  const double process = cpu_seconds(CLOCK_PROCESS_CPUTIME_ID),
               thread = cpu_seconds(CLOCK_THREAD_CPUTIME_ID);
  for (int i = 0; i < 5; ++i) coordinate_descent(scores, 100.0, std::nullopt, kIterative);
  const double others = cpu_seconds(CLOCK_PROCESS_CPUTIME_ID) - process -
                        (cpu_seconds(CLOCK_THREAD_CPUTIME_ID) - thread);
  EXPECT_GT(others, 0.2 * (cpu_seconds(CLOCK_THREAD_CPUTIME_ID) - thread))
      << "no other thread did any work";
  torch::set_num_threads(before);
}

TEST(CoordinateDescentModes, InferenceModeAndNoGrad) {
  const Tensor scores = torch::randn({4, 20}).requires_grad_(true);
  const Tensor expected = coordinate_descent(scores, 3.0);
  {
    torch::NoGradGuard no_grad;
    const Tensor got = coordinate_descent(scores, 3.0);
    EXPECT_FALSE(got.requires_grad());
    EXPECT_TRUE(torch::equal(got, expected));
  }
  c10::InferenceMode inference;
  EXPECT_TRUE(torch::equal(coordinate_descent(scores, 3.0), expected));
}

/// Peak resident bytes of this process since the last reset; 0 where the kernel does not tell.
std::int64_t peak_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word == "VmHWM:") {
      std::int64_t kilobytes = 0;
      status >> kilobytes;
      return kilobytes * 1024;
    }
  }
  return 0;
}

bool reset_peak() {
  std::ofstream clear("/proc/self/clear_refs");
  return static_cast<bool>(clear << "5" << std::flush);
}

TEST(CoordinateDescentMemory, ForwardAndBackwardKeepScalarsOnly) {
  const Tensor scores = torch::randn({256, 65536}).requires_grad_(true);  // 64 MiB
  const Tensor upstream = torch::randn({256, 65536});
  coordinate_descent(scores.slice(0, 0, 2), 9.0, std::nullopt, kIterative);  // threads, first pages
  if (!reset_peak()) GTEST_SKIP() << "/proc/self/clear_refs is not writable here";
  const std::int64_t before = peak_bytes();
  const Tensor weights = coordinate_descent(scores, 9.0, std::nullopt, kIterative);
  const auto grads = torch::autograd::grad({weights}, {scores}, {upstream});
  // The weights and the gradient, 64 MiB each; a trace of 18 KiB; a few rows of scratch per thread.
  constexpr std::int64_t kMiB = 1 << 20;
  EXPECT_LE(peak_bytes() - before, (2 * 64 + 16) * kMiB);
}

}  // namespace
}  // namespace weir::tests
