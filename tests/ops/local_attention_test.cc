// SPDX-License-Identifier: Apache-2.0
// local_attention against the textbook's loops over pairs, its receptive fields by closed form,
// long sequences with rotary embeddings, and finite differences of the first and second order.
#include "weir/ops/local_attention.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <utility>

#include "support/gradcheck.h"
#include "support/local_attention_cases.h"

namespace weir::tests {
namespace {

using ops::local_attention;
using ops::LocalAttentionInputs;
using ops::LocalAttentionOptions;
using torch::Tensor;

const auto kDouble = torch::TensorOptions(torch::kDouble);

class LocalAttentionRandom : public ::testing::TestWithParam<unsigned> {};

TEST_P(LocalAttentionRandom, Float64EqualsTheTextbook) {
  for (unsigned i = 0; i < 100; ++i) {
    check_case(random_local_case(1000 * GetParam() + i, torch::kDouble));
    if (HasFailure()) return;
  }
}

TEST_P(LocalAttentionRandom, NarrowerTypesEqualTheTextbook) {
  for (unsigned i = 0; i < 34; ++i) {
    for (const auto dtype : {torch::kFloat, torch::kBFloat16, torch::kHalf}) {
      check_case(random_local_case(1000 * GetParam() + 500 + i, dtype));
    }
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, LocalAttentionRandom, ::testing::Range(0u, 6u));

// ---- which keys a query sees

/// First and last key that moves the output of query i.
std::pair<std::int64_t, std::int64_t> seen(std::int64_t i, LocalAttentionOptions options) {
  options.window_size = 16;
  torch::manual_seed(31);
  const Tensor x = torch::randn({1, 1, 128, 4}, kDouble);
  const Tensor identity = torch::eye(128, kDouble).view({1, 1, 128, 128});
  const Tensor weights = local_attention(x, x, identity, {}, options)[0][0][i];
  const Tensor keys = weights.nonzero().flatten();
  const std::int64_t first = keys[0].item<std::int64_t>(), last = keys[-1].item<std::int64_t>();
  EXPECT_EQ(keys.numel(), last - first + 1);  // no gap
  return {first, last};
}

TEST(LocalAttentionReceptiveField, IsTheStatedOne) {
  using Range = std::pair<std::int64_t, std::int64_t>;
  EXPECT_EQ(seen(50, {.causal = true, .exact_windowsize = true}), Range(34, 50));
  EXPECT_EQ(seen(50, {.causal = true}), Range(32, 50));
  EXPECT_EQ(seen(64, {.causal = true}), Range(48, 64));
  EXPECT_EQ(seen(64, {.exact_windowsize = true}), Range(48, 80));
  EXPECT_EQ(seen(64, {}), Range(48, 95));
  EXPECT_EQ(seen(79, {}), Range(48, 95));
  EXPECT_EQ(seen(64, {.look_backward = 0, .look_forward = 2}), Range(64, 111));
  EXPECT_EQ(seen(50, {.look_backward = 2, .look_forward = 0, .exact_windowsize = true}),
            Range(18, 50));
  EXPECT_EQ(seen(3, {}), Range(0, 31));
  EXPECT_EQ(seen(127, {.exact_windowsize = true}), Range(111, 127));
}

TEST(LocalAttentionReceptiveField, TheLastQueryStandsAtTheLastKey) {
  for (const bool exact : {false, true}) {
    for (unsigned seed = 2000; seed < 2010; ++seed) {
      LocalCase c = random_local_case(seed, torch::kDouble);
      c.options.exact_windowsize = exact;
      const std::int64_t m = c.key.size(2);
      c.query = torch::randn({c.query.size(0), c.query.size(1), m, c.query.size(3)}, kDouble);
      const Tensor all = local_attention(c.query, c.key, c.value, c.inputs, c.options);
      for (const std::int64_t n : {std::int64_t{1}, (m + 1) / 2}) {
        SCOPED_TRACE(describe(c));
        const Tensor part =
            local_attention(c.query.narrow(2, m - n, n), c.key, c.value, c.inputs, c.options);
        expect_close("output", part, all.narrow(2, m - n, n), kFloat64.weights);
      }
    }
  }
}

TEST(LocalAttention, AQueryWithoutKeysGivesZero) {
  torch::manual_seed(32);
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
    for (const bool shared : {false, true}) {
      LocalCase c{torch::randn({2, 2, 40, 8}).to(dtype), torch::randn({2, 1, 40, 8}).to(dtype),
                  torch::randn({2, 1, 40, 8}).to(dtype)};
      c.options = {.window_size = 8, .causal = true, .shared_qk = shared};
      Tensor kept = torch::ones({2, 40}, torch::kBool);
      kept[0].slice(0, 0, 5).fill_(false), kept[1].slice(0, 8, 32).fill_(false);
      c.inputs = {.key_mask = kept, .inv_freq = rotary(8)};
      const LocalResult got = run(c, random_upstream(c));
      for (const Tensor& x : {got.output, got.query}) {
        EXPECT_TRUE((x[0].slice(1, 0, 5) == 0).all().item<bool>());
        EXPECT_TRUE((x[1].slice(1, 16, 32) == 0).all().item<bool>());
        // where keys are shared, query 1 has one key beside its own
        EXPECT_FALSE((x[1].slice(1, 2, 8) == 0).any().item<bool>());
      }
      check_case(c);
    }
  }
}

TEST(LocalAttention, SharedQkSeesItselfOnlyIfNothingElseIsLeft) {
  torch::manual_seed(33);
  const Tensor x = torch::randn({1, 1, 6, 4}, kDouble);
  const Tensor identity = torch::eye(6, kDouble).view({1, 1, 6, 6});
  const Tensor weights = local_attention(
      x, x, identity, {}, {.window_size = 3, .causal = true, .shared_qk = true})[0][0];
  EXPECT_EQ(weights[0][0].item<double>(), 1);
  for (std::int64_t i = 1; i < 6; ++i) EXPECT_EQ(weights[i][i].item<double>(), 0);
}

// ---- long sequences

TEST(LocalAttentionLong, XposAtAnyLengthEqualsTheTextbook) {
  const std::vector<std::pair<int, int>> lengths = {{333, 333}, {100, 333}, {1, 257}, {256, 256}};
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16}) {
    for (const bool exact : {false, true}) {
      for (const auto& [n, m] : lengths) {
        torch::manual_seed(34);
        LocalCase c{torch::randn({2, 2, n, 6}).to(dtype), torch::randn({2, 1, m, 6}).to(dtype),
                    torch::randn({2, 1, m, 5}).to(dtype)};
        c.inputs.inv_freq = rotary(6);
        c.options = {.window_size = 4, .causal = true, .exact_windowsize = exact, .use_xpos = true};
        check_case(c);  // cut at 32 windows
        c.inputs.key_mask = torch::rand({2, m}) < 0.7;
        c.options.shared_qk = true;
        check_case(c);
        c.options = {.window_size = 4,
                     .look_backward = 2,
                     .look_forward = 1,
                     .exact_windowsize = exact,
                     .use_xpos = true,
                     .xpos_scale_base = 3};
        if (dtype == torch::kDouble) c.inputs.attn_bias = random_bias(c, dtype);
        check_case(c);
      }
    }
  }
}

