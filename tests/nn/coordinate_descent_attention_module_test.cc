// SPDX-License-Identifier: Apache-2.0
// The attention as a torch module: names of the published state dict, copies, dtypes, printing, and
// the words of every refusal.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "nn/module_contract.h"
#include "weir/nn/coordinate_descent_attention.h"

namespace weir::nn {
namespace {

using ::testing::ElementsAre;
using Options = CoordinateDescentAttentionOptions;

TEST(CoordinateDescentAttentionModule, HasThePublishedNames) {
  CoordinateDescentAttention plain({.dim = 8, .dim_head = 4, .heads = 2});
  EXPECT_THAT(parameter_names(*plain),
              ElementsAre("null_kv", "norm.weight", "norm.bias", "to_qkv.weight", "to_out.weight"));
  EXPECT_EQ(plain->null_kv.sizes(), at::IntArrayRef({2, 2, 0, 4}));
  CoordinateDescentAttention learned(
      {.dim = 8, .use_coor_descent = true, .attn_null_kv = 3, .learned_sparsity_k = true});
  EXPECT_THAT(parameter_names(*learned),
              ElementsAre("null_kv", "norm.weight", "norm.bias", "to_learned_k.weight",
                          "to_learned_k.bias", "to_qkv.weight", "to_out.weight"));
  EXPECT_EQ(learned->null_kv.sizes(), at::IntArrayRef({2, 8, 3, 64}));
  CoordinateDescentAttention low_rank(
      {.dim = 8, .attn_null_kv = 3, .attn_kind = "low_rank", .attn_route_heads = 2});
  EXPECT_THAT(parameter_names(*low_rank),
              ElementsAre("null_kv", "null_route_k", "norm.weight", "norm.bias", "to_qkv.weight",
                          "to_out.weight", "to_route_qk.weight"));
  EXPECT_EQ(low_rank->null_route_k.sizes(), at::IntArrayRef({2, 3, 16}));
  EXPECT_EQ(low_rank->to_route_qk->weight.sizes(), at::IntArrayRef({2 * 2 * 16, 8}));
}

TEST(CoordinateDescentAttentionModule, CopiesAgree) {
  for (const bool learned : {false, true}) {
    const Options options = {.dim = 8,
                             .dim_head = 4,
                             .heads = 2,
                             .use_coor_descent = learned,
                             .attn_null_kv = 1,
                             .learned_sparsity_k = learned};
    expect_copies_agree(CoordinateDescentAttention(options), CoordinateDescentAttention(options),
                        at::randn({2, 5, 8}));
  }
}

TEST(CoordinateDescentAttentionModule, RunsInEveryFloatingType) {
  for (const bool use_coor_descent : {false, true}) {
    CoordinateDescentAttention attention({.dim = 8,
                                          .dim_head = 4,
                                          .heads = 2,
                                          .use_coor_descent = use_coor_descent,
                                          .attn_null_kv = 2,
                                          .learned_sparsity_k = use_coor_descent});
    const at::Tensor x = at::randn({2, 5, 8});
    const at::Tensor expected = attention(x);
    for (const auto dtype : {at::kDouble, at::kBFloat16, at::kHalf}) {
      attention->to(dtype);
      const at::Tensor out = attention(x.to(dtype));
      EXPECT_EQ(out.scalar_type(), dtype);
      EXPECT_LE(distance(out, expected), 0.1);  // no more than: the same computation
    }
  }
}

TEST(CoordinateDescentAttentionModule, PrintsItsOptions) {
  EXPECT_THAT(
      printed(CoordinateDescentAttention(Options{.dim = 8, .dim_head = 4})),
      ::testing::StartsWith(
          "weir::nn::CoordinateDescentAttention(dim=8, dim_head=4, heads=8, attn_kind=softmax)("));
  EXPECT_THAT(printed(CoordinateDescentAttention(Options{.dim = 8, .attn_kind = "top_k"})),
              ::testing::HasSubstr("attn_kind=top_k, attn_top_k=32)"));
  EXPECT_THAT(printed(CoordinateDescentAttention(Options{.dim = 8, .use_coor_descent = true})),
              ::testing::HasSubstr("coor_descent_sparsity_k=1, coor_descent_solver=iterative"));
}

TEST(CoordinateDescentAttentionModule, StandsInASequential) {
  torch::nn::Sequential model(CoordinateDescentAttention(Options{.dim = 8}),
                              torch::nn::Linear(8, 3));
  EXPECT_EQ(model->forward(at::randn({2, 5, 8})).sizes(), at::IntArrayRef({2, 5, 3}));
}

struct Refusal {
  Options options;
  const char* words;
};

TEST(CoordinateDescentAttentionModule, RefusesOptionsThatDoNotFit) {
  const Refusal refusals[] = {
      {{.dim = 0}, "expected `dim` to be at least 1, but got 0."},
      {{.dim = std::int64_t{1} << 62},
       "expected `dim` to be at most 1073741824, but got 4611686018427387904."},
      {{.dim = 8, .dim_head = 0}, "expected `dim_head` to be at least 1, but got 0."},
      {{.dim = 8, .heads = 0}, "expected `heads` to be at least 1, but got 0."},
      {{.dim = 8, .coor_descent_iters = 0},
       "expected `coor_descent_iters` to be at least 1, but got 0."},
      {{.dim = 8, .coor_descent_sparsity_k = 0},
       "expected `coor_descent_sparsity_k` to be finite and positive, but got 0."},
      {{.dim = 8, .coor_descent_eps = 0},
       "expected `coor_descent_eps` to be finite and at least 1e-12, but got 0."},
      {{.dim = 8, .coor_descent_eps_init = -1},
       "expected `coor_descent_eps_init` to be finite and positive, but got -1."},
      {{.dim = 8, .coor_descent_eps_decay = 1.5},
       "expected `coor_descent_eps_decay` to lie in (0, 1], but got 1.5."},
      {{.dim = 8, .coor_descent_solver = "newton"},
       "expected `coor_descent_solver` to be \"iterative\" or \"exact\", but got \"newton\"."},
      {{.dim = 8, .attn_null_kv = -1}, "expected `attn_null_kv` to be at least 0, but got -1."},
      {{.dim = 8, .learned_sparsity_k = true},
       "expected `learned_sparsity_k` only with coordinate descent: softmax has no k to learn."},
      {{.dim = 8, .use_coor_descent = true, .attn_kind = "top_k"},
       "expected `attn_kind` \"coordinate_descent\" with `use_coor_descent`, but got \"top_k\"."},
      {{.dim = 8, .attn_kind = "hard"},
       "expected `attn_kind` to be \"softmax\", \"coordinate_descent\", \"top_k\" or \"low_rank\", "
       "but got \"hard\"."},
      {{.dim = 8, .attn_top_k = 0}, "expected `attn_top_k` to be at least 1, but got 0."},
      {{.dim = 8, .attn_route_dim_head = 0},
       "expected `attn_route_dim_head` to be at least 1, but got 0."},
      {{.dim = 8, .attn_route_heads = 3},
       "expected `attn_route_heads` to divide `heads`, 8, but got 3."},
      {{.dim = 8, .attn_route_score = "hard"},
       "expected `attn_route_score` to be \"softmax\" or \"coordinate_descent\", but got "
       "\"hard\"."},
  };
  for (const auto& [options, words] : refusals) {
    expect_refusal([&] { CoordinateDescentAttention attention(options); },
                   std::string("weir::CoordinateDescentAttention: ") + words);
  }
}

TEST(CoordinateDescentAttentionModule, RefusesInputsThatDoNotFit) {
  CoordinateDescentAttention attention({.dim = 8});
  const auto refuses = [&](const at::Tensor& x, const at::Tensor& mask, const std::string& words) {
    expect_refusal([&] { attention->forward(x, {.mask = mask}); },
                   "weir::CoordinateDescentAttention: " + words);
  };
  const at::Tensor x = at::randn({2, 5, 8}), mask = at::ones({2, 5}, at::kBool);
  refuses(at::randn({2, 5, 7}), mask,
          "expected `x` to have shape [batch, n, 8], but got [2, 5, 7].");
  refuses(at::randn({5, 8}), mask, "expected `x` to have shape [batch, n, 8], but got [5, 8].");
  refuses(x, at::ones({2, 4}, at::kBool),
          "expected `mask` to have shape [2, 5] like the tokens of `x`, but got [2, 4].");
  refuses(x, at::ones({2, 5}), "expected `mask` to be bool (true = keep), but got Float.");
}

}  // namespace
}  // namespace weir::nn
