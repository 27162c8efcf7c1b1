// SPDX-License-Identifier: Apache-2.0
// top_k_attention: Meta agrees with the CPU, empty inputs, the dispatcher's entry, every
// instruction set, and threads do not change a bit.
#define HWY_DISABLED_TARGETS HWY_SSSE3  // as the kernels are built
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "support/instruction_sets.h"
#include "support/top_k_attention_cases.h"
#include "support/same_results.h"

namespace weir::tests {
namespace {

using ops::top_k_attention;
using torch::Tensor;

constexpr torch::Dtype kDtypes[] = {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf};

TEST(TopKAttentionMeta, ShapesDtypesAndStridesOfTheCpu) {
  const auto meta = [](const std::optional<Tensor>& x) {
    return x ? std::optional(x->to(torch::kMeta)) : std::nullopt;
  };
  for (unsigned seed = 700; seed < 730; ++seed) {
    for (const auto dtype : kDtypes) {
      const TopKCase c = random_top_k_case(seed, dtype);
      SCOPED_TRACE(describe(c));
      TopKCase shadow = c;
      AttentionCase& a = shadow.attention;
      a.query = *meta(a.query), a.key = *meta(a.key), a.value = *meta(a.value);
      a.masks.key_mask = meta(a.masks.key_mask), a.masks.mask = meta(a.masks.mask);
      const Tensor upstream = random_upstream(c.attention);
      const auto on_cpu = run(c, upstream).all(), on_meta = run(shadow, *meta(upstream)).all();
      expect_meta_like(on_cpu, on_meta);
    }
  }
}

struct Empty {
  const char* name;
  std::int64_t batch, heads, n, m, value_dim;
};

void PrintTo(const Empty& empty, std::ostream* out) { *out << empty.name; }

class TopKAttentionEmpty : public ::testing::TestWithParam<Empty> {};

TEST_P(TopKAttentionEmpty, GivesEmptyOrZero) {
  const Empty& e = GetParam();
  for (const auto dtype : kDtypes) {
    const std::int64_t kv_heads = e.heads / 2;
    TopKCase c{{torch::ones({e.batch, e.heads, e.n, 3}).to(dtype),
                torch::ones({e.batch, kv_heads, e.m, 3}).to(dtype),
                torch::randn({e.batch, kv_heads, e.m, e.value_dim}).to(dtype)},
               4};
    check_case(c);
    c.attention.options.causal = true;
    c.attention.masks.key_mask = torch::ones({e.batch, e.m}, torch::kBool);
    c.attention.masks.mask = torch::ones({e.n, e.m}, torch::kBool);
    check_case(c);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Dimensions, TopKAttentionEmpty,
    ::testing::Values(Empty{"batch", 0, 4, 5, 6, 7}, Empty{"heads", 2, 0, 5, 6, 7},
                      Empty{"queries", 2, 4, 0, 6, 7}, Empty{"keys", 2, 4, 5, 0, 7},
                      Empty{"value_dim", 2, 4, 5, 6, 0}, Empty{"all", 0, 0, 0, 0, 0}),
    [](const auto& info) { return info.param.name; });

TEST(TopKAttentionDispatcher, ThePublicEntryHasItsSchema) {
  using Optional = const std::optional<Tensor>&;
  using Entry = Tensor(const Tensor&, const Tensor&, const Tensor&, std::int64_t, Optional,
                       Optional, bool, std::optional<double>);
  const auto entry =
      c10::Dispatcher::singleton().findSchemaOrThrow("weir::top_k_attention", "").typed<Entry>();
  const Tensor x = torch::randn({1, 2, 9, 4});
  const Tensor key_mask = torch::rand({1, 9}) < 0.8, mask = torch::rand({9, 9}) < 0.8;
  EXPECT_TRUE(torch::equal(entry.call(x, x, x, 3, key_mask, mask, true, 0.7),
                           top_k_attention(x, x, x, 3, {key_mask, mask}, {true, 0.7})));
  EXPECT_TRUE(torch::equal(entry.call(x, x, x, 3, {}, {}, false, {}),
                           top_k_attention(x, x, x, 3, {}, {.scale = 0.5})));
}

TEST(TopKAttentionInstructionSets, AllEqualTheTextbook) {
  for_each_instruction_set([] {
    for (unsigned seed = 800; seed < 805; ++seed) {
      for (const torch::Dtype dtype : kDtypes) {
        check_case(random_top_k_case(seed, dtype));
        if (::testing::Test::HasFailure()) return;
      }
    }
  });
}

TEST(TopKAttentionInstructionSets, EqualLogitsOfUnevenKeys) {
  torch::manual_seed(9);
  const Tensor key = torch::randn({1, 1, 3, 20}).repeat({1, 1, 250, 1});
  const Tensor query = torch::randn({1, 1, 66, 20});
  for_each_instruction_set([&] {
    for (const auto dtype : kDtypes) {
      const auto [output, indices, weights] = top_k_forward_operator().call(
          query.to(dtype), key.to(dtype), key.to(dtype), {}, {}, 100, false, 1.0);
      const Tensor first = indices.narrow(-1, 0, 1);
      EXPECT_TRUE(torch::equal(indices, first + 3 * torch::arange(100, torch::kInt)));
    }
  });
}

TEST(TopKAttentionThreads, ResultsDoNotDependOnTheirNumber) {
  torch::manual_seed(14);
  for (const auto dtype : {torch::kFloat, torch::kDouble, torch::kBFloat16}) {
    TopKCase c{{torch::randn({2, 4, 250, 24}).to(dtype), torch::randn({2, 2, 270, 24}).to(dtype),
                torch::randn({2, 2, 270, 20}).to(dtype)},
               20};
    c.attention.options.causal = true;
    c.attention.masks.key_mask = torch::rand({2, 270}) < 0.9;
    const Tensor upstream = random_upstream(c.attention);
    expect_same_with_any_threads([&] { return run(c, upstream).all(); });
  }
}

TEST(TopKAttentionModes, InferenceModeAndNoGrad) {
  const Tensor x = torch::randn({1, 2, 20, 8}).requires_grad_(true);
  const Tensor expected = top_k_attention(x, x, x, 3);
  EXPECT_TRUE(expected.requires_grad());
  {
    torch::NoGradGuard no_grad;
    const Tensor got = top_k_attention(x, x, x, 3);
    EXPECT_FALSE(got.requires_grad());
    EXPECT_TRUE(torch::equal(got, expected));
  }
  c10::InferenceMode inference;
  EXPECT_TRUE(torch::equal(top_k_attention(x, x, x, 3), expected));
}

}  // namespace
}  // namespace weir::tests
