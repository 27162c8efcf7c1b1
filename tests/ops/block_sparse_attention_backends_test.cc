// SPDX-License-Identifier: Apache-2.0
// Meta agrees with the CPU; empty inputs; the dispatcher's entries; threads do not change a bit.
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "support/block_sparse_attention_cases.h"
#include "support/same_results.h"

namespace weir::tests {
namespace {

using ops::block_sparse_attention;
using ops::BlockSparseAttentionMasks;
using ops::BlockSparseAttentionOptions;
using torch::Tensor;

std::vector<Tensor> everything(const AttentionResult& r) {
  return {r.output, r.lse, r.query, r.key, r.value};
}

TEST(BlockSparseAttentionMeta, ShapesDtypesAndStridesOfTheCpu) {
  const auto meta = [](const std::optional<Tensor>& x) {
    return x ? std::optional(x->to(torch::kMeta)) : std::nullopt;
  };
  for (unsigned seed = 7000; seed < 7040; ++seed) {
    for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
      const AttentionCase c = random_case(seed, dtype);
      SCOPED_TRACE(describe(c));
      const BlockSparseAttentionMasks masks = {.layout = meta(c.masks.layout),
                                               .key_mask = meta(c.masks.key_mask),
                                               .mask = meta(c.masks.mask),
                                               .cu_seqlens = meta(c.masks.cu_seqlens),
                                               .cu_seqlens_k = meta(c.masks.cu_seqlens_k),
                                               .document_ids = meta(c.masks.document_ids)};
      const AttentionCase shadow{*meta(c.query), *meta(c.key), *meta(c.value), masks, c.options};
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

class BlockSparseAttentionEmpty : public ::testing::TestWithParam<Empty> {};

TEST_P(BlockSparseAttentionEmpty, GivesEmptyOrZero) {
  const Empty& e = GetParam();
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kHalf}) {
    const std::int64_t kv_heads = e.heads / 2;
    AttentionCase c{torch::randn({e.batch, e.heads, e.n, 3}).to(dtype),
                    torch::randn({e.batch, kv_heads, e.m, 3}).to(dtype),
                    torch::randn({e.batch, kv_heads, e.m, e.value_dim}).to(dtype)};
    check_case(c);
    c.options = {.block_size = 4, .causal = true, .window = 2, .stride = 2, .prefix = 1};
    c.masks.layout = torch::ones({(e.n + 3) / 4, (e.m + 3) / 4}, torch::kBool);
    c.masks.key_mask = torch::ones({e.batch, e.m}, torch::kBool);
    c.masks.mask = torch::ones({e.n, e.m}, torch::kBool);
    check_case(c);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Dimensions, BlockSparseAttentionEmpty,
    ::testing::Values(Empty{"batch", 0, 4, 5, 6, 7}, Empty{"heads", 2, 0, 5, 6, 7},
                      Empty{"queries", 2, 4, 0, 6, 7}, Empty{"keys", 2, 4, 5, 0, 7},
                      Empty{"value_dim", 2, 4, 5, 6, 0}, Empty{"all", 0, 0, 0, 0, 0}),
    [](const auto& info) { return info.param.name; });

TEST(BlockSparseAttentionDispatcher, PublicEntriesHaveTheirSchemas) {
  using Optional = const std::optional<Tensor>&;
  using Plain =
      Tensor(const Tensor&, const Tensor&, const Tensor&, Optional, Optional, Optional, Optional,
             Optional, Optional, std::int64_t, bool, std::optional<std::int64_t>, std::int64_t,
             std::int64_t, std::int64_t, std::optional<double>);
  using WithLse = std::tuple<Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, Optional, Optional, Optional, Optional, Optional,
      Optional, std::int64_t, bool, std::optional<std::int64_t>, std::int64_t, std::int64_t,
      std::int64_t, std::optional<double>);
  auto& dispatcher = c10::Dispatcher::singleton();
  const auto plain =
      dispatcher.findSchemaOrThrow("weir::block_sparse_attention", "").typed<Plain>();
  const auto with_lse =
      dispatcher.findSchemaOrThrow("weir::block_sparse_attention_with_lse", "").typed<WithLse>();
  const Tensor x = torch::randn({1, 2, 9, 4});
  const Tensor layout = torch::eye(3).to(torch::kBool);
  const auto [output, lse] = ops::block_sparse_attention_with_lse(x, x, x, {.layout = layout},
                                                                  {.block_size = 4,
                                                                   .causal = true,
                                                                   .window = 3,
                                                                   .stride = 2,
                                                                   .prefix = 1,
                                                                   .local = 2,
                                                                   .scale = 0.7});
  EXPECT_TRUE(torch::equal(
      plain.call(x, x, x, layout, {}, {}, {}, {}, {}, 4, true, 3, 2, 1, 2, 0.7), output));
  const auto pair = with_lse.call(x, x, x, layout, {}, {}, {}, {}, {}, 4, true, 3, 2, 1, 2, 0.7);
  EXPECT_TRUE(torch::equal(std::get<0>(pair), output));
  EXPECT_TRUE(torch::equal(std::get<1>(pair), lse));
}

TEST(BlockSparseAttentionThreads, ResultsDoNotDependOnTheirNumber) {
  torch::manual_seed(14);
  for (const auto dtype : {torch::kFloat, torch::kDouble, torch::kBFloat16}) {
    AttentionCase c{torch::randn({2, 4, 150, 24}).to(dtype),
                    torch::randn({2, 2, 170, 24}).to(dtype),
                    torch::randn({2, 2, 170, 20}).to(dtype)};
    c.options = {.block_size = 16, .causal = true, .prefix = 5};
    c.masks = {.layout = torch::rand({10, 11}) < 0.6, .key_mask = torch::rand({2, 170}) < 0.9};
    const Tensor upstream = random_upstream(c);
    expect_same_with_any_threads([&] { return everything(run(c, upstream)); });
  }
}

TEST(BlockSparseAttentionModes, InferenceModeAndNoGrad) {
  const Tensor x = torch::randn({1, 2, 20, 8}).requires_grad_(true);
  const Tensor expected = block_sparse_attention(x, x, x);
  {
    torch::NoGradGuard no_grad;
    const Tensor got = block_sparse_attention(x, x, x);
    EXPECT_FALSE(got.requires_grad());
    EXPECT_TRUE(torch::equal(got, expected));
  }
  c10::InferenceMode inference;
  EXPECT_TRUE(torch::equal(block_sparse_attention(x, x, x), expected));
}

}  // namespace
}  // namespace weir::tests
