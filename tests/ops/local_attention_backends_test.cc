// SPDX-License-Identifier: Apache-2.0
// local_attention: Meta agrees with the CPU; empty inputs; what is not finite where nobody looks;
// the dispatcher's entry; threads do not change a bit.
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>

#include "support/local_attention_cases.h"
#include "support/same_results.h"

namespace weir::tests {
namespace {

using ops::local_attention;
using torch::Tensor;

TEST(LocalAttentionMeta, ShapesDtypesAndStridesOfTheCpu) {
  const auto meta = [](const std::optional<Tensor>& x) {
    return x ? std::optional(x->to(torch::kMeta)) : std::nullopt;
  };
  for (unsigned seed = 7000; seed < 7040; ++seed) {
    for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
      LocalCase c = random_local_case(seed, dtype);
      if (seed % 3 == 0) c.options.dropout = 0.2;
      SCOPED_TRACE(describe(c));
      const LocalCase shadow{
          *meta(c.query),
          *meta(c.key),
          *meta(c.value),
          {meta(c.inputs.key_mask), meta(c.inputs.attn_bias), meta(c.inputs.inv_freq)},
          c.options};
      const Tensor upstream = random_upstream(c);
      const auto on_cpu = everything(run(c, upstream)),
                 on_meta = everything(run(shadow, *meta(upstream)));
      expect_meta_like(on_cpu, on_meta);
    }
  }
}

struct Empty {
  const char* name;
  std::int64_t batch, heads, n, m, value_dim;
};

void PrintTo(const Empty& empty, std::ostream* out) { *out << empty.name; }

class LocalAttentionEmpty : public ::testing::TestWithParam<Empty> {};

TEST_P(LocalAttentionEmpty, GivesEmptyOrZero) {
  const Empty& e = GetParam();
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kHalf}) {
    const std::int64_t kv_heads = e.heads / 2;
    LocalCase c{torch::randn({e.batch, e.heads, e.n, 4}).to(dtype),
                torch::randn({e.batch, kv_heads, e.m, 4}).to(dtype),
                torch::randn({e.batch, kv_heads, e.m, e.value_dim}).to(dtype)};
    c.options = {.window_size = 4};
    check_case(c);
    c.options = {.window_size = 2, .causal = true, .shared_qk = true};
    c.inputs = {.key_mask = torch::ones({e.batch, e.m}, torch::kBool),
                .attn_bias = random_bias(c, dtype),
                .inv_freq = rotary(4)};
    check_case(c);
    c.options.use_xpos = true;
    check_case(c);
    c.options.xpos_scale_base = 0.05;  // cut
    if (e.n <= e.m) check_case(c);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Dimensions, LocalAttentionEmpty,
    ::testing::Values(Empty{"batch", 0, 4, 5, 6, 7}, Empty{"heads", 2, 0, 5, 6, 7},
                      Empty{"queries", 2, 4, 0, 6, 7}, Empty{"keys", 2, 4, 5, 0, 7},
                      Empty{"value_dim", 2, 4, 5, 6, 0}, Empty{"all", 0, 0, 0, 0, 0}),
    [](const auto& info) { return info.param.name; });

// ---- what is not finite

struct Hidden {
  const char* name;
  std::int64_t n;
  ops::LocalAttentionOptions options;
  std::vector<std::int64_t> keys;  // of 40, that no query may see
  bool key_mask = false;           // what hides them, if not the options
  bool rotation = false;
};

void PrintTo(const Hidden& hidden, std::ostream* out) { *out << hidden.name; }

class LocalAttentionHidden : public ::testing::TestWithParam<Hidden> {};

LocalCase hidden_case(const Hidden& hidden, torch::Dtype dtype) {
  torch::manual_seed(41);
  LocalCase c{torch::randn({2, 4, hidden.n, 10}).to(dtype), torch::randn({2, 2, 40, 10}).to(dtype),
              torch::randn({2, 2, 40, 9}).to(dtype)};
  c.options = hidden.options;
  if (hidden.rotation) c.inputs.inv_freq = rotary(10);
  c.inputs.attn_bias = random_bias(c, dtype);
  if (hidden.key_mask) {
    c.inputs.key_mask = torch::ones({2, 40}, torch::kBool);
    for (const std::int64_t key : hidden.keys) c.inputs.key_mask->select(1, key).fill_(false);
  }
  return c;
}

