// SPDX-License-Identifier: Apache-2.0
// The Sparse Transformer with its cache, against the full pass, and how much the cache keeps.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <random>

#include "models/small_models.h"
#include "nn/module_contract.h"
#include "weir/models/generate.h"

namespace weir::models {
namespace {

using nn::distance;
using nn::expect_refusal;

at::Tensor random_tokens(std::int64_t batch, std::int64_t n) {
  return at::randint(23, {batch, n}, at::kLong);
}

class SparseCache : public ::testing::TestWithParam<nn::Named<SparseTransformerOptions>> {
 protected:
  SparseTransformer model_ = small_model(GetParam().options);
};

TEST_P(SparseCache, StepsGiveTheLogitsOfTheFullPass) {
  const at::Tensor tokens = random_tokens(3, 24);
  for (const auto& [dtype, tolerance] :
       {std::pair(at::kFloat, kCachedFloat32), std::pair(at::kDouble, kCachedFloat64)}) {
    model_->to(dtype);
    const at::Tensor expected = model_(tokens);
    for (const std::vector<std::int64_t>& split : {std::vector<std::int64_t>{24},
                                                   std::vector<std::int64_t>(24, 1),
                                                   {1, 23},
                                                   {7, 1, 1, 9, 6},
                                                   {3, 0, 21}}) {
      Cache cache = model_->make_cache(3);
      std::vector<at::Tensor> parts;
      std::int64_t begin = 0;
      for (const std::int64_t count : split) {
        parts.push_back(model_->step(tokens.narrow(1, begin, count), cache));
        begin += count;
      }
      EXPECT_LE(distance(at::cat(parts, 1), expected), tolerance);
      EXPECT_EQ(cache.lengths(), std::vector<std::int64_t>(3, 24));
    }
  }
}

// As Decoder does it: prompts padded on the right and cut back, rows leaving, other pads following.
TEST_P(SparseCache, RowsHaveTheirOwnLengths) {
  model_->to(at::kDouble);
  const at::Tensor tokens = random_tokens(4, 24);
  const at::Tensor expected = model_(tokens);
  std::mt19937 random(3);
  for (int repeat = 0; repeat < 10; ++repeat) {
    std::vector<std::int64_t> rows = {0, 1, 2, 3}, lengths(4, 0);
    Cache cache = model_->make_cache(4);
    while (!rows.empty()) {
      std::int64_t longest = 0;
      for (const std::int64_t length : lengths) longest = std::max(longest, length);
      if (longest == 24) break;
      const std::int64_t m =
          1 + static_cast<std::int64_t>(random()) % std::min<std::int64_t>(6, 24 - longest);
      std::vector<at::Tensor> next, wanted;
      for (std::size_t i = 0; i < rows.size(); ++i) {
        const std::int64_t used =
            static_cast<std::int64_t>(random()) % (m + 1);  // the rest is padding
        at::Tensor read = tokens[rows[i]].narrow(0, lengths[i], m).clone();
        read.narrow(0, used, m - used).fill_(22);
        next.push_back(read);
        wanted.push_back(expected[rows[i]].narrow(0, lengths[i], used));
        lengths[i] += used;
      }
      const at::Tensor got = model_->step(at::stack(next), cache);
      for (std::size_t i = 0; i < rows.size(); ++i) {
        const at::Tensor mine = got[static_cast<std::int64_t>(i)].narrow(0, 0, wanted[i].size(0));
        ASSERT_LE(distance(mine, wanted[i]), kCachedFloat64) << "row " << rows[i];
      }
      cache.set_lengths(lengths);
      if (random() % 5 == 0) {  // drop the first row, reverse the others
        std::vector<std::int64_t> kept;
        for (std::size_t i = rows.size(); i-- > 1;) kept.push_back(static_cast<std::int64_t>(i));
        std::vector<std::int64_t> new_rows, new_lengths;
        for (const std::int64_t i : kept) {
          new_rows.push_back(rows[static_cast<std::size_t>(i)]);
          new_lengths.push_back(lengths[static_cast<std::size_t>(i)]);
        }
        cache.keep_rows(kept);
        rows = new_rows, lengths = new_lengths;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, SparseCache, ::testing::ValuesIn(sparse_cases()));

/// Slots of each entry after reading tokens one by one.
std::vector<std::int64_t> slots_after(const SparseTransformerOptions& options, std::int64_t count) {
  SparseTransformer model(options);
  Cache cache = model->make_cache(1);
  for (std::int64_t i = 0; i < count; ++i) model->step(random_tokens(1, 1), cache);
  std::vector<std::int64_t> slots;
  for (const auto& entry : cache.layers) slots.push_back(entry.keys.size(2));
  return slots;
}

TEST(SparseTransformerCache, KeepsWhatLaterPositionsReach) {
  SparseTransformerOptions options = {.num_tokens = 23,
                                      .dim = 4,
                                      .seq_len = 64,
                                      .depth = 1,
                                      .heads = 2,
                                      .attn_mode = "local,all",
                                      .local_attn_ctx = 8,
                                      .block_size = 2};
  using ::testing::ElementsAre;
  EXPECT_THAT(slots_after(options, 40), ElementsAre(8, 40));
  options.attn_mode = "local";
  EXPECT_THAT(slots_after(options, 40), ElementsAre(8));
  options.attn_mode = "strided";  // seen again 8 later, but there is no position 64
  EXPECT_THAT(slots_after(options, 56), ElementsAre(56));
  EXPECT_THAT(slots_after(options, 60), ElementsAre(7 * 5 + 1));  // 3 mod 8 and up, and itself
  options.attn_mode = "fixed";  // 2 summary positions of 4 chunks, 4 of the fifth
  EXPECT_THAT(slots_after(options, 36), ElementsAre(4 * 2 + 4));
  options.attn_mode = "local+fixed";  // 28 and 29, too
  EXPECT_THAT(slots_after(options, 36), ElementsAre(4 * 2 + 4 + 2));
  options.attn_mode = "custom";
  options.block_size = 16;
  options.layout = {"1...", "11..", ".11.", "...1"};
  EXPECT_THAT(slots_after(options, 33), ElementsAre(17));  // block 1, and the first of block 2
  EXPECT_THAT(slots_after(options, 49), ElementsAre(1));
}

TEST(SparseTransformerCache, GoesBackIntoTheLastStepOnly) {
  SparseTransformer model = small_model(sparse_cases()[1].options);
  Cache cache = model->make_cache(2);
  model->step(random_tokens(2, 9), cache);
  cache.set_lengths({9, 2});
  model->step(random_tokens(2, 3), cache);
  expect_refusal(
      [&] {
        cache.set_lengths({9, 1});
      },
      "weir::Cache: expected the length of row 1 to be at least 2, as before the last step: older "
      "tokens are dropped once no later one can see them, but got 1.");
  EXPECT_EQ(cache.lengths(), (std::vector<std::int64_t>{12, 5}));
  cache.keep_rows({1});
  cache.set_lengths({2});
  expect_refusal([&] { model->step(random_tokens(1, 23), cache); },
                 "weir::Cache: expected room for 23 more tokens in every row, but the longest "
                 "holds 2 of 24.");
}

TEST(SparseTransformerCache, KeepsTheDtype) {
  SparseTransformer model = small_model(sparse_cases()[8].options);
  model->to(at::kBFloat16);
  Cache cache = model->make_cache(2);
  model->step(random_tokens(2, 5), cache);
  EXPECT_EQ(model->step(random_tokens(2, 1), cache).scalar_type(), at::kBFloat16);
  EXPECT_EQ(cache.layers[0].keys.scalar_type(), at::kBFloat16);
}

// 200 generations over random options and prompts, some past the end of the model.
TEST(SparseTransformerCache, GreedyGenerationIsTheSameWithAndWithout) {
  const auto cases = sparse_cases();
  std::mt19937 random(1);
  const auto below = [&](std::int64_t n) { return static_cast<std::int64_t>(random()) % n; };
  int generations = 0;
  while (generations < 200) {
    SparseTransformerOptions options =
        cases[static_cast<std::size_t>(below(std::ssize(cases)))].options;
    if (options.layout.empty()) {
      options.seq_len = 1 + below(24);
      options.depth = std::max<std::int64_t>(
          1 + below(2), options.attn_mode.find(';') == std::string::npos ? 1 : 2);
      if (options.attn_mode.find("fixed") == std::string::npos)
        options.local_attn_ctx = 1 + below(9);
    }
    torch::manual_seed(below(1000));
    SparseTransformer model(options);
    nn::randomise(*model);
    nn::randomise(*model);
    model->to(at::kDouble);
    for (int batch = 0; batch < 2; ++batch) {
      std::vector<std::vector<std::int64_t>> prompts(static_cast<std::size_t>(1 + below(4)));
      for (auto& prompt : prompts) {
        prompt.resize(static_cast<std::size_t>(1 + below(14)));
        for (auto& token : prompt) token = below(23);
      }
      GenerateOptions with = {.max_new_tokens = 14, .temperature = 0, .stop_tokens = {below(23)}};
      auto without = with;
      without.use_cache = false;
      const auto a = generate(*model, prompts, with), b = generate(*model, prompts, without);
      for (std::size_t row = 0; row < prompts.size(); ++row) {
        ASSERT_EQ(a[row].tokens, b[row].tokens)
            << options.attn_mode << ", seq_len " << options.seq_len << ", row " << row;
        ++generations;
      }
    }
  }
}

}  // namespace
}  // namespace weir::models
