// SPDX-License-Identifier: Apache-2.0
// low_rank_attention: Meta agrees with the CPU, empty inputs, the dispatcher's entry, every
// instruction set, and threads do not change a bit.
#define HWY_DISABLED_TARGETS HWY_SSSE3  // as the kernels are built
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "support/instruction_sets.h"
#include "support/low_rank_attention_cases.h"
#include "support/same_results.h"

namespace weir::tests {
namespace {

using ops::low_rank_attention;
using torch::Tensor;

constexpr torch::Dtype kDtypes[] = {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf};

TEST(LowRankAttentionMeta, ShapesDtypesAndStridesOfTheCpu) {
  const auto meta = [](const std::optional<Tensor>& x) {
    return x ? std::optional(x->to(torch::kMeta)) : std::nullopt;
  };
  for (unsigned seed = 700; seed < 730; ++seed) {
    for (const auto dtype : kDtypes) {
      const LowRankCase c = random_low_rank_case(seed, dtype);
      SCOPED_TRACE(describe(c));
      LowRankCase shadow = c;
      for (AttentionCase* a : {&shadow.route.attention, &shadow.attention.attention}) {
        a->query = *meta(a->query), a->key = *meta(a->key), a->value = *meta(a->value);
        a->masks.key_mask = meta(a->masks.key_mask), a->masks.mask = meta(a->masks.mask);
      }
      const Tensor upstream = random_upstream(c);
      expect_meta_like(run(c, upstream).all(), run(shadow, *meta(upstream)).all());
    }
  }
}

struct Empty {
  const char* name;
  std::int64_t batch, heads, n, m, value_dim;
};

void PrintTo(const Empty& empty, std::ostream* out) { *out << empty.name; }

class LowRankAttentionEmpty : public ::testing::TestWithParam<Empty> {};

TEST_P(LowRankAttentionEmpty, GivesEmptyOrZero) {
  const Empty& e = GetParam();
  for (const auto dtype : kDtypes) {
    const std::int64_t half = e.heads / 2;
    LowRankCase c = low_rank_case({torch::ones({e.batch, half, e.n, 2}).to(dtype),
                                   torch::ones({e.batch, half / 2, e.m, 2}).to(dtype),
                                   torch::ones({e.batch, e.heads, e.n, 3}).to(dtype),
                                   torch::ones({e.batch, half, e.m, 3}).to(dtype),
                                   torch::randn({e.batch, half, e.m, e.value_dim}).to(dtype)},
                                  4);
    for (const char* score : {"softmax", "coordinate_descent"}) {
      c.score = score;
      check_case(c);
      AttentionCase& a = c.route.attention;
      a.options.causal = true;
      a.masks.key_mask = torch::ones({e.batch, e.m}, torch::kBool);
      a.masks.mask = torch::ones({e.n, e.m}, torch::kBool);
      check_case(c);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Dimensions, LowRankAttentionEmpty,
    ::testing::Values(Empty{"batch", 0, 4, 5, 6, 7}, Empty{"heads", 2, 0, 5, 6, 7},
                      Empty{"queries", 2, 4, 0, 6, 7}, Empty{"keys", 2, 4, 5, 0, 7},
                      Empty{"value_dim", 2, 4, 5, 6, 0}, Empty{"all", 0, 0, 0, 0, 0}),
    [](const auto& info) { return info.param.name; });

TEST(LowRankAttentionDispatcher, ThePublicEntryHasItsSchema) {
  using Optional = const std::optional<Tensor>&;
  using Entry = Tensor(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                       std::int64_t, Optional, Optional, bool, std::optional<double>,
                       std::optional<double>, std::string_view, double, double);
  const auto entry =
      c10::Dispatcher::singleton().findSchemaOrThrow("weir::low_rank_attention", "").typed<Entry>();
  const Tensor x = torch::randn({1, 2, 9, 4}), r = torch::randn({1, 1, 9, 4});
  const Tensor key_mask = torch::rand({1, 9}) < 0.8, mask = torch::rand({9, 9}) < 0.8;
  EXPECT_TRUE(torch::equal(
      entry.call(r, r, x, x, x, 3, key_mask, mask, true, 0.7, -0.4, "coordinate_descent", 0.2, 2.0),
      low_rank_attention(r, r, x, x, x, 3, {key_mask, mask},
                         {true, 0.7, -0.4, "coordinate_descent", 0.2, 2.0})));
  EXPECT_TRUE(
      torch::equal(entry.call(r, r, x, x, x, 3, {}, {}, false, {}, {}, "softmax", 0.1, 1.125),
                   low_rank_attention(r, r, x, x, x, 3, {}, {.scale = 0.5, .route_scale = 0.5})));
}

TEST(LowRankAttentionInstructionSets, AllEqualTheTextbook) {
  for_each_instruction_set([] {
    for (unsigned seed = 800; seed < 806; ++seed) {
      for (const torch::Dtype dtype : kDtypes) {
        check_case(random_low_rank_case(seed, dtype));
        if (::testing::Test::HasFailure()) return;
      }
    }
  });
}

TEST(LowRankAttentionThreads, ResultsDoNotDependOnTheirNumber) {
  torch::manual_seed(14);
  for (const auto dtype : {torch::kFloat, torch::kDouble, torch::kBFloat16}) {
    for (const char* score : {"softmax", "coordinate_descent"}) {
      const auto random = [&](torch::IntArrayRef shape) { return torch::randn(shape).to(dtype); };
      LowRankCase c =
          low_rank_case({random({2, 2, 250, 8}), random({2, 1, 270, 8}), random({2, 4, 250, 24}),
                         random({2, 4, 270, 24}), random({2, 4, 270, 20})},
                        20);
      c.score = score;
      c.route.attention.options.causal = true;
      c.route.attention.masks.key_mask = torch::rand({2, 270}) < 0.9;
      const Tensor upstream = random_upstream(c);
      expect_same_with_any_threads([&] { return run(c, upstream).all(); });
    }
  }
}

TEST(LowRankAttentionModes, InferenceModeAndNoGrad) {
  const Tensor x = torch::randn({1, 2, 20, 8}).requires_grad_(true);
  const Tensor expected = low_rank_attention(x, x, x, x, x, 3);
  EXPECT_TRUE(expected.requires_grad());
  {
    torch::NoGradGuard no_grad;
    const Tensor got = low_rank_attention(x, x, x, x, x, 3);
    EXPECT_FALSE(got.requires_grad());
    EXPECT_TRUE(torch::equal(got, expected));
  }
  c10::InferenceMode inference;
  EXPECT_TRUE(torch::equal(low_rank_attention(x, x, x, x, x, 3), expected));
}

}  // namespace
}  // namespace weir::tests
