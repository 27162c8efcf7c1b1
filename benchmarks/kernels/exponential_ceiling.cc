// SPDX-License-Identifier: Apache-2.0
#include "kernels/exponential_ceiling.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/exponential_ceiling.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/coordinate_descent_iterative-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
double Pass(const float* x, std::size_t count, double c, double eps) {
  return SumCapped(x, count, c, eps);
}
}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weir::kernels {
HWY_EXPORT(Pass);
}  // namespace weir::kernels

namespace weir::benchmarks {

double exponential_pass(const float* x, std::size_t count, double c, double eps) {
  using weir::kernels::PassHighwayDispatchTable;
  return HWY_DYNAMIC_DISPATCH(weir::kernels::Pass)(x, count, c, eps);
}

double exponential_ceiling(int threads) {
  constexpr std::size_t kCount = 4096;  // 16 KB
  constexpr int kPasses = 400, kRounds = 200;
  std::vector<double> best(static_cast<std::size_t>(threads), 1.0);
  std::atomic<double> sink = 0;
  const auto measure = [&](std::size_t thread) {
    alignas(64) static thread_local float x[kCount];
    for (std::size_t j = 0; j < kCount; ++j) x[j] = static_cast<float>(j % 997) / -997.0f;
    double sum = 0;
    for (int round = 0; round < kRounds; ++round) {
      const auto start = std::chrono::steady_clock::now();
      for (int pass = 0; pass < kPasses; ++pass)
        sum += exponential_pass(x, kCount, -0.2, 0.1 + 1e-9 * pass);
      const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
      best[thread] = std::min(best[thread], time.count() / (kPasses * static_cast<double>(kCount)));
    }
    sink = sink + sum;
  };
  std::vector<std::thread> pool;
  for (std::size_t thread = 0; thread < best.size(); ++thread) pool.emplace_back(measure, thread);
  for (std::thread& thread : pool) thread.join();
  return *std::max_element(best.begin(), best.end()) / threads;
}

}  // namespace weir::benchmarks
#endif  // HWY_ONCE