/// The last `count` positions.
Tensor tail(const Tensor& x, std::int64_t count) { return x.narrow(2, x.size(2) - count, count); }

TEST(LocalAttentionLong, RotaryFarOutIsAsExactAsAtTheStart) {
  torch::manual_seed(35);
  constexpr std::int64_t kLength = 65'500, kQueries = 64, kKeys = kQueries + 16;  // one window
  const auto operand = [] { return torch::randn({1, 1, kLength, 8}); };
  LocalCase c{operand(), operand(), operand()};
  c.inputs.inv_freq = torch::tensor({1.0, 0.7, 0.1, 0.01});
  c.options = {.window_size = 16, .causal = true, .exact_windowsize = true};
  Tensor upstream = torch::zeros_like(c.value);
  tail(upstream, kQueries).normal_();
  for (const bool xpos : {false, true}) {
    c.options.use_xpos = xpos;
    const LocalCase end{tail(c.query, kQueries), tail(c.key, kKeys), tail(c.value, kKeys), c.inputs,
                        c.options};
    const LocalResult got = run(c, upstream);
    expect_results({tail(got.output, kQueries),
                    tail(got.query, kQueries),
                    tail(got.key, kKeys),
                    tail(got.value, kKeys),
                    {}},
                   textbook_run(end, tail(upstream, kQueries)), torch::kFloat);
  }
}