TEST_P(LocalAttentionHidden, NothingOfItReachesAnyResult) {
  using Limits = std::numeric_limits<double>;
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
    for (const double with : {Limits::quiet_NaN(), Limits::infinity()}) {
      LocalCase c = hidden_case(GetParam(), dtype);
      SCOPED_TRACE(describe(c));
      const Tensor upstream = random_upstream(c);
      for (LocalAttention* attention : {local_attention, ops::local_attention_composite}) {
        LocalCase spoiled = c;
        for (Tensor* x : {&spoiled.key, &spoiled.value}) {
          *x = x->clone();
          for (const std::int64_t key : GetParam().keys) x->select(2, key).fill_(with);
        }
        const auto clean = everything(run(c, upstream, attention)),
                   got = everything(run(spoiled, upstream, attention));
        for (std::size_t i = 0; i < got.size(); ++i) {
          EXPECT_TRUE(torch::equal(got[i], clean[i])) << "result " << i;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    By, LocalAttentionHidden,
    ::testing::Values(
        Hidden{"key_mask", 40, {.window_size = 8}, {0, 13, 39}, true},
        Hidden{"key_mask_rotated", 33, {.window_size = 8, .causal = true}, {0, 13, 39}, true, true},
        Hidden{
            "key_mask_shared", 33, {.window_size = 8, .shared_qk = true}, {0, 13, 39}, true, true},
        Hidden{"key_mask_xpos",
               40,
               {.window_size = 2, .causal = true, .use_xpos = true},
               {0, 13},
               true,
               true},
        Hidden{"key_mask_chunks",
               30,
               {.window_size = 2, .causal = true, .use_xpos = true, .xpos_scale_base = 0.2},
               {0, 13, 39},
               true,
               true},
        Hidden{"window", 9, {.window_size = 4, .causal = true, .exact_windowsize = true}, {0, 26}},
        Hidden{"window_rotated",
               9,
               {.window_size = 4, .exact_windowsize = true},
               {0, 26},
               false,
               true},
        Hidden{"window_shared", 9, {.window_size = 4, .causal = true, .shared_qk = true}, {0, 23}},
        Hidden{"window_chunks",
               9,
               {.window_size = 2, .causal = true, .use_xpos = true, .xpos_scale_base = 0.2},
               {0, 25, 26, 27},
               false,
               true}),
    [](const auto& info) { return info.param.name; });

TEST(LocalAttentionHidden, OnlyQueriesThatAttendItAreTouched) {
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16}) {
    for (const bool shared : {false, true}) {
      LocalCase c = hidden_case(
          {"", 40, {.window_size = 8, .causal = true, .shared_qk = shared}, {}, false, true},
          dtype);
      c.key.select(2, 21).fill_(std::numeric_limits<double>::quiet_NaN());
      for (LocalAttention* attention : {local_attention, ops::local_attention_composite}) {
        const LocalResult got = run(c, random_upstream(c), attention);
        const Tensor touched = torch::isnan(got.output).all(-1);
        Tensor expected = torch::zeros({2, 4, 40}, torch::kBool);
        expected.slice(2, shared ? 22 : 21, 32).fill_(true);  // 21 itself sees a constant logit
        if (shared) expected.select(2, 21).copy_(touched.select(2, 21));
        EXPECT_TRUE(torch::equal(touched, expected));
        EXPECT_TRUE(torch::isfinite(got.key.narrow(2, 0, 8)).all().item<bool>());
        EXPECT_TRUE(torch::isfinite(got.key.narrow(2, 32, 8)).all().item<bool>());
      }
    }
  }
}

// ---- the rest

TEST(LocalAttentionDispatcher, ThePublicEntryHasItsSchema) {
  using Optional = const std::optional<Tensor>&;
  using Public = Tensor(const Tensor&, const Tensor&, const Tensor&, std::int64_t, Optional,
                        Optional, Optional, bool, std::int64_t, std::optional<std::int64_t>, bool,
                        std::optional<double>, bool, bool, std::optional<double>, double);
  const auto entry =
      c10::Dispatcher::singleton().findSchemaOrThrow("weir::local_attention", "").typed<Public>();
  torch::manual_seed(42);
  const Tensor x = torch::randn({1, 2, 29, 4}), kept = torch::rand({1, 29}) < 0.8;
  const Tensor bias = torch::randn({2, 3, 12}), angles = rotary(4);
  const ops::LocalAttentionOptions options = {.window_size = 3,
                                              .causal = true,
                                              .look_backward = 3,
                                              .look_forward = 0,
                                              .exact_windowsize = true,
                                              .scale = 0.7,
                                              .shared_qk = true,
                                              .use_xpos = true,
                                              .xpos_scale_base = 5,
                                              .dropout = 0.3};
  torch::manual_seed(43);
  const Tensor expected = local_attention(x, x, x, {kept, bias, angles}, options);
  torch::manual_seed(43);
  EXPECT_TRUE(torch::equal(
      entry.call(x, x, x, 3, kept, bias, angles, true, 3, 0, true, 0.7, true, true, 5.0, 0.3),
      expected));
}

void expect_same_with_any_threads(const LocalCase& c) {
  SCOPED_TRACE(describe(c));
  const Tensor upstream = random_upstream(c);
  tests::expect_same_with_any_threads([&] { return everything(run(c, upstream)); });
}

TEST(LocalAttentionThreads, ResultsDoNotDependOnTheirNumber) {
  for (unsigned seed = 44; seed < 56; ++seed) {
    for (const auto dtype : {torch::kFloat, torch::kDouble, torch::kBFloat16}) {
      LocalCase c = random_local_case(seed, dtype);
      if (seed % 2 == 0) c.options.dropout = 0.2;
      expect_same_with_any_threads(c);
    }
  }
}

TEST(LocalAttentionThreads, TheBackwardOfOneHeadIsSplitWithItsBias) {
  torch::manual_seed(9);
  LocalCase c{torch::randn({1, 1, 1500, 16}), torch::randn({1, 1, 1500, 16}),
              torch::randn({1, 1, 1500, 16})};
  c.options = {.window_size = 20, .look_backward = 2};
  c.inputs.attn_bias = torch::randn({1, 20, 80});
  for (int i = 0; i < 5; ++i) expect_same_with_any_threads(c);
}

TEST(LocalAttentionModes, InferenceModeAndNoGrad) {
  const Tensor x = torch::randn({1, 2, 20, 8}).requires_grad_(true);
  const ops::LocalAttentionInputs inputs = {.inv_freq = rotary(8)};
  const Tensor expected = local_attention(x, x, x, inputs, {.window_size = 4});
  {
    torch::NoGradGuard no_grad;
    const Tensor got = local_attention(x, x, x, inputs, {.window_size = 4});
    EXPECT_FALSE(got.requires_grad());
    EXPECT_TRUE(torch::equal(got, expected));
  }
  c10::InferenceMode inference;
  EXPECT_TRUE(torch::equal(local_attention(x, x, x, inputs, {.window_size = 4}), expected));
}

}  // namespace
}  // namespace weir::tests
