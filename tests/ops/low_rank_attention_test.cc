// SPDX-License-Identifier: Apache-2.0
// low_rank_attention against the textbook's loops, against top_k_attention's choice and softmax
// attention where all keys are kept, NaN, and derivatives against a dense form whose straight-
// through score is a function of its own.
#include "weir/ops/low_rank_attention.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>

#include "support/gradcheck.h"
#include "support/low_rank_attention_cases.h"
#include "weir/ops/coordinate_descent.h"

namespace weir::tests {
namespace {

using ops::low_rank_attention;
using torch::Tensor;

const auto kDouble = torch::TensorOptions(torch::kDouble);
constexpr torch::Dtype kDtypes[] = {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf};
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
const std::string kScores[] = {"softmax", "coordinate_descent"};

class LowRankAttentionRandom : public ::testing::TestWithParam<unsigned> {};

TEST_P(LowRankAttentionRandom, EqualsTheTextbook) {
  for (unsigned i = 0; i < 20; ++i) {
    for (const auto dtype : kDtypes) {
      check_case(random_low_rank_case(100 * GetParam() + i, dtype));
      if (HasFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, LowRankAttentionRandom, ::testing::Range(0u, 5u));

TEST(LowRankAttention, LongSequencesSelectMoreThanOnce) {
  torch::manual_seed(1);
  for (const auto dtype : {torch::kDouble, torch::kFloat}) {
    for (const std::int64_t k : {1, 30, 200}) {
      const auto quarters = [&](torch::IntArrayRef shape) {
        return (torch::randn(shape, dtype).clamp(-2, 2) * 4).round() / 4;
      };
      LowRankCase c = low_rank_case(
          {quarters({1, 2, 70, 16}), quarters({1, 1, 900, 16}), torch::randn({1, 4, 70, 24}, dtype),
           torch::randn({1, 2, 900, 24}, dtype), torch::randn({1, 2, 900, 16}, dtype)},
          k);
      for (const std::string& score : kScores) {
        c.score = score;
        check_case(c);
        c.route.attention.options.causal = true;
        check_case(c);
      }
    }
  }
}

TEST(LowRankAttention, TheChoiceIsThatOfTopKAttention) {
  for (unsigned seed = 300; seed < 330; ++seed) {
    for (const auto dtype : kDtypes) {
      const LowRankCase c = random_low_rank_case(seed, dtype);
      SCOPED_TRACE(describe(c));
      const AttentionCase& a = c.route.attention;
      const auto choice =
          top_k_forward_operator().call(a.query, a.key, a.key, a.masks.key_mask, a.masks.mask,
                                        c.route.k, a.options.causal, c.route.scale());
      EXPECT_TRUE(torch::equal(run(c, random_upstream(c)).indices, std::get<1>(choice)));
    }
  }
}

TEST(LowRankAttention, WithAllKeysKeptItIsSoftmaxAttention) {
  for (unsigned seed = 500; seed < 530; ++seed) {
    for (const auto dtype : {torch::kDouble, torch::kFloat}) {
      LowRankCase c = random_low_rank_case(seed, dtype);
      AttentionCase all = c.attention.attention;
      c.route.k = all.key.size(2) + seed % 2;
      c.route.attention.masks.mask = std::nullopt;
      all.masks.key_mask = c.masks().key_mask;
      all.options.causal = c.options().causal;
      SCOPED_TRACE(describe(c));
      const Tensor upstream = random_upstream(c);
      const LowRankResult got = run(c, upstream);
      const AttentionResult expected = run(all, upstream);
      const Tolerance tolerance = tolerance_of(dtype);
      expect_close("output", got.output, expected.output, tolerance.weights);
      expect_close("grad of query", got.grads[2], expected.query, tolerance.gradients);
      expect_close("grad of key", got.grads[3], expected.key, tolerance.gradients);
      expect_close("grad of value", got.grads[4], expected.value, tolerance.gradients);
    }
  }
}

/// 70 queries of 4 heads, 2 of them routing heads, over 90 keys.
LowRankCase grouped_case(torch::Dtype dtype, std::int64_t k) {
  const auto random = [&](torch::IntArrayRef shape) { return torch::randn(shape).to(dtype); };
  LowRankCase c =
      low_rank_case({random({2, 2, 70, 6}), random({2, 1, 90, 6}), random({2, 4, 70, 10}),
                     random({2, 2, 90, 10}), random({2, 2, 90, 7})},
                    k);
  c.route.attention.options.causal = true;
  return c;
}

TEST(LowRankAttention, NothingIsReadOfKeysThatAreNotVisible) {
  torch::manual_seed(4);
  for (const auto dtype : kDtypes) {
    for (const std::string& score : kScores) {
      LowRankCase c = grouped_case(dtype, 9);
      c.score = score;
      AttentionCase &route = c.route.attention, &a = c.attention.attention;
      route.masks.key_mask = torch::rand({2, 90}) < 0.8;
      const Tensor upstream = random_upstream(c);
      const Tensor away = ~route.masks.key_mask->view({2, 1, 90, 1});
      const auto expected = run(c, upstream).all();
      route.key = route.key.masked_fill(away, kNaN);
      a.key = a.key.masked_fill(away, kNaN), a.value = a.value.masked_fill(away, kNaN);
      const auto got = run(c, upstream).all();
      for (std::size_t i = 0; i < got.size(); ++i) {
        EXPECT_TRUE(torch::equal(got[i], expected[i])) << dtype << " result " << i;
      }
      for (const Tensor& x : run_composite_pair(c, upstream).all()) {
        EXPECT_TRUE(torch::isfinite(x).all().item<bool>());
      }
    }
  }
}

TEST(LowRankAttention, NothingIsReadOfFullKeysThatAreNotKept) {
  torch::manual_seed(5);
  for (const auto dtype : kDtypes) {
    LowRankCase c = grouped_case(dtype, 3);
    AttentionCase& a = c.attention.attention;
    const Tensor upstream = random_upstream(c);
    const LowRankResult expected = run(c, upstream);
    Tensor kept = torch::zeros({2, 2, 91}, torch::kBool);  // by either query head of a key head
    kept.scatter_(2, expected.indices.flatten(2).to(torch::kLong).remainder(91), true);
    const Tensor away = ~kept.slice(2, 0, 90).unsqueeze(-1);
    ASSERT_TRUE(away.any().item<bool>());
    a.key = a.key.masked_fill(away, kNaN), a.value = a.value.masked_fill(away, kNaN);
    const LowRankResult got = run(c, upstream);
    for (std::size_t i = 0; i < got.all().size(); ++i) {
      EXPECT_TRUE(torch::equal(got.all()[i], expected.all()[i])) << dtype << " result " << i;
    }
  }
}

TEST(LowRankAttention, NanAtAVisibleRoutingKeyIsNanForThatQuery) {
  torch::manual_seed(6);
  for (const auto dtype : kDtypes) {
    for (const std::string& score : kScores) {
      const Tensor x = torch::randn({1, 1, 40, 8}).to(dtype);
      LowRankCase c = low_rank_case({x, x.clone(), x, x, x}, 3);
      c.score = score;
      c.route.attention.options.causal = true;
      c.route.attention.key.select(2, 25).fill_(kNaN);
      const Tensor upstream = random_upstream(c);
      for (const LowRankResult& got : {run(c, upstream), run_composite_pair(c, upstream)}) {
        const Tensor sees = torch::arange(40) >= 25;
        for (const Tensor& y : {got.output, got.grads[0], got.grads[2]}) {
          EXPECT_TRUE(torch::equal(torch::isnan(y).all(-1).flatten(), sees));
          EXPECT_TRUE(torch::equal(torch::isnan(y).any(-1).flatten(), sees));
        }
        EXPECT_TRUE((got.indices.slice(2, 25) == 25).any(-1).all().item<bool>());
      }
    }
  }
}

TEST(LowRankAttention, NanAtAKeptKeyIsNanForThatQuery) {
  torch::manual_seed(7);
  for (const auto dtype : kDtypes) {
    const Tensor x = torch::randn({1, 1, 40, 8}).to(dtype);
    LowRankCase c = low_rank_case({x, x, x, x.clone(), x}, 3);
    c.route.attention.options.causal = true;
    c.attention.attention.key.select(2, 25).fill_(kNaN);
    const Tensor upstream = random_upstream(c);
    for (const LowRankResult& got : {run(c, upstream), run_composite_pair(c, upstream)}) {
      const Tensor keeps = (got.indices == 25).any(-1).flatten();
      for (const Tensor& y : {got.output, got.grads[0], got.grads[2]}) {
        EXPECT_TRUE(torch::equal(torch::isnan(y).all(-1).flatten(), keeps));
        EXPECT_TRUE(torch::equal(torch::isnan(y).any(-1).flatten(), keeps));
      }
    }
  }
}

TEST(LowRankAttention, TheGradientReachesOnlyWhatIsKept) {
  torch::manual_seed(8);
  for (const std::string& score : kScores) {
    LowRankCase c = low_rank_case(
        {torch::randn({1, 1, 1, 8}), torch::randn({1, 1, 50, 8}), torch::randn({1, 1, 1, 8}),
         torch::randn({1, 1, 50, 8}), torch::randn({1, 1, 50, 8})},
        4);
    c.score = score, c.eps = 1, c.k_ratio = 3;
    const LowRankResult got = run(c, random_upstream(c));
    const Tensor kept = torch::zeros({50}, torch::kBool)
                            .index_fill(0, got.indices.flatten().to(torch::kLong), true);
    for (const std::size_t i : {3, 4}) {
      EXPECT_TRUE(torch::equal((got.grads[i] != 0).any(-1).flatten(), kept)) << i;
    }
    const Tensor of_route_key = (got.grads[1] != 0).any(-1).flatten();
    EXPECT_TRUE(of_route_key.any().item<bool>());
    EXPECT_FALSE((of_route_key & ~kept).any().item<bool>());
  }
}

TEST(LowRankAttention, AsManyKeysAsTheBudgetGiveTheRouteNoGradient) {
  torch::manual_seed(9);
  LowRankCase c = grouped_case(torch::kDouble, 9);
  c.score = "coordinate_descent";
  const LowRankResult got = run(c, random_upstream(c));
  // A causal query i sees i + 21 keys; budget 8.
  EXPECT_TRUE((got.grads[0] != 0).any(-1).all().item<bool>());
  c.k_ratio = 1;
  const LowRankResult all = run(c, random_upstream(c));
  EXPECT_TRUE((all.scores == 1).all().item<bool>());
  EXPECT_FALSE(all.grads[0].any().item<bool>());
  EXPECT_FALSE(all.grads[1].any().item<bool>());
}

// ---- derivatives

struct Small {
  LowRankCase c;
  Tensor kept;    // bool (batch, route_heads, n, m)
  Tensor scores;  // dense, as constants
};

/// s over the kept of a dense (batch, route_heads, n, m); 0 elsewhere.
Tensor dense_scores(const LowRankCase& c, const Tensor& kept, const Tensors& in) {
  const auto groups = in[0].size(1) / in[1].size(1);
  const Tensor logits =
      torch::matmul(in[0], in[1].repeat_interleave(groups, 1).mT()) * c.route.scale();
  if (c.score == "softmax") {
    return torch::softmax(logits.masked_fill(~kept, -1e300), -1).masked_fill(~kept, 0);
  }
  return ops::coordinate_descent_composite(
      logits, torch::tensor(static_cast<double>(c.route.k) / c.k_ratio, kDouble), kept,
      {.eps = c.eps, .solver = "exact"});
}

/// The operator with its choice and stop_gradient(s) as constants: a function like any other.
Tensor dense(const Small& small, const Tensors& in) {
  const std::int64_t heads = in[2].size(1);
  const auto to_heads = [&](const Tensor& x) { return x.repeat_interleave(heads / x.size(1), 1); };
  const Tensor away = ~to_heads(small.kept);
  const Tensor logits = torch::matmul(in[2], to_heads(in[3]).mT()) * small.c.attention.scale();
  const Tensor weights = torch::softmax(logits.masked_fill(away, -1e300), -1).masked_fill(away, 0);
  const Tensor through = 1 + (dense_scores(small.c, small.kept, in) - small.scores);
  return torch::matmul(weights * to_heads(through), to_heads(in[4]));
}

Small small_case(const std::string& score, bool causal, bool masked) {
  torch::manual_seed(10);
  LowRankCase c =
      low_rank_case({torch::randn({1, 2, 5, 2}, kDouble), torch::randn({1, 1, 7, 2}, kDouble),
                     torch::randn({1, 4, 5, 3}, kDouble), torch::randn({1, 2, 7, 3}, kDouble),
                     torch::randn({1, 2, 7, 2}, kDouble)},
                    4);
  c.score = score, c.eps = 0.6;
  c.route.attention.options.causal = causal;
  if (masked) {
    c.route.attention.masks.key_mask =
        torch::tensor({1, 1, 0, 1, 1, 0, 1}).to(torch::kBool).view({1, 7});
    c.route.attention.masks.mask = torch::rand({2, 5, 7}) < 0.7;
  }
  const Tensor indices = run(c, random_upstream(c)).indices.to(torch::kLong);
  const Tensor kept = torch::zeros({1, 2, 5, 8}, torch::kBool)
                          .scatter(-1, indices.remainder(8).masked_fill(indices < 0, 7), true)
                          .slice(-1, 0, 7);
  Small small{c, kept, {}};
  small.scores = dense_scores(c, kept, c.operands());
  return small;
}

Tensors first(const Tensor& output, const Tensors& leaves) {
  return torch::autograd::grad({(output.square() + output).sum()}, leaves, {}, std::nullopt,
                               /*create_graph=*/true);
}

TEST(LowRankAttentionDerivatives, FirstAndSecondAreThoseOfTheDenseForm) {
  for (const std::string& score : kScores) {
    for (const auto& [causal, masked] : {std::pair(false, false), {true, false}, {true, true}}) {
      const Small small = small_case(score, causal, masked);
      SCOPED_TRACE(describe(small.c));
      Tensors leaves;
      for (const Tensor& x : small.c.operands()) leaves.push_back(x.clone().requires_grad_(true));
      const Tensor output = low_rank_attention(leaves[0], leaves[1], leaves[2], leaves[3],
                                               leaves[4], 4, small.c.masks(), small.c.options());
      const Tensor expected = dense(small, leaves);
      expect_close("output", output, expected, kFloat64.weights);
      const Tensors got = first(output, leaves), want = first(expected, leaves);
      Tensor got_sum, want_sum;
      for (std::size_t i = 0; i < got.size(); ++i) {
        expect_close("first", got[i], want[i], kFloat64.gradients);
        EXPECT_TRUE(want[i].abs().max().item<double>() > 1e-3) << i;
        const Tensor projection = torch::randn_like(got[i]);
        const Tensor of_got = (got[i] * projection).sum(), of_want = (want[i] * projection).sum();
        got_sum = i == 0 ? of_got : got_sum + of_got;
        want_sum = i == 0 ? of_want : want_sum + of_want;
      }
      const Tensors second = torch::autograd::grad({got_sum}, leaves),
                    second_want = torch::autograd::grad({want_sum}, leaves);
      for (std::size_t i = 0; i < second.size(); ++i) {
        expect_close("second", second[i], second_want[i], kFloat64.gradients);
      }
    }
  }
}

TEST(LowRankAttentionGradcheck, TheDenseFormIsDifferentiatedRight) {
  for (const std::string& score : kScores) {
    const Small small = small_case(score, true, true);
    expect_gradients([&](const Tensors& in) { return dense(small, in); }, small.c.operands());
  }
}

TEST(LowRankAttentionGradcheck, FirstAndSecondDerivativesBehindTheRoute) {
  for (const std::string& score : kScores) {
    const LowRankCase c = small_case(score, true, true).c;
    const Tensors x = c.operands();
    const auto function = [&](const Tensors& in) {
      return low_rank_attention(x[0], x[1], in[0], in[1], in[2], 4, c.masks(), c.options());
    };
    expect_gradients(function, {x[2], x[3], x[4]});
    const auto gradient = [&](const Tensors& in) {
      const auto grads =
          torch::autograd::grad({function(in).square().sum()}, in, {}, std::nullopt, true);
      return torch::cat({grads[0].flatten(), grads[1].flatten(), grads[2].flatten()});
    };
    expect_gradients(gradient, {x[2], x[3], x[4]});
  }
}

TEST(LowRankAttention, OneTensorAsAllOperandsGetsTheSumOfTheirGradients) {
  torch::manual_seed(11);
  const Tensor x = torch::randn({1, 1, 9, 3}, kDouble).requires_grad_(true);
  Tensors apart;
  for (int i = 0; i < 5; ++i) apart.push_back(x.detach().clone().requires_grad_(true));
  const auto loss = [](const Tensors& in) {
    return low_rank_attention(in[0], in[1], in[2], in[3], in[4], 2, {}, {.causal = true})
        .square()
        .sum();
  };
  const Tensor got = torch::autograd::grad({loss({x, x, x, x, x})}, {x})[0];
  Tensor expected = torch::zeros_like(x);
  for (const Tensor& grad : torch::autograd::grad({loss(apart)}, apart)) expected = expected + grad;
  expect_close("grad", got, expected, kFloat64.gradients);
}

}  // namespace
}  // namespace weir::tests
