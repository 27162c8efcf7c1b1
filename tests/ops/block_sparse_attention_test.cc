// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention against the textbook's loops over pairs, torch's own attention with an
// explicit mask, and finite differences of the first and second order.
#include "weir/ops/block_sparse_attention.h"

#include <ATen/ops/scaled_dot_product_attention.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "support/block_sparse_attention_cases.h"
#include "support/gradcheck.h"

namespace weir::tests {
namespace {

using ops::block_sparse_attention;
using torch::Tensor;

const auto kDouble = torch::TensorOptions(torch::kDouble);

class BlockSparseAttentionRandom : public ::testing::TestWithParam<unsigned> {};

TEST_P(BlockSparseAttentionRandom, Float64EqualsTheTextbook) {
  for (unsigned i = 0; i < 150; ++i) {
    check_case(random_case(1000 * GetParam() + i, torch::kDouble));
    if (HasFailure()) return;
  }
}

TEST_P(BlockSparseAttentionRandom, NarrowerTypesEqualTheTextbook) {
  for (unsigned i = 0; i < 50; ++i) {
    for (const auto dtype : {torch::kFloat, torch::kBFloat16, torch::kHalf}) {
      check_case(random_case(1000 * GetParam() + 500 + i, dtype));
    }
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(Seeds, BlockSparseAttentionRandom, ::testing::Range(0u, 7u));

TEST(BlockSparseAttention, LongSequences) {
  for (const auto dtype : {torch::kDouble, torch::kFloat}) {
    for (const std::int64_t n : {1, 300, 777}) {
      AttentionCase c{torch::randn({1, 2, n, 16}, dtype), torch::randn({1, 1, 700, 16}, dtype),
                      torch::randn({1, 1, 700, 16}, dtype)};
      check_case(c);
      c.options = {.causal = true, .window = 200, .prefix = 70};
      check_case(c);
      c.options = {.block_size = 64, .causal = true};
      c.masks.layout = torch::rand({2, (n + 63) / 64, 11}) < 0.3;
      check_case(c);
    }
  }
}

TEST(BlockSparseAttention, TheCompositeEqualsTheTextbook) {
  for (unsigned seed = 5000; seed < 5030; ++seed) {
    const AttentionCase c = random_case(seed, torch::kDouble);
    SCOPED_TRACE(describe(c));
    const Tensor upstream = random_upstream(c);
    const AttentionResult expected = textbook_run(c, upstream);
    Tensors leaves;
    for (const Tensor& x : {c.query, c.key, c.value}) {
      leaves.push_back(x.detach().requires_grad_(true));
    }
    const Tensor output =
        ops::block_sparse_attention_composite(leaves[0], leaves[1], leaves[2], c.masks, c.options);
    const auto grads = torch::autograd::grad({output}, leaves, {upstream});
    expect_close("output", output.detach(), expected.output, kFloat64.weights);
    expect_close("grad of query", grads[0], expected.query, kFloat64.gradients);
    expect_close("grad of key", grads[1], expected.key, kFloat64.gradients);
    expect_close("grad of value", grads[2], expected.value, kFloat64.gradients);
  }
}

/// torch's attention with the allowed pairs as its mask. It has no answer for a query without keys,
/// so such a query sees all of them there, and its gradient is taken out.
AttentionResult torch_run(const AttentionCase& c, const Tensor& upstream) {
  const Tensor allowed = textbook_allowed(c);
  const Tensor empty = ~allowed.any(-1, /*keepdim=*/true);
  Tensors leaves;
  for (const Tensor& x : {c.query, c.key, c.value}) {
    leaves.push_back(x.detach().clone().requires_grad_(true));
  }
  const std::int64_t group = c.query.size(1) / c.key.size(1);
  const Tensor output =
      at::scaled_dot_product_attention(leaves[0], leaves[1].repeat_interleave(group, 1),
                                       leaves[2].repeat_interleave(group, 1), allowed | empty,
                                       /*dropout_p=*/0.0, /*is_causal=*/false, c.options.scale)
          .masked_fill(empty, 0);
  const auto grads = torch::autograd::grad({output}, leaves, {upstream});
  return {output.detach(), {}, grads[0], grads[1], grads[2]};
}

TEST(BlockSparseAttention, EqualsTorchsAttentionWithAnExplicitMask) {
  for (unsigned seed = 6000; seed < 6060; ++seed) {
    const AttentionCase c = random_case(seed, torch::kFloat);
    SCOPED_TRACE(describe(c));
    const Tensor upstream = random_upstream(c);
    const AttentionResult got = run(c, upstream), expected = torch_run(c, upstream);
    expect_close("output", got.output, expected.output, kFloat32.weights);
    expect_close("grad of query", got.query, expected.query, kFloat32.gradients);
    expect_close("grad of key", got.key, expected.key, kFloat32.gradients);
    expect_close("grad of value", got.value, expected.value, kFloat32.gradients);
  }
}

TEST(BlockSparseAttention, LargeLogitsDoNotOverflow) {
  torch::manual_seed(1);
  for (const auto dtype : {torch::kDouble, torch::kFloat}) {
    AttentionCase c{torch::randn({1, 2, 40, 8}, dtype) * 30,
                    torch::randn({1, 2, 40, 8}, dtype) * 30, torch::randn({1, 2, 40, 8}, dtype)};
    c.options = {.block_size = 16, .causal = true};
    const Tensor output = block_sparse_attention(c.query, c.key, c.value, c.masks, c.options);
    EXPECT_TRUE(torch::isfinite(output).all().item<bool>());
    // logits of 1000 carry 1000 roundings of one
    expect_close("output", output, textbook_run(c, random_upstream(c)).output,
                 1e3 * tolerance_of(dtype).weights);
  }
}

TEST(BlockSparseAttention, NoGradientFlowsThroughTheLogSumExp) {
  const Tensor x = torch::randn({1, 1, 6, 4}, kDouble).set_requires_grad(true);
  const auto [output, lse] = ops::block_sparse_attention_with_lse(x, x, x);
  EXPECT_TRUE(output.requires_grad());
  EXPECT_FALSE(lse.requires_grad());
}

// ---- finite differences

AttentionCase small_case(const ops::BlockSparseAttentionOptions& options, bool layout, bool mask) {
  torch::manual_seed(3);
  AttentionCase c{torch::randn({1, 2, 5, 3}, kDouble), torch::randn({1, 1, 6, 3}, kDouble),
                  torch::randn({1, 1, 6, 2}, kDouble)};
  c.options = options;
  if (layout) {
    c.masks.layout = torch::tensor({1, 0, 1, 1, 0, 1, 0, 0, 0}).to(torch::kBool).view({3, 3});
    c.masks.key_mask = torch::tensor({1, 1, 1, 0, 1, 1}).to(torch::kBool).view({1, 6});
  }
  if (mask) c.masks.mask = torch::rand({2, 5, 6}) < 0.7;
  return c;
}

void check_derivatives(const AttentionCase& c) {
  SCOPED_TRACE(describe(c));
  const auto function = [&](const Tensors& in) {
    return block_sparse_attention(in[0], in[1], in[2], c.masks, c.options);
  };
  expect_gradients(function, {c.query, c.key, c.value});
  const auto gradient = [&](const Tensors& in) {
    const auto grads =
        torch::autograd::grad({function(in).square().sum()}, in, {}, std::nullopt, true);
    return torch::cat({grads[0].flatten(), grads[1].flatten(), grads[2].flatten()});
  };
  expect_gradients(gradient, {c.query, c.key, c.value});
}

TEST(BlockSparseAttentionGradcheck, FirstAndSecondDerivatives) {
  check_derivatives(small_case({}, false, false));
  check_derivatives(small_case({.causal = true}, false, true));
  check_derivatives(small_case({.block_size = 2, .scale = 1.5}, true, false));
  check_derivatives(small_case(
      {.block_size = 2, .causal = true, .window = 3, .stride = 2, .prefix = 1}, true, true));
  check_derivatives(small_case({.block_size = 2, .stride = 2, .local = 2}, true, false));
}

TEST(BlockSparseAttentionGradcheck, OneTensorAsQueryKeyAndValue) {
  torch::manual_seed(4);
  const Tensors input = {torch::randn({1, 1, 5, 3}, kDouble)};
  const auto function = [](const Tensors& in) {
    return block_sparse_attention(in[0], in[0], in[0], {}, {.causal = true});
  };
  expect_gradients(function, input);
  expect_gradients(
      [&](const Tensors& in) {
        return torch::autograd::grad({function(in).square().sum()}, in, {}, std::nullopt, true)[0];
      },
      input);
}

TEST(BlockSparseAttentionGradcheck, GradientReachesWhicheverInputWantsIt) {
  const AttentionCase c = small_case({.causal = true}, false, false);
  const Tensor upstream = random_upstream(c);
  const AttentionResult all = run(c, upstream);
  const Tensors expected = {all.query, all.key, all.value};
  for (std::size_t wanted = 0; wanted < 3; ++wanted) {
    for (const bool create_graph : {false, true}) {
      Tensors in = {c.query.clone(), c.key.clone(), c.value.clone()};
      in[wanted].requires_grad_(true);
      const Tensor output = block_sparse_attention(in[0], in[1], in[2], c.masks, c.options);
      const Tensor got =
          torch::autograd::grad({output}, {in[wanted]}, {upstream}, std::nullopt, create_graph)[0];
      expect_close("grad", got.detach(), expected[wanted], kFloat64.gradients);
    }
  }
}

}  // namespace
}  // namespace weir::tests