TEST(LocalAttentionLong, OnlyDistancesMatter) {
  torch::manual_seed(36);
  const auto operand = [] { return torch::randn({1, 1, 400, 8}, kDouble); };
  const LocalCase c{operand(), operand(), operand(), {.inv_freq = rotary(8)}};
  for (const bool xpos : {false, true}) {
    const LocalAttentionOptions options = {
        .window_size = 8, .causal = true, .exact_windowsize = true, .use_xpos = xpos};
    const Tensor whole = local_attention(c.query, c.key, c.value, c.inputs, options);
    const Tensor part = local_attention(tail(c.query, 100), tail(c.key, 100), tail(c.value, 100),
                                        c.inputs, options);
    expect_close("output", part.narrow(2, 8, 92), whole.narrow(2, 308, 92), kFloat64.weights);
  }
}

// ---- finite differences

struct Small {
  LocalAttentionOptions options;
  bool bias = false, rotation = false, mask = false;
  std::int64_t n = 5, m = 5;
};

void check_derivatives(const Small& small) {
  torch::manual_seed(37);
  LocalCase c{torch::randn({1, 2, small.n, 4}, kDouble), torch::randn({1, 1, small.m, 4}, kDouble),
              torch::randn({1, 1, small.m, 2}, kDouble)};
  c.options = small.options;
  Tensors leaves = {c.query, c.key, c.value};
  if (small.bias) leaves.push_back(random_bias(c, torch::kDouble));
  if (small.rotation) c.inputs.inv_freq = torch::tensor({1.0, 0.3}, kDouble);
  if (small.mask) {
    c.inputs.key_mask = torch::ones({1, small.m}, torch::kBool);
    c.inputs.key_mask->index_put_({0, 1}, false);
  }
  SCOPED_TRACE(describe(c));
  const auto function = [&](const Tensors& in) {
    LocalAttentionInputs inputs = c.inputs;
    if (small.bias) inputs.attn_bias = in[3];
    torch::manual_seed(38);  // of the dropout
    return local_attention(in[0], in[1], in[2], inputs, c.options);
  };
  expect_gradients(function, leaves);
  expect_gradients(
      [&](const Tensors& in) {
        const auto grads =
            torch::autograd::grad({function(in).square().sum()}, in, {}, std::nullopt, true);
        Tensors flat;
        for (const Tensor& grad : grads) flat.push_back(grad.flatten());
        return torch::cat(flat);
      },
      leaves);
}

TEST(LocalAttentionGradcheck, FirstAndSecondDerivatives) {
  check_derivatives({.options = {.window_size = 2}});
  check_derivatives({.options = {.window_size = 2, .causal = true}, .bias = true, .mask = true});
  check_derivatives({.options = {.window_size = 3, .exact_windowsize = true}, .rotation = true});
  check_derivatives(
      {.options = {.window_size = 2, .causal = true, .look_backward = 2, .shared_qk = true},
       .bias = true,
       .rotation = true,
       .n = 4,
       .m = 6});
  check_derivatives(
      {.options = {.window_size = 2, .causal = true, .shared_qk = true, .use_xpos = true},
       .rotation = true,
       .mask = true});
  check_derivatives(
      {.options = {.window_size = 2, .dropout = 0.3}, .bias = true, .rotation = true});
}

TEST(LocalAttentionGradcheck, AcrossChunksOfXpos) {
  check_derivatives(
      {.options = {.window_size = 1, .causal = true, .use_xpos = true, .xpos_scale_base = 0.05},
       .rotation = true,
       .n = 6,
       .m = 9});
}

TEST(LocalAttentionGradcheck, OneTensorAsQueryKeyAndValue) {
  torch::manual_seed(39);
  const auto function = [](const Tensors& in) {
    return local_attention(in[0], in[0], in[0], {.inv_freq = rotary(4)},
                           {.window_size = 2, .causal = true, .shared_qk = true});
  };
  expect_gradients(function, {torch::randn({1, 1, 5, 4}, kDouble)});
}

}  // namespace
}  // namespace weir::tests
