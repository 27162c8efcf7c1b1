// SPDX-License-Identifier: Apache-2.0
// What the attention computes: equal to the formula written out, with right gradients, causal to
// the bit, rows of a batch independent, padding never read.
#include "weir/nn/coordinate_descent_attention.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <limits>
#include <vector>

#include "nn/directional_gradients.h"
#include "nn/module_contract.h"
#include "nn/plain_attention.h"
#include "support/tolerance.h"

namespace weir::nn {
namespace {

using Case = Named<CoordinateDescentAttentionOptions>;

const Case kCases[] = {
    {"softmax", {.dim = 12, .dim_head = 5, .heads = 3}},
    {"softmax_nulls", {.dim = 12, .dim_head = 5, .heads = 3, .attn_null_kv = 2}},
    {"iterative",
     {.dim = 12,
      .dim_head = 5,
      .heads = 3,
      .use_coor_descent = true,
      .coor_descent_sparsity_k = 2}},
    {"iterative_one_eps",
     {.dim = 12,
      .dim_head = 5,
      .heads = 1,
      .use_coor_descent = true,
      .coor_descent_iters = 3,
      .coor_descent_sparsity_k = 1.5,
      .coor_descent_eps = 0.5,
      .coor_descent_eps_init = std::nullopt,
      .attn_null_kv = 1}},
    {"exact",
     {.dim = 12,
      .dim_head = 5,
      .heads = 3,
      .use_coor_descent = true,
      .coor_descent_sparsity_k = 2.5,
      .coor_descent_solver = "exact",
      .attn_null_kv = 2}},
    {"learned",
     {.dim = 12,
      .dim_head = 5,
      .heads = 3,
      .use_coor_descent = true,
      .coor_descent_sparsity_k = 6,
      .attn_null_kv = 3,
      .learned_sparsity_k = true}},
    {"learned_exact",
     {.dim = 12,
      .dim_head = 5,
      .heads = 3,
      .use_coor_descent = true,
      .coor_descent_sparsity_k = 4,
      .coor_descent_solver = "exact",
      .learned_sparsity_k = true}},
    {"normalized",
     {.dim = 12,
      .dim_head = 5,
      .heads = 3,
      .coor_descent_sparsity_k = 2,
      .coor_descent_normalize = true,
      .attn_kind = "coordinate_descent"}},
    {"top_k",
     {.dim = 12,
      .dim_head = 5,
      .heads = 3,
      .attn_null_kv = 1,
      .attn_kind = "top_k",
      .attn_top_k = 3}},
    {"low_rank",
     {.dim = 12,
      .dim_head = 5,
      .heads = 4,
      .attn_null_kv = 1,
      .attn_kind = "low_rank",
      .attn_top_k = 3,
      .attn_route_dim_head = 2,
      .attn_route_heads = 2}},
    {"low_rank_coordinate_descent",
     {.dim = 12,
      .dim_head = 5,
      .heads = 3,
      .attn_kind = "low_rank",
      .attn_top_k = 4,
      .attn_route_dim_head = 2,
      .attn_route_score = "coordinate_descent"}},
};

class AttentionMode : public ::testing::TestWithParam<Case> {
 protected:
  AttentionMode() {
    torch::manual_seed(1);
    attention_ = CoordinateDescentAttention(GetParam().options);
    randomise(*attention_);
    if (GetParam().options.learned_sparsity_k) {
      torch::NoGradGuard no_grad;
      attention_->to_learned_k->bias.add_(10);  // k in the middle of its range
    }
  }
  CoordinateDescentAttention attention_{nullptr};
};

TEST_P(AttentionMode, IsTheFormula) {
  attention_->to(at::kDouble);
  for (const std::int64_t n : {1, 2, 7}) {
    const at::Tensor x = at::randn({2, n, 12}, at::kDouble);
    EXPECT_LE(distance(attention_(x), plain_attention(*attention_, x)), tests::kFloat64.weights);
  }
}

TEST_P(AttentionMode, GradientsAreRight) {
  attention_->to(at::kDouble);
  const at::Tensor x = at::randn({2, 6, 12}, at::kDouble).requires_grad_();
  const at::Tensor probe = at::randn({2, 6, 12}, at::kDouble);
  const auto weights = attention_->named_parameters();
  // Straight-through gradients of routing heads are not those of the output.
  std::vector<at::Tensor> inputs = {weights["to_qkv.weight"], weights["to_out.weight"]};
  if (GetParam().options.kind() != "low_rank") {
    inputs = attention_->parameters();
    inputs.push_back(x);
  }
  std::erase_if(inputs, [](const at::Tensor& input) { return input.numel() == 0; });
  expect_directional_gradients([&] { return (attention_(x) * probe).sum(); }, inputs);
}

TEST_P(AttentionMode, GradientsReachEveryParameter) {
  attention_(at::randn({2, 9, 12})).square().sum().backward();
  expect_gradients_everywhere(*attention_);
}

TEST_P(AttentionMode, IsCausalToTheBit) {
  torch::NoGradGuard no_grad;
  const at::Tensor x = at::randn({1, 11, 12});
  const at::Tensor before = attention_(x);
  for (std::int64_t j = 0; j < 11; ++j) {
    at::Tensor changed = x.clone();
    changed[0][j] += at::randn({12});
    const at::Tensor after = attention_(changed);
    EXPECT_TRUE(after.narrow(1, 0, j).equal(before.narrow(1, 0, j))) << "position " << j;
    EXPECT_FALSE(after.narrow(1, j, 1).equal(before.narrow(1, j, 1))) << "position " << j;
  }
}

TEST_P(AttentionMode, RowsOfABatchAreIndependent) {
  attention_->to(at::kDouble);
  const at::Tensor x = at::randn({3, 7, 12}, at::kDouble);
  EXPECT_LE(distance(attention_(x)[1], attention_(x.narrow(0, 1, 1))[0]), tests::kFloat64.weights);
}

TEST_P(AttentionMode, PaddingIsNeverRead) {
  attention_->to(at::kDouble);
  at::Tensor x = at::randn({2, 8, 12}, at::kDouble);
  at::Tensor mask = at::ones({2, 8}, at::kBool);
  mask[0].narrow(0, 5, 3).fill_(false);  // behind
  mask[1].narrow(0, 2, 2).fill_(false);  // in the middle
  x.masked_fill_(mask.logical_not().unsqueeze(-1), std::numeric_limits<double>::quiet_NaN());
  x.requires_grad_();
  const at::Tensor out = attention_->forward(x, {.mask = mask});
  const at::Tensor suffix = attention_(x.detach().narrow(1, 0, 5))[0];
  EXPECT_LE(distance(out[0].narrow(0, 0, 5), suffix), tests::kFloat64.weights);
  const at::Tensor kept = at::cat({x.detach()[1].narrow(0, 0, 2), x.detach()[1].narrow(0, 4, 4)});
  EXPECT_LE(distance(out[1].index({mask[1]}), attention_(kept.unsqueeze(0))[0]),
            tests::kFloat64.weights);

  out.index({mask}).square().sum().backward();
  EXPECT_TRUE(x.grad().isfinite().all().item<bool>());
  EXPECT_EQ(x.grad().index({mask.logical_not()}).abs().max().item<double>(), 0);
  expect_gradients_everywhere(*attention_);
}

TEST_P(AttentionMode, EmptyBatchesAndSequences) {
  EXPECT_EQ(attention_(at::randn({0, 4, 12})).sizes(), at::IntArrayRef({0, 4, 12}));
  EXPECT_EQ(attention_(at::randn({2, 0, 12})).sizes(), at::IntArrayRef({2, 0, 12}));
}

INSTANTIATE_TEST_SUITE_P(Modes, AttentionMode, ::testing::ValuesIn(kCases));

TEST(CoordinateDescentAttention, RowsWithoutAVisibleKeyAreZero) {
  at::Tensor mask = at::ones({2, 6}, at::kBool);
  mask[0].narrow(0, 0, 2).fill_(false);
  mask[1].fill_(false);
  for (const auto& [name, options] : kCases) {
    if (options.attn_null_kv > 0) continue;  // null keys are always visible
    SCOPED_TRACE(name);
    CoordinateDescentAttention attention(options);
    at::Tensor x = at::randn({2, 6, 12}).requires_grad_();
    const at::Tensor out = attention->forward(x, {.mask = mask});
    EXPECT_EQ(out[0].narrow(0, 0, 2).abs().max().item<double>(), 0);
    EXPECT_EQ(out[1].abs().max().item<double>(), 0);
    out.square().sum().backward();
    EXPECT_TRUE(x.grad().isfinite().all().item<bool>());
    EXPECT_EQ(x.grad()[1].abs().max().item<double>(), 0);
  }
}

TEST(CoordinateDescentAttention, LearnedKStartsAtOne) {
  CoordinateDescentAttention fixed({.dim = 8, .use_coor_descent = true});
  CoordinateDescentAttention learned({.dim = 8,
                                      .use_coor_descent = true,
                                      .coor_descent_sparsity_k = 1,
                                      .learned_sparsity_k = true});
  torch::NoGradGuard no_grad;
  learned->to_qkv->weight.copy_(fixed->to_qkv->weight);
  learned->to_out->weight.copy_(fixed->to_out->weight);
  const at::Tensor x = at::randn({1, 5, 8});
  EXPECT_LE(distance(learned(x), fixed(x)), tests::kFloat32.weights);
  EXPECT_EQ(learned->to_learned_k->bias.min().item<double>(), -10);
}

}  // namespace
}  // namespace weir::nn
