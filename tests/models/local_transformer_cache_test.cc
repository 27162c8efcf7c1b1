// SPDX-License-Identifier: Apache-2.0
// The local transformer's cache against the full pass: steps, rows of any lengths, greedy text.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <random>

#include "config/options.h"
#include "models/small_local_models.h"
#include "models/small_models.h"
#include "weir/models/generate.h"

namespace weir::models {
namespace {

using nn::distance;
using Options = LocalTransformerOptions;

class LocalCache : public LocalMode {};

TEST_P(LocalCache, StepsGiveTheLogitsOfTheFullPass) {
  const at::Tensor tokens = random_tokens(2, kLocalLength);
  for (const auto& [dtype, tolerance] :
       {std::pair(at::kFloat, kCachedFloat32), std::pair(at::kDouble, kCachedFloat64)}) {
    model_->to(dtype);
    const at::Tensor expected = model_(tokens);
    for (const std::vector<std::int64_t>& split :
         {std::vector<std::int64_t>(kLocalLength, 1), {kLocalLength}, {11, 1, 0, 1, 20, 7}}) {
      Cache cache = model_->make_cache(2);
      std::vector<at::Tensor> parts;
      std::int64_t begin = 0;
      for (const std::int64_t count : split) {
        parts.push_back(model_->step(tokens.narrow(1, begin, count), cache));
        begin += count;
      }
      EXPECT_LE(distance(at::cat(parts, 1), expected), tolerance) << split.size() << " steps";
      EXPECT_EQ(cache.lengths(), std::vector<std::int64_t>(2, kLocalLength));
    }
  }
}

TEST_P(LocalCache, RowsOfTheCacheHaveTheirOwnLengths) {
  model_->to(at::kDouble);
  const at::Tensor tokens = random_tokens(3, kLocalLength);
  const at::Tensor expected = model_(tokens);
  Cache cache = model_->make_cache(3);
  model_->step(tokens.narrow(1, 0, 16), cache);  // as if 16 were the longest of three prompts
  cache.set_lengths({2, 16, 9});
  for (int repeat = 0; repeat < 4; ++repeat) {  // then keep two rows, in another order
    if (repeat == 1) cache.keep_rows({2, 0});
    const std::vector<std::int64_t> rows =
        repeat == 0 ? std::vector<std::int64_t>{0, 1, 2} : std::vector<std::int64_t>{2, 0};
    std::vector<at::Tensor> next, wanted;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      next.push_back(tokens[rows[i]].narrow(0, cache.lengths()[i], 5));
      wanted.push_back(expected[rows[i]].narrow(0, cache.lengths()[i], 5));
    }
    EXPECT_LE(distance(model_->step(at::stack(next), cache), at::stack(wanted)), kCachedFloat64);
  }
  EXPECT_EQ(cache.lengths(), (std::vector<std::int64_t>{29, 22}));
}

INSTANTIATE_TEST_SUITE_P(Modes, LocalCache, ::testing::ValuesIn(small_local_cases()));

/// Options, prompts and lengths from `random`.
Options random_options(std::mt19937& random) {
  const auto below = [&](std::int64_t n) { return static_cast<std::int64_t>(random() % n); };
  Options options = kSmallLocal;
  options.depth = 1 + below(2);
  options.local_attn_window_size = 2 + below(5);
  options.look_backward = below(3);
  options.exact_windowsize = below(2) == 0;
  options.heads = 1 + below(2);
  options.num_residual_streams = 1 + below(4);
  options.use_dynamic_pos_bias = below(3) == 0;
  options.use_xpos = below(3) == 0;
  options.qk_rmsnorm = below(2) == 0;
  options.gate_values_per_head = below(2) == 0;
  options.shared_qk = below(4) == 0;
  return options;
}

TEST(LocalTransformer, GreedyTextIsTheSameWithAndWithoutTheCache) {
  for (unsigned seed = 0; seed < 200; ++seed) {
    std::mt19937 random(seed);
    const Options options = random_options(random);
    torch::manual_seed(seed);
    LocalTransformer model(options);
    nn::randomise(*model);
    model->to(at::kDouble);  // ties aside, rounding decides nothing
    std::vector<std::vector<std::int64_t>> prompts(1 + random() % 3);
    for (auto& prompt : prompts) {
      prompt.resize(1 + random() % 20);
      for (auto& token : prompt) token = static_cast<std::int64_t>(random() % 23);
    }
    GenerateOptions greedy = {.max_new_tokens = 12, .temperature = 0};
    const auto cached = generate(*model, prompts, greedy);
    greedy.use_cache = false;
    const auto uncached = generate(*model, prompts, greedy);
    for (std::size_t row = 0; row < prompts.size(); ++row) {
      ASSERT_EQ(cached[row].tokens, uncached[row].tokens)
          << "seed " << seed << ", row " << row << ", " << config::to_json(options).dump();
    }
  }
}

TEST(LocalTransformer, TheCacheDoesNotGrowWithTheText) {
  LocalTransformer model(kSmallLocal);
  Cache cache = model->make_cache(1);
  std::int64_t most = 0;
  for (std::int64_t i = 0; i < kLocalLength; ++i) {
    model->step(random_tokens(1, 1), cache);
    most = std::max(most, cache.layers.front().slots());
  }
  EXPECT_LE(most, 3 + 17);  // a window, and what is dropped at once
}

}  // namespace
}  // namespace weir::models
