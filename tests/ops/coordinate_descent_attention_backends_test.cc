// SPDX-License-Identifier: Apache-2.0
// Meta agrees with the CPU; empty inputs; numbers as budgets; every instruction set; threads do not
// change a bit; no memory of size queries x keys.
#define HWY_DISABLED_TARGETS HWY_SSSE3  // as the kernels are built
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <fstream>
#include <string>

#include "support/coordinate_descent_attention_cases.h"
#include "support/same_results.h"
#include "support/instruction_sets.h"

namespace weir::tests {
namespace {

using ops::coordinate_descent_attention;
using torch::Tensor;

constexpr torch::Dtype kDtypes[] = {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf};

TEST(CoordinateDescentAttentionMeta, ShapesDtypesAndStridesOfTheCpu) {
  for (unsigned seed = 3000; seed < 3030; ++seed) {
    for (const auto dtype : kDtypes) {
      const ChoosingCase c = random_choosing_case(seed, dtype);
      SCOPED_TRACE(describe(c));
      const auto meta = [](const Tensor& x) { return x.to(torch::kMeta); };
      ChoosingCase shadow{meta(c.query),  meta(c.key), meta(c.value),
                          meta(c.budget), c.masks,     c.options};
      for (auto* x : {&shadow.masks.key_mask, &shadow.masks.mask}) {
        if (*x) *x = meta(**x);
      }
      const Tensor upstream = random_upstream(c);
      const auto on_cpu = with_gradients(c, upstream, attention_of),
                 on_meta = with_gradients(shadow, meta(upstream), attention_of);
      expect_meta_like(on_cpu, on_meta);
    }
  }
}

TEST(CoordinateDescentAttentionEmpty, GivesEmptyOrZero) {
  struct {
    std::int64_t batch, heads, n, m, value_dim;
  } const shapes[] = {{0, 4, 5, 6, 7}, {2, 0, 5, 6, 7}, {2, 4, 0, 6, 7},
                      {2, 4, 5, 0, 7}, {2, 4, 5, 6, 0}, {0, 0, 0, 0, 0}};
  for (const auto& e : shapes) {
    for (const auto dtype : kDtypes) {
      for (const char* solver : {"iterative", "exact"}) {
        ChoosingCase c{torch::randn({e.batch, e.heads, e.n, 3}).to(dtype),
                       torch::randn({e.batch, e.heads / 2, e.m, 3}).to(dtype),
                       torch::randn({e.batch, e.heads / 2, e.m, e.value_dim}).to(dtype),
                       torch::full({}, 1.5, torch::kDouble)};
        c.options = {.causal = true, .solver = solver, .normalize = true};
        check_case(c);
      }
    }
  }
}

TEST(CoordinateDescentAttentionBudget, ANumberIsATensorOfOne) {
  const Tensor x = torch::randn({1, 2, 20, 8});
  const Tensor expected = coordinate_descent_attention(x, x, x, torch::full({}, 2.5), {}, {});
  EXPECT_TRUE(torch::equal(coordinate_descent_attention(x, x, x, 2.5), expected));
}

TEST(CoordinateDescentAttentionInstructionSets, AllEqualThePlainFormulation) {
  for_each_instruction_set([] {
    for (unsigned seed = 4000; seed < 4012; ++seed) {
      for (const auto dtype : kDtypes) check_case(random_choosing_case(seed, dtype));
      if (::testing::Test::HasFailure()) return;
    }
  });
}

TEST(CoordinateDescentAttentionThreads, ResultsDoNotDependOnTheirNumber) {
  torch::manual_seed(14);
  for (const auto dtype : {torch::kFloat, torch::kDouble, torch::kBFloat16}) {
    ChoosingCase c{torch::randn({1, 4, 300, 24}).to(dtype), torch::randn({1, 2, 310, 24}).to(dtype),
                   torch::randn({1, 2, 310, 20}).to(dtype), torch::full({4, 1}, 2.5)};
    c.options = {.causal = true, .n_iters = 9, .eps_init = 4.0, .eps_decay = 0.7};
    const Tensor upstream = random_upstream(c);
    expect_same_with_any_threads([&] { return with_gradients(c, upstream, attention_of); });
  }
}

TEST(CoordinateDescentAttentionModes, InferenceModeAndNoGrad) {
  const Tensor x = torch::randn({1, 2, 20, 8}).requires_grad_(true);
  const Tensor expected = coordinate_descent_attention(x, x, x, 2.0);
  {
    torch::NoGradGuard no_grad;
    const Tensor got = coordinate_descent_attention(x, x, x, 2.0);
    EXPECT_FALSE(got.requires_grad());
    EXPECT_TRUE(torch::equal(got, expected));
  }
  c10::InferenceMode inference;
  EXPECT_TRUE(torch::equal(coordinate_descent_attention(x, x, x, 2.0), expected));
}

/// Peak resident bytes of this process since the last reset; 0 where the kernel does not tell.
std::int64_t peak_bytes() {
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word != "VmHWM:") continue;
    std::int64_t kilobytes = 0;
    status >> kilobytes;
    return kilobytes * 1024;
  }
  return 0;
}

bool reset_peak() {
  std::ofstream clear("/proc/self/clear_refs");
  return static_cast<bool>(clear << "5" << std::flush);
}

TEST(CoordinateDescentAttentionMemory, NothingOfSizeQueriesTimesKeys) {
  const auto run = [](std::int64_t n) {
    ChoosingCase c{torch::randn({1, 4, n, 16}), torch::randn({1, 4, n, 16}),
                   torch::randn({1, 4, n, 16}), torch::full({}, 2.0, torch::kDouble)};
    c.options = {.causal = true, .n_iters = 3};
    return with_gradients(c, random_upstream(c), attention_of);
  };
  run(64);  // threads, first pages
  if (!reset_peak()) GTEST_SKIP() << "/proc/self/clear_refs is not writable here";
  const std::int64_t before = peak_bytes();
  run(4096);  // 4 heads x 4096 x 4096 floats would be 256 MiB
  // Operands, results, parts of gradients: a dozen tensors of 1 MiB; scratch of 2 MiB per thread.
  EXPECT_LE(peak_bytes() - before, std::int64_t{48} << 20);
}

}  // namespace
}  // namespace weir::tests
