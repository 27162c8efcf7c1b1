// SPDX-License-Identifier: Apache-2.0
// top_k_attention against the textbook's loops and stable sort, against block_sparse_attention
// where all keys are kept, corners of the selection, and finite differences.
#include "weir/ops/top_k_attention.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>

#include "support/gradcheck.h"
#include "support/top_k_attention_cases.h"

namespace weir::tests {
namespace {

using ops::top_k_attention;
using torch::Tensor;

const auto kDouble = torch::TensorOptions(torch::kDouble);
constexpr torch::Dtype kDtypes[] = {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf};
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

class TopKAttentionRandom : public ::testing::TestWithParam<unsigned> {};

TEST_P(TopKAttentionRandom, EqualsTheTextbook) {
  for (unsigned i = 0; i < 30; ++i) {
    for (const auto dtype : kDtypes) {
      check_case(random_top_k_case(100 * GetParam() + i, dtype));
      if (HasFailure()) return;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, TopKAttentionRandom, ::testing::Range(0u, 5u));

TEST(TopKAttention, LongSequencesSelectMoreThanOnce) {
  torch::manual_seed(1);
  for (const auto dtype : {torch::kDouble, torch::kFloat}) {
    for (const std::int64_t k : {1, 30, 200}) {
      const auto quarters = [&](torch::IntArrayRef shape) {
        return (torch::randn(shape, dtype).clamp(-2, 2) * 4).round() / 4;
      };
      TopKCase c{{quarters({1, 2, 70, 16}), quarters({1, 1, 900, 16}),
                  torch::randn({1, 1, 900, 16}, dtype)},
                 k};
      check_case(c);
      c.attention.options.causal = true;
      check_case(c);
      // Every key is larger than all before it, and then the other way round.
      c.attention.query.fill_(0.25), c.attention.key.fill_(0.25);
      c.attention.key.select(3, 0) = torch::arange(900, dtype) / 256;
      check_case(c);
      c.attention.key.select(3, 0) = -torch::arange(900, dtype) / 256;
      check_case(c);
    }
  }
}

TEST(TopKAttention, WithAllKeysKeptItIsSoftmaxAttention) {
  for (unsigned seed = 500; seed < 540; ++seed) {
    for (const auto dtype : {torch::kDouble, torch::kFloat}) {
      TopKCase c = random_top_k_case(seed, dtype);
      c.k = c.attention.key.size(2) + seed % 2;
      SCOPED_TRACE(describe(c));
      const Tensor upstream = random_upstream(c.attention);
      const TopKResult got = run(c, upstream);
      const AttentionResult expected = run(c.attention, upstream);
      const Tolerance tolerance = tolerance_of(dtype);
      expect_close("output", got.output, expected.output, tolerance.weights);
      expect_close("grad of query", got.query, expected.query, tolerance.gradients);
      expect_close("grad of key", got.key, expected.key, tolerance.gradients);
      expect_close("grad of value", got.value, expected.value, tolerance.gradients);
    }
  }
}

/// In float32 nearly equal logits may change places; what is kept is still the k largest, up to the
/// rounding of logits, and the output is theirs.
TEST(TopKAttention, FloatKeepsTheLargestUpToRounding) {
  torch::manual_seed(2);
  const Tensor query = torch::randn({1, 4, 300, 64}), key = torch::randn({1, 4, 700, 64}),
               value = torch::randn({1, 4, 700, 64});
  const auto [output, indices, weights] =
      top_k_forward_operator().call(query, key, value, {}, {}, 50, false, 0.125);
  const Tensor wide = torch::matmul(query.to(torch::kDouble), key.to(torch::kDouble).mT()) * 0.125;
  const Tensor kept =
      torch::zeros_like(wide, torch::kBool).scatter(-1, indices.to(torch::kLong), true);
  EXPECT_EQ(kept.sum().item<std::int64_t>(), 4 * 300 * 50);
  const double infinity = std::numeric_limits<double>::infinity();
  const Tensor least = wide.masked_fill(~kept, infinity).amin(-1),
               most = wide.masked_fill(kept, -infinity).amax(-1);
  EXPECT_LE((most - least).max().item<double>(), kFloat32.weights);
  const Tensor expected = torch::softmax(wide.masked_fill(~kept, -infinity), -1);
  expect_close("weights", weights, expected.gather(-1, indices.to(torch::kLong)), kFloat32.weights);
  expect_close("output", output, torch::matmul(expected, value.to(torch::kDouble)),
               kFloat32.weights);
}

TEST(TopKAttention, OfEqualLogitsTheFirstKeysStay) {
  torch::manual_seed(3);
  for (const auto dtype : kDtypes) {
    const Tensor few = torch::randn({1, 2, 5, 24}).to(dtype);
    const Tensor key = few.repeat({1, 1, 160, 1});  // key j equals key j + 5
    const Tensor query = torch::randn({1, 2, 70, 24}).to(dtype);
    const auto [output, indices, weights] =
        top_k_forward_operator().call(query, key, key, {}, {}, 40, false, 1.0);
    // The largest of the five, 40 of its 160 copies: the first ones.
    const Tensor best = indices.select(-1, 0);
    EXPECT_TRUE((best < 5).all().item<bool>());
    EXPECT_TRUE(torch::equal(indices, best.unsqueeze(-1) + 5 * torch::arange(40, torch::kInt)));
    EXPECT_TRUE((weights == weights.flatten()[0]).all().item<bool>());
  }
}

TEST(TopKAttention, NothingIsReadOfKeysThatAreNotVisible) {
  torch::manual_seed(4);
  for (const auto dtype : kDtypes) {
    TopKCase c = random_top_k_case(7, dtype);
    AttentionCase& a = c.attention;
    a = {torch::randn({2, 2, 70, 10}).to(dtype), torch::randn({2, 1, 90, 10}).to(dtype),
         torch::randn({2, 1, 90, 7}).to(dtype)};
    c.k = 9;
    a.options.causal = true;
    a.masks.key_mask = torch::rand({2, 90}) < 0.8;
    const Tensor upstream = random_upstream(a);
    const Tensor away = ~a.masks.key_mask->view({2, 1, 90, 1});
    const auto expected = run(c, upstream).all();
    a.key = a.key.masked_fill(away, kNaN), a.value = a.value.masked_fill(away, kNaN);
    const auto got = run(c, upstream).all();
    const auto composite = run_composite_pair(c, upstream);
    for (std::size_t i = 0; i < got.size(); ++i) {
      EXPECT_TRUE(torch::equal(got[i], expected[i])) << dtype << " result " << i;
    }
    for (const Tensor& x : composite.all()) EXPECT_TRUE(torch::isfinite(x).all().item<bool>());
  }
}

TEST(TopKAttention, NanAtAVisibleKeyIsNanForThatQuery) {
  torch::manual_seed(5);
  for (const auto dtype : kDtypes) {
    TopKCase c{{torch::randn({1, 1, 40, 8}).to(dtype), torch::randn({1, 1, 40, 8}).to(dtype),
                torch::randn({1, 1, 40, 8}).to(dtype)},
               3};
    c.attention.options.causal = true;
    c.attention.key.select(2, 25).fill_(kNaN);
    const Tensor upstream = random_upstream(c.attention);
    for (const TopKResult& got : {run(c, upstream), run_composite_pair(c, upstream)}) {
      const Tensor sees = torch::arange(40) >= 25;
      for (const Tensor& x : {got.output, got.query}) {
        EXPECT_TRUE(torch::equal(torch::isnan(x).all(-1).flatten(), sees));
        EXPECT_TRUE(torch::equal(torch::isnan(x).any(-1).flatten(), sees));
      }
      EXPECT_TRUE((got.indices.slice(2, 25) == 25).any(-1).all().item<bool>());
    }
  }
}

TEST(TopKAttention, TheGradientReachesOnlyWhatIsKept) {
  torch::manual_seed(6);
  TopKCase c{{torch::randn({1, 1, 1, 8}), torch::randn({1, 1, 50, 8}), torch::randn({1, 1, 50, 8})},
             4};
  const TopKResult got = run(c, random_upstream(c.attention));
  const Tensor kept =
      torch::zeros({50}, torch::kBool).index_fill(0, got.indices.flatten().to(torch::kLong), true);
  for (const Tensor& grad : {got.key, got.value}) {
    EXPECT_TRUE(torch::equal((grad != 0).any(-1).flatten(), kept));
  }
}

// ---- finite differences, where no step of theirs changes what is kept

TopKCase small_case(bool causal, bool masked) {
  torch::manual_seed(7);
  TopKCase c{{torch::randn({1, 2, 5, 3}, kDouble), torch::randn({1, 1, 7, 3}, kDouble),
              torch::randn({1, 1, 7, 2}, kDouble)},
             3};
  c.attention.options.causal = causal;
  if (masked) {
    c.attention.masks.key_mask = torch::tensor({1, 1, 0, 1, 1, 0, 1}).to(torch::kBool).view({1, 7});
    c.attention.masks.mask = torch::rand({2, 5, 7}) < 0.7;
  }
  return c;
}

TEST(TopKAttentionGradcheck, FirstAndSecondDerivatives) {
  for (const auto& [causal, masked] : {std::pair(false, false), {true, false}, {true, true}}) {
    const TopKCase c = small_case(causal, masked);
    const auto function = [&](const Tensors& in) {
      return top_k_attention(in[0], in[1], in[2], c.k,
                             {c.attention.masks.key_mask, c.attention.masks.mask}, {causal, 0.8});
    };
    const Tensors inputs = {c.attention.query, c.attention.key, c.attention.value};
    expect_gradients(function, inputs);
    const auto gradient = [&](const Tensors& in) {
      const auto grads =
          torch::autograd::grad({function(in).square().sum()}, in, {}, std::nullopt, true);
      return torch::cat({grads[0].flatten(), grads[1].flatten(), grads[2].flatten()});
    };
    expect_gradients(gradient, inputs);
  }
}

TEST(TopKAttentionGradcheck, OneTensorAsQueryKeyAndValue) {
  torch::manual_seed(8);
  const auto function = [](const Tensors& in) {
    return top_k_attention(in[0], in[0], in[0], 2, {}, {.causal = true});
  };
  expect_gradients(function, {torch::randn({1, 1, 5, 3}, kDouble)});
}

}  // namespace
}  // namespace weir::tests
