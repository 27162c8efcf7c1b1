// SPDX-License-Identifier: Apache-2.0
// SparseAttention: its patterns position by position, the block-sparse path against the dense one,
// masks, messages.
#include "weir/nn/sparse_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <sstream>

#include "support/tolerance.h"

namespace weir::nn {
namespace {

using ::testing::HasSubstr;

std::vector<std::string> split(const std::string& text, char separator) {
  std::vector<std::string> parts;
  std::istringstream stream(text);
  for (std::string part; std::getline(stream, part, separator);) parts.push_back(part);
  return parts;
}

/// Whether head `h`, number `in_group` of those with this mode, sees a key at j from i, but for
/// causality: the table of the header.
bool sees(const SparseAttentionOptions& o, const std::string& mode, std::int64_t h,
          std::int64_t in_group, std::int64_t i, std::int64_t j) {
  const std::int64_t ctx = o.local_attn_ctx.value_or(1), size = o.block_size;
  if (mode == "local") return std::abs(i - j) < ctx;
  if (mode == "strided") return (i - j) % ctx == 0;
  if (mode == "custom") {
    const auto blocks = std::ssize(o.layout.front());
    const std::int64_t first = std::ssize(o.layout) == blocks ? 0 : h * blocks;
    return o.layout[static_cast<std::size_t>(first + i / size)]
                   [static_cast<std::size_t>(j / size)] == '1';
  }
  if (mode == "all" || i / ctx == j / ctx) return true;
  const std::int64_t from_end = ctx / size - 1 - j / size % (ctx / size);
  return from_end / o.vertsize == in_group % o.num_verts;
}

/// The pairs that the heads allow: bool (heads, n, n).
torch::Tensor pairs_of(const SparseAttentionOptions& o, std::int64_t n) {
  torch::Tensor pairs = torch::zeros({o.heads, n, n}, torch::kBool);
  auto cells = pairs.accessor<bool, 3>();
  const auto groups = split(o.attn_mode, ',');
  const std::int64_t per = o.heads / std::ssize(groups);
  for (std::int64_t h = 0; h < o.heads; ++h) {
    for (const auto& mode : split(groups[static_cast<std::size_t>(h / per)], '+')) {
      for (std::int64_t i = 0; i < n; ++i) {
        for (std::int64_t j = 0; j < (o.causal ? i + 1 : n); ++j) {
          if (sees(o, mode, h, h % per, i, j)) cells[h][i][j] = true;
        }
      }
    }
  }
  return pairs;
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
    {.heads = 2, .attn_mode = "local+strided", .local_attn_ctx = 6},
    {.heads = 1, .attn_mode = "strided+local", .local_attn_ctx = 4, .causal = false},
    {.block_size = 4, .heads = 4, .attn_mode = "local+fixed", .local_attn_ctx = 12, .num_verts = 2},
    {.heads = 4, .attn_mode = "local,strided", .local_attn_ctx = 5},
    {.block_size = 4,
     .heads = 8,
     .attn_mode = "all,local+strided,fixed,local",
     .local_attn_ctx = 8,
     .num_verts = 2},
    {.block_size = 13, .heads = 2, .attn_mode = "custom", .layout = {"1..", "11.", "1.1"}},
    {.block_size = 20,
     .heads = 2,
     .attn_mode = "custom",
     .causal = false,
     .layout = {"11", "0.", "10", "01"}},
    {.block_size = 13,
     .heads = 2,
     .attn_mode = "local+custom",
     .local_attn_ctx = 5,
     .layout = {"1..", "...", "1.1"}},
    {.block_size = 20,
     .heads = 2,
     .attn_mode = "local,custom",
     .local_attn_ctx = 3,
     .layout = {"..", "..", "10", "10"}},
};

/// Attention over `pairs` (heads, n, n); 0 for a query that sees no key.
torch::Tensor dense(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                    const torch::Tensor& pairs) {
  const auto heads = [&](const torch::Tensor& x) {
    return x.unflatten(-1, {pairs.size(0), -1}).transpose(1, 2);
  };
  const torch::Tensor logits = at::matmul(heads(q), heads(k).transpose(-2, -1)) /
                               std::sqrt(static_cast<double>(q.size(-1) / pairs.size(0)));
  const torch::Tensor weights = logits.masked_fill(~pairs, -INFINITY).softmax(-1).nan_to_num(0);
  return at::matmul(weights, heads(v)).transpose(1, 2).flatten(2);
}

TEST(SparseAttention, SeesWhatThePatternSays) {
  torch::manual_seed(0);
  for (const auto& options : kPatterns) {
    for (const std::int64_t n : {1, 12, 37}) {
      SCOPED_TRACE(options.attn_mode + ", n " + std::to_string(n));
      const auto kDouble = torch::kDouble;
      const torch::Tensor q = torch::randn({2, n, 8}, kDouble),
                          k = torch::randn({2, n, 8}, kDouble),
                          v = torch::randn({2, n, 8}, kDouble);
      const torch::Tensor expected = dense(q, k, v, pairs_of(options, n));
      const double tolerance = tests::kFloat64.weights;
      SparseAttention module(options);
      EXPECT_TRUE(module(q, k, v).allclose(expected, 0, tolerance));
      EXPECT_TRUE(attention_impl(q, k, v, options).allclose(expected, 0, tolerance));
    }
  }
}

// The same by positions, as caches ask, and what a cache may drop.
TEST(SparsePattern, AllowsAndReachesWhatThePatternSays) {
  const std::int64_t n = 37;
  for (const auto& options : kPatterns) {
    SCOPED_TRACE(options.attn_mode);
    const torch::Tensor pairs = pairs_of(options, n);
    const torch::Tensor positions = torch::arange(n).unsqueeze(0);
    const torch::Tensor slots = torch::cat({positions.flip(1), torch::full({1, 1}, -1)}, 1);
    for (const SparsePattern& pattern : sparse_patterns(options, n)) {
      const torch::Tensor mine = pairs.narrow(0, pattern.first_head, pattern.heads);
      const torch::Tensor seen =
          allowed(pattern, positions, slots).expand({1, pattern.heads, n, n + 1})[0];
      EXPECT_TRUE(seen.narrow(-1, 0, n).flip(-1).equal(mine));
      EXPECT_FALSE(seen.select(-1, n).any().item<bool>());
      if (!options.causal) continue;
      const SparseReach reach(pattern, n);
      for (std::int64_t next = 1; next <= n; ++next) {
        const torch::Tensor later = mine.any(0).narrow(0, next, n - next).any(0);
        const torch::Tensor reached = reach(torch::full({1}, next), slots)[0];
        EXPECT_TRUE(reached.narrow(0, n - next, next).flip(0).equal(later.narrow(0, 0, next)))
            << "next " << next;
        EXPECT_FALSE(reached[n].item<bool>());
      }
    }
  }
}

TEST(SparseAttention, ALayoutNarrowsTheMode) {
  torch::manual_seed(0);
  const torch::Tensor x = torch::randn({1, 24, 8}, torch::kDouble);
  SparseAttention module({.block_size = 8, .heads = 2});
  const torch::Tensor own = torch::eye(3, torch::kBool);
  const torch::Tensor wide = own.repeat_interleave(8, 0).repeat_interleave(8, 1);
  const torch::Tensor by_blocks = module(x, x, x, SparseAttentionInputs{.mask = own});
  const torch::Tensor by_positions = module(x, x, x, SparseAttentionInputs{.mask = wide});
  EXPECT_TRUE(by_blocks.allclose(by_positions, 0, tests::kFloat64.weights));
  EXPECT_FALSE(by_blocks.allclose(module(x, x, x), 0, 1e-3));
}

TEST(SparseAttention, MasksNarrowUnionsAndPatternsPerHead) {
  torch::manual_seed(0);
  const std::int64_t n = 24;
  const torch::Tensor x = torch::randn({2, n, 8}, torch::kDouble);
  const torch::Tensor layout = torch::tensor({1, 0, 0, 0, 1, 0, 1, 0, 1}).view({3, 3}) > 0;
  const torch::Tensor per_head = torch::stack({layout, layout, torch::eye(3) > 0, layout});
  const torch::Tensor some = torch::rand({4, n, n}) < 0.7;
  for (const std::string mode : {"all", "local+strided", "local,strided", "local+fixed,all"}) {
    SCOPED_TRACE(mode);
    const SparseAttentionOptions options = {
        .block_size = 8, .heads = 4, .attn_mode = mode, .local_attn_ctx = 8};
    const torch::Tensor pairs = pairs_of(options, n);
    SparseAttention module(options);
    for (const torch::Tensor& mask : {layout, per_head, some, some[0], some.unsqueeze(0)}) {
      const torch::Tensor positions =
          mask.size(-1) == 3 ? mask.repeat_interleave(8, -2).repeat_interleave(8, -1) : mask;
      const torch::Tensor expected = dense(x, x, x, (pairs & positions).view({4, n, n}));
      EXPECT_TRUE(module(x, x, x, SparseAttentionInputs{.mask = mask})
                      .allclose(expected, 0, tests::kFloat64.weights))
          << mask.sizes();
    }
  }
  SparseAttention module({.heads = 4, .attn_mode = "local,all", .local_attn_ctx = 2});
  EXPECT_THROW(module(x, x, x, SparseAttentionInputs{.mask = some.narrow(0, 0, 2)}),
               c10::ValueError);
}

TEST(SparseAttention, PackedSequencesAreAsAlone) {
  torch::manual_seed(0);
  const std::vector<std::int64_t> ends = {0, 12, 13, 37};
  const torch::Tensor x = torch::randn({2, 37, 8}, torch::kDouble);
  torch::Tensor ids = torch::zeros({2, 37}, torch::kLong);
  ids.narrow(1, 12, 1).fill_(3);
  for (const auto& options : kPatterns) {
    SCOPED_TRACE(options.attn_mode);
    SparseAttention module(options);
    std::vector<torch::Tensor> alone;
    for (std::size_t s = 1; s < ends.size(); ++s) {
      const torch::Tensor part = x.narrow(1, ends[s - 1], ends[s] - ends[s - 1]);
      alone.push_back(module(part, part, part));
    }
    const torch::Tensor expected = torch::cat(alone, 1);
    const double tolerance = tests::kFloat64.weights;
    const SparseAttentionInputs packed = {.cu_seqlens = torch::tensor(ends)};
    const SparseAttentionInputs documents = {.document_ids = ids};
    EXPECT_TRUE(module(x, x, x, packed).allclose(expected, 0, tolerance));
    EXPECT_TRUE(module(x, x, x, documents).allclose(expected, 0, tolerance));
  }
  // 13 positions in 8 fit the layout, 13 in 13 do not.
  SparseAttention module({.block_size = 4, .attn_mode = "custom", .layout = {"1.", "11"}});
  const torch::Tensor y = x.narrow(1, 0, 13).narrow(2, 0, 4);
  const auto packed = [&](const std::vector<std::int64_t>& cu) {
    return module(y, y, y, SparseAttentionInputs{.cu_seqlens = torch::tensor(cu)});
  };
  EXPECT_EQ(packed({0, 8, 13}).size(1), 13);
  EXPECT_THROW(packed({0, 13}), c10::ValueError);
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

TEST(SparseAttention, MessagesOfUnionsAndLists) {
  for (const std::string mode :
       {"all+local", "strided+fixed", "local+local", "local+strided+fixed", "all,strided+fixed"}) {
    EXPECT_THAT(message_of({.heads = 2, .attn_mode = mode, .local_attn_ctx = 32}),
                HasSubstr("expected a union to be \"local+strided\", \"local+fixed\" or "
                          "\"local+custom\", but got \""))
        << mode;
  }
  for (const std::string mode : {"local+", ",local", "local;strided", ""}) {
    EXPECT_THAT(
        message_of({.heads = 2, .attn_mode = mode, .local_attn_ctx = 32}),
        HasSubstr("expected `attn_mode` to be \"all\", \"local\", \"strided\", \"fixed\" or "
                  "\"custom\", but got \""))
        << mode;
  }
  EXPECT_EQ(message_of({.heads = 2, .attn_mode = " local + strided , all ", .local_attn_ctx = 32}),
            "no error");
  EXPECT_THAT(message_of({.heads = 4, .attn_mode = "all,all,all"}),
              HasSubstr("patterns in `attn_mode` to divide `heads`, 4, but got 3"));
  EXPECT_THAT(message_of({.heads = 4, .attn_mode = "all,local"}), HasSubstr("but got none"));
  EXPECT_THAT(
      message_of({.heads = 2, .attn_mode = "all,fixed", .local_attn_ctx = 64, .num_verts = 2}),
      HasSubstr("`num_verts` to divide the heads of a pattern, 1, but got 2"));
}

TEST(SparseAttention, MessagesOfLayouts) {
  EXPECT_THAT(message_of({.attn_mode = "custom"}),
              HasSubstr("expected `layout` with `attn_mode` \"custom\", but got none"));
  EXPECT_THAT(message_of({.attn_mode = "local", .local_attn_ctx = 1, .layout = {"1"}}),
              HasSubstr("expected `layout` only with `attn_mode` \"custom\""));
  EXPECT_THAT(message_of({.attn_mode = "local+custom", .layout = {"1"}}),
              HasSubstr("expected `local_attn_ctx` with `attn_mode` \"local+custom\""));
  EXPECT_THAT(message_of({.heads = 2, .attn_mode = "custom", .layout = {"11", "11", "11"}}),
              HasSubstr("as many rows as columns, 2, or `heads` times as many, but got 3"));
  EXPECT_THAT(message_of({.attn_mode = "custom", .layout = {"11", "1"}}),
              HasSubstr("row 1 of `layout` to have 2 columns like the first, but got 1"));
  EXPECT_THAT(message_of({.attn_mode = "custom", .layout = {"11", "1x"}}),
              HasSubstr("'1', and '0' or '.', but row 1 has 'x'"));
  const torch::Tensor x = torch::randn({1, 9, 4});
  SparseAttention module({.block_size = 4, .attn_mode = "custom", .layout = {"1.", "11"}});
  EXPECT_EQ(module(x.narrow(1, 0, 8), x.narrow(1, 0, 8), x.narrow(1, 0, 8)).size(1), 8);
  try {
    module(x, x, x);
    ADD_FAILURE() << "not refused";
  } catch (const c10::ValueError& error) {
    EXPECT_THAT(error.what_without_backtrace(),
                HasSubstr("at most 8 positions, 2 blocks of `layout`, but got 9"));
  }
}

}  // namespace
}  // namespace weir::nn
