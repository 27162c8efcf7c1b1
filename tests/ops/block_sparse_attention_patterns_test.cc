// SPDX-License-Identifier: Apache-2.0
// Which pairs attend: the published patterns (Child et al. 2019) as options and as layouts against
// their closed forms on positions, and what is not allowed never reaching a result, NaN included.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>
#include <limits>

#include "support/block_sparse_attention_cases.h"

namespace weir::tests {
namespace {

using ops::block_sparse_attention;
using ops::BlockSparseAttentionMasks;
using ops::BlockSparseAttentionOptions;
using torch::Tensor;

constexpr std::int64_t kBlock = 4, kContext = 16, kLength = 64, kBlocks = kLength / kBlock;

Tensor table(std::int64_t heads, std::int64_t n,
             const std::function<bool(std::int64_t, std::int64_t, std::int64_t)>& keep) {
  Tensor result = torch::empty({heads, n, n}, torch::kBool);
  for (std::int64_t h = 0; h < heads; ++h) {
    for (std::int64_t i = 0; i < n; ++i) {
      for (std::int64_t j = 0; j < n; ++j) result[h][i][j] = keep(h, i, j);
    }
  }
  return result;
}

AttentionCase sequence() {
  torch::manual_seed(21);
  const auto operand = [] { return torch::randn({2, 4, kLength, 10}, torch::kDouble); };
  return {operand(), operand(), operand()};
}

/// The pattern against the closed form as a mask on positions, and against the textbook.
void expect_closed_form(const BlockSparseAttentionMasks& masks,
                        const BlockSparseAttentionOptions& options, const Tensor& positions) {
  AttentionCase c = sequence();
  const Tensor upstream = random_upstream(c);
  c.masks = {.mask = positions};
  const AttentionResult expected = run(c, upstream);
  c.masks = masks, c.options = options;
  EXPECT_TRUE(torch::equal(textbook_allowed(c), positions.expand({2, 4, kLength, kLength})));
  expect_results(run(c, upstream), expected, torch::kDouble);
  check_case(c);
}

TEST(BlockSparseAttentionPatterns, All) {
  const Tensor positions = table(1, kLength, [](auto, auto i, auto j) { return j <= i; });
  expect_closed_form({}, {.causal = true}, positions);
  const Tensor layout = table(1, kBlocks, [](auto, auto i, auto j) { return j <= i; })[0];
  expect_closed_form({.layout = layout}, {.block_size = kBlock, .causal = true}, positions);
}

TEST(BlockSparseAttentionPatterns, Local) {
  const Tensor positions =
      table(1, kLength, [](auto, auto i, auto j) { return j <= i && i - j < kContext; });
  expect_closed_form({}, {.causal = true, .window = kContext}, positions);
  const Tensor layout = table(
      1, kBlocks, [](auto, auto i, auto j) { return j <= i && i - j <= kContext / kBlock; })[0];
  expect_closed_form({.layout = layout}, {.block_size = kBlock, .causal = true, .window = kContext},
                     positions);
}

TEST(BlockSparseAttentionPatterns, Strided) {
  const Tensor positions =
      table(1, kLength, [](auto, auto i, auto j) { return j <= i && (i - j) % kContext == 0; });
  expect_closed_form({}, {.causal = true, .stride = kContext}, positions);
}

TEST(BlockSparseAttentionPatterns, StridedAsBlocksOfTheTransposedSequence) {
  constexpr std::int64_t kRun = kLength / kContext, kChunk = kRun / kBlock;  // 4 positions, 1 block
  const Tensor layout =
      table(1, kBlocks, [](auto, auto i, auto j) { return i - i % kChunk <= j && j <= i; })[0];
  const auto transposed = [](const Tensor& x) {
    return x.unflatten(2, {kRun, kContext}).transpose(2, 3).flatten(2, 3);
  };
  const AttentionCase c = sequence();
  const Tensor blocks =
      block_sparse_attention(transposed(c.query), transposed(c.key), transposed(c.value),
                             {.layout = layout}, {.block_size = kBlock, .causal = true});
  const Tensor got = blocks.unflatten(2, {kContext, kRun}).transpose(2, 3).flatten(2, 3);
  const Tensor expected =
      block_sparse_attention(c.query, c.key, c.value, {}, {.causal = true, .stride = kContext});
  expect_close("output", got, expected, kFloat64.weights);
}

TEST(BlockSparseAttentionPatterns, FixedWithVertices) {
  constexpr std::int64_t kSlots = kContext / kBlock;  // blocks per context
  for (const std::int64_t verts : {1, 2, 4}) {
    for (const std::int64_t size : {1, 2}) {
      if (verts * size > kSlots) continue;
      const auto vertex = [=](std::int64_t head, std::int64_t block) {
        const std::int64_t from_end = kSlots - 1 - block % kSlots - (head % verts) * size;
        return from_end >= 0 && from_end < size;
      };
      const Tensor positions = table(4, kLength, [&](auto h, auto i, auto j) {
        return j <= i && (i / kContext == j / kContext || vertex(h, j / kBlock));
      });
      const Tensor layout = table(4, kBlocks, [&](auto h, auto i, auto j) {
        return j <= i && (i / kSlots == j / kSlots || vertex(h, j));
      });
      expect_closed_form({.layout = layout}, {.block_size = kBlock, .causal = true}, positions);
    }
  }
}

TEST(BlockSparseAttentionPatterns, PrefixLanguageModel) {
  const Tensor positions = table(1, kLength, [](auto, auto i, auto j) { return j <= i || j < 10; });
  expect_closed_form({}, {.causal = true, .prefix = 10}, positions);
}

TEST(BlockSparseAttentionPatterns, TheLastQueryStandsAtTheLastKey) {
  const AttentionCase c = sequence();
  const BlockSparseAttentionOptions options = {.causal = true, .window = 20, .stride = 3};
  const Tensor all = block_sparse_attention(c.query, c.key, c.value, {}, options);
  const Tensor last =
      block_sparse_attention(c.query.slice(2, kLength - 7), c.key, c.value, {}, options);
  expect_close("output", last, all.slice(2, kLength - 7), kFloat64.weights);
}

TEST(BlockSparseAttentionPatterns, OptionsBeyondTheSequence) {
  constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();
  for (const bool layout : {false, true}) {
    for (const bool causal : {false, true}) {
      AttentionCase c = sequence();
      c.query = c.query.slice(2, 0, 20);
      if (layout) c.masks.layout = torch::ones({1, 2}, torch::kBool);
      c.options = {.causal = causal, .window = kHuge};
      check_case(c);
      c.options = {.causal = causal, .stride = kHuge};
      check_case(c);
      c.options = {.causal = causal, .window = 1, .prefix = kHuge};
      check_case(c);
    }
  }
}

TEST(BlockSparseAttentionPatterns, KeyHeadsAreSharedByNeighbouringQueryHeads) {
  AttentionCase c = sequence();
  c.key = c.key.slice(1, 0, 2), c.value = c.value.slice(1, 0, 2);
  const Tensor got = block_sparse_attention(c.query, c.key, c.value, {}, {.causal = true});
  const Tensor expected =
      block_sparse_attention(c.query, c.key.repeat_interleave(2, 1),
                             c.value.repeat_interleave(2, 1), {}, {.causal = true});
  expect_close("output", got, expected, kFloat64.weights);
}

TEST(BlockSparseAttentionPatterns, NothingAllowedGivesZero) {
  AttentionCase c = sequence();
  c.masks.key_mask = torch::zeros({2, kLength}, torch::kBool);
  const AttentionResult got = run(c, random_upstream(c));
  EXPECT_TRUE(torch::isneginf(got.lse).all().item<bool>());
  for (const Tensor& x : {got.output, got.query, got.key, got.value}) {
    EXPECT_TRUE((x == 0).all().item<bool>());
  }
}

// ---- what is not finite

struct Hidden {
  const char* name;
  std::int64_t n;
  BlockSparseAttentionOptions options;
  std::vector<std::int64_t> keys;                       // of 40, that no query may see
  bool key_mask = false, layout = false, mask = false;  // what hides them, if not the options
};

void PrintTo(const Hidden& hidden, std::ostream* out) { *out << hidden.name; }

class BlockSparseAttentionHidden : public ::testing::TestWithParam<Hidden> {};

AttentionCase hidden_case(const Hidden& hidden, torch::Dtype dtype) {
  torch::manual_seed(22);
  AttentionCase c{torch::randn({2, 4, hidden.n, 10}).to(dtype),
                  torch::randn({2, 2, 40, 10}).to(dtype), torch::randn({2, 2, 40, 9}).to(dtype)};
  c.options = hidden.options;
  const Tensor kept = torch::ones({40}, torch::kBool);
  for (const std::int64_t key : hidden.keys) kept[key] = false;
  if (hidden.key_mask) c.masks.key_mask = kept.expand({2, 40});
  if (hidden.mask) c.masks.mask = kept.clone();
  if (hidden.layout) {
    const std::int64_t b = c.options.block_size;
    c.masks.layout = kept.view({40 / b, b}).all(-1).expand({(hidden.n + b - 1) / b, 40 / b});
  }
  return c;
}

void spoil(AttentionCase& c, const std::vector<std::int64_t>& keys, double with) {
  for (const std::int64_t key : keys) {
    c.key.select(2, key).fill_(with);
    c.value.select(2, key).fill_(with);
  }
}

TEST_P(BlockSparseAttentionHidden, NothingOfItReachesAnyResult) {
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
    for (const double with :
         {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
      AttentionCase c = hidden_case(GetParam(), dtype);
      const Tensor upstream = random_upstream(c);
      const AttentionResult clean = run(c, upstream);
      spoil(c, GetParam().keys, with);
      const AttentionResult got = run(c, upstream);
      EXPECT_TRUE(torch::equal(got.output, clean.output));
      EXPECT_TRUE(torch::equal(got.lse, clean.lse));
      EXPECT_TRUE(torch::equal(got.query, clean.query));
      EXPECT_TRUE(torch::equal(got.key, clean.key));
      EXPECT_TRUE(torch::equal(got.value, clean.value));
      check_case(c);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    By, BlockSparseAttentionHidden,
    ::testing::Values(
        Hidden{"key_mask", 40, {}, {0, 13, 39}, true},
        Hidden{"key_mask_causal", 33, {.causal = true}, {0, 13, 39}, true},
        Hidden{"mask", 33, {}, {5, 39}, false, false, true},
        Hidden{"layout", 40, {.block_size = 8}, {8, 9, 10, 11, 12, 13, 14, 15}, false, true},
        Hidden{"window", 9, {.causal = true, .window = 4}, {0, 7, 27}},
        Hidden{"window_prefix", 9, {.causal = true, .window = 4, .prefix = 3}, {3, 27}},
        Hidden{"stride", 1, {.stride = 3}, {1, 2, 37, 38}}),
    [](const auto& info) { return info.param.name; });

/// Keys that some queries may see and others not: only those that do are touched.
void check_partly_hidden(AttentionCase c, const std::vector<std::int64_t>& keys) {
  spoil(c, keys, std::numeric_limits<double>::quiet_NaN());
  const Tensor reached = ~torch::isfinite(run(c, random_upstream(c)).output);
  EXPECT_TRUE(reached.any().item<bool>());
  EXPECT_FALSE(reached.all().item<bool>());
  check_case(c);
}

TEST(BlockSparseAttentionHidden, OnlyQueriesThatAttendItAreTouched) {
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16}) {
    check_partly_hidden(hidden_case({"", 40, {.causal = true}, {}}, dtype), {21});
    check_partly_hidden(hidden_case({"", 40, {.causal = true}, {}}, dtype), {39});
    check_partly_hidden(hidden_case({"", 40, {.window = 3}, {}}, dtype), {17});
    check_partly_hidden(hidden_case({"", 37, {.causal = true, .stride = 4}, {}}, dtype), {30, 31});
    AttentionCase c = hidden_case({"", 40, {.block_size = 8}, {}}, dtype);
    c.masks.layout = torch::eye(5).to(torch::kBool);
    check_partly_hidden(c, {11});
    c.masks = {.mask = torch::rand({40, 40}) < 0.5};
    check_partly_hidden(c, {11});
  }
}

TEST(BlockSparseAttentionHidden, AQueryWithoutKeysIsNotRead) {
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16}) {
    AttentionCase c = hidden_case({"", 40, {}, {}}, dtype);
    Tensor rows = torch::ones({40, 1}, torch::kBool);
    rows[6] = false, rows[39] = false;
    c.masks.mask = rows;
    c.query.select(2, 6).fill_(std::numeric_limits<double>::quiet_NaN());
    c.query.select(2, 39).fill_(std::numeric_limits<double>::infinity());
    check_case(c);
    EXPECT_TRUE(torch::isfinite(run(c, random_upstream(c)).query).all().item<bool>());
  }
}

}  // namespace
}  // namespace weir::tests
