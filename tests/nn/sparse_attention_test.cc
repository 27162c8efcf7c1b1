// SPDX-License-Identifier: Apache-2.0
// SparseAttention: its patterns position by position, the block-sparse path against the dense one,
// masks, messages.
#include "weir/nn/sparse_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "support/tolerance.h"

namespace weir::nn {
namespace {

using ::testing::HasSubstr;

/// Whether head `h` lets a query at i see a key at j, by the table of the header.
bool sees(const SparseAttentionOptions& o, std::int64_t h, std::int64_t i, std::int64_t j) {
  if (o.causal && j > i) return false;
  const std::int64_t ctx = o.local_attn_ctx.value_or(1);
  if (o.attn_mode == "local") return std::abs(i - j) < ctx;
  if (o.attn_mode == "strided") return (i - j) % ctx == 0;
  if (o.attn_mode == "all" || i / ctx == j / ctx) return true;
  const std::int64_t from_end = ctx / o.block_size - 1 - j / o.block_size % (ctx / o.block_size);
  return from_end / o.vertsize == h % o.num_verts;
}

const std::vector<SparseAttentionOptions> kPatterns = {
    {.heads = 2},
    {.heads = 2, .causal = false},
    {.heads = 4, .attn_mode = "local", .local_attn_ctx = 5},
    {.heads = 4, .attn_mode = "local", .local_attn_ctx = 7, .causal = false},
    {.heads = 2, .attn_mode = "strided", .local_attn_ctx = 6},
    {.heads = 2, .attn_mode = "strided", .local_attn_ctx = 3, .causal = false},
    {.block_size = 4, .heads = 2, .attn_mode = "fixed", .local_attn_ctx = 12},
    {.block_size = 4,
     .heads = 4,
     .attn_mode = "fixed",
     .local_attn_ctx = 16,
     .num_verts = 2,
     .vertsize = 2},
};

TEST(SparseAttention, SeesWhatThePatternSays) {
  torch::manual_seed(0);
  for (const auto& options : kPatterns) {
    for (const std::int64_t n : {1, 12, 37}) {
      SCOPED_TRACE(options.attn_mode + ", n " + std::to_string(n));
      const auto kDouble = torch::kDouble;
      const torch::Tensor q = torch::randn({2, n, 8}, kDouble),
                          k = torch::randn({2, n, 8}, kDouble),
                          v = torch::randn({2, n, 8}, kDouble);
      torch::Tensor allowed = torch::zeros({options.heads, n, n}, torch::kBool);
      for (std::int64_t h = 0; h < options.heads; ++h) {
        for (std::int64_t i = 0; i < n; ++i) {
          for (std::int64_t j = 0; j < n; ++j) allowed[h][i][j] = sees(options, h, i, j);
        }
      }
      const auto split = [&](const torch::Tensor& x) {
        return x.view({2, n, options.heads, -1}).transpose(1, 2);
      };
      const torch::Tensor expected =
          at::scaled_dot_product_attention(split(q), split(k), split(v), allowed)
              .transpose(1, 2)
              .flatten(2);
      const double tolerance = tests::kFloat64.weights;
      SparseAttention module(options);
      EXPECT_TRUE(module(q, k, v).allclose(expected, 0, tolerance));
      EXPECT_TRUE(attention_impl(q, k, v, options).allclose(expected, 0, tolerance));
    }
  }
}

TEST(SparseAttention, ALayoutNarrowsTheMode) {
  torch::manual_seed(0);
  const torch::Tensor x = torch::randn({1, 24, 8}, torch::kDouble);
  SparseAttention module({.block_size = 8, .heads = 2});
  const torch::Tensor own = torch::eye(3, torch::kBool);
  const torch::Tensor wide = own.repeat_interleave(8, 0).repeat_interleave(8, 1);
  const torch::Tensor by_blocks =
      module(x, x, x, SparseAttentionInputs{.mask = own, .key_mask = {}});
  const torch::Tensor by_positions =
      module(x, x, x, SparseAttentionInputs{.mask = wide, .key_mask = {}});
  EXPECT_TRUE(by_blocks.allclose(by_positions, 0, tests::kFloat64.weights));
  EXPECT_FALSE(by_blocks.allclose(module(x, x, x), 0, 1e-3));
}

TEST(SparseAttention, CloneAndPrint) {
  SparseAttention module({.heads = 2, .attn_mode = "local", .local_attn_ctx = 4});
  const auto copy = std::dynamic_pointer_cast<SparseAttentionImpl>(module->clone());
  const torch::Tensor x = torch::randn({1, 9, 4});
  EXPECT_TRUE(copy->forward(x, x, x).equal(module(x, x, x)));
  EXPECT_TRUE(module->parameters().empty());
  std::ostringstream text;
  text << module;
  EXPECT_EQ(text.str(),
            "weir::nn::SparseAttention(attn_mode=local, heads=2, block_size=32, local_attn_ctx=4)");
}

std::string message_of(const SparseAttentionOptions& options) {
  try {
    SparseAttention module(options);
  } catch (const c10::ValueError& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

TEST(SparseAttention, Messages) {
  EXPECT_THAT(message_of({.attn_mode = "dense"}), HasSubstr("but got \"dense\""));
  EXPECT_THAT(message_of({.attn_mode = "strided"}), HasSubstr("but got none"));
  EXPECT_THAT(message_of({.block_size = 129}), HasSubstr("to lie in [1, 128], but got 129"));
  EXPECT_THAT(message_of({.attn_mode = "fixed", .local_attn_ctx = 33}),
              HasSubstr("to be a multiple of `block_size`, 32, but got 33"));
  EXPECT_THAT(message_of({.attn_mode = "fixed", .local_attn_ctx = 64, .vertsize = 4}),
              HasSubstr("to divide the 2 blocks of a chunk, but got 4"));
}

}  // namespace
}  // namespace weir::nn
