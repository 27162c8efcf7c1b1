// SPDX-License-Identifier: Apache-2.0
// Generation: greedy by hand, cached as uncached, batched as single, past the end of the model, how
// rows stop, and what is refused.
#include "weir/models/generate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "models/small_models.h"
#include "nn/module_contract.h"

namespace weir::models {
namespace {

using Tokens = std::vector<std::int64_t>;
using ::testing::Each;

const std::vector<Tokens> kPrompts = {{1, 2, 3},
                                      {4},
                                      {5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
                                      {3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3, 1, 3}};  // 12 fit

std::vector<Tokens> tokens_of(const std::vector<Generated>& rows) {
  std::vector<Tokens> tokens;
  for (const auto& row : rows) tokens.push_back(row.tokens);
  return tokens;
}

class Generation : public ::testing::TestWithParam<nn::Named<CoordinateDescentTransformerOptions>> {
 protected:
  // double, so that no rounding turns a draw.
  Generation() { model_->to(at::kDouble); }
  CoordinateDescentTransformer model_ = small_model(GetParam().options);
};

TEST_P(Generation, GreedyIsTheLikeliestTokenAfterTheLastTwelve) {
  const auto rows = generate(*model_, kPrompts, {.max_new_tokens = 16, .temperature = 0});
  for (std::size_t row = 0; row < kPrompts.size(); ++row) {
    Tokens sequence = kPrompts[row];
    for (int i = 0; i < 16; ++i) {
      const auto size = std::min<std::ptrdiff_t>(std::ssize(sequence), 12);
      const at::Tensor window = at::tensor(Tokens(sequence.end() - size, sequence.end()));
      sequence.push_back(model_(window.unsqueeze(0))[0][-1].argmax().item<std::int64_t>());
    }
    EXPECT_EQ(rows[row].tokens, Tokens(sequence.end() - 16, sequence.end())) << "row " << row;
    EXPECT_EQ(rows[row].stop_reason, StopReason::kMaxNewTokens);
  }
}

TEST_P(Generation, TheCacheChangesNothing) {
  for (const std::int64_t seed : {0, 1, 2}) {
    GenerateOptions options = {.max_new_tokens = 16, .top_k = 9, .seed = seed};
    const auto cached = tokens_of(generate(*model_, kPrompts, options));
    options.use_cache = false;
    EXPECT_EQ(cached, tokens_of(generate(*model_, kPrompts, options)));
  }
}

TEST_P(Generation, ARowAloneGivesWhatItGaveInTheBatch) {
  GenerateOptions options = {.max_new_tokens = 16, .repetition_penalty = 1.2, .seed = 5};
  const auto batch = tokens_of(generate(*model_, kPrompts, options));
  for (std::size_t row = 0; row < kPrompts.size(); ++row) {
    options.first_row = static_cast<std::int64_t>(row);
    EXPECT_EQ(tokens_of(generate(*model_, {kPrompts[row]}, options))[0], batch[row]);
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, Generation, ::testing::ValuesIn(small_cases()));

class SmallGeneration : public ::testing::Test {
 protected:
  SmallGeneration() { model_->to(at::kDouble); }
  std::vector<Tokens> run(const GenerateOptions& options) {
    return tokens_of(generate(*model_, kPrompts, options));
  }
  // Adds `value` to the logits of `token`.
  void add_bias(std::int64_t token, double value) {
    torch::NoGradGuard no_grad;
    model_->named_parameters()["to_logits.1.bias"][token] += value;
  }
  CoordinateDescentTransformer model_ = small_model(small_cases()[0].options);
};

TEST_F(SmallGeneration, SeedsDecide) {
  EXPECT_EQ(run({.max_new_tokens = 12, .seed = 3}), run({.max_new_tokens = 12, .seed = 3}));
  EXPECT_NE(run({.max_new_tokens = 12, .seed = 3}), run({.max_new_tokens = 12, .seed = 4}));
  torch::manual_seed(9);
  const at::Tensor before = at::rand({3});
  torch::manual_seed(9);
  run({.max_new_tokens = 12, .seed = 3});
  EXPECT_TRUE(at::rand({3}).equal(before)) << "torch's own generator is left alone";
}

TEST_F(SmallGeneration, EveryTokenOfEveryRowHasItsOwnRandomNumber) {
  torch::NoGradGuard no_grad;
  model_->named_parameters()["to_logits.1.weight"].zero_();
  model_->named_parameters()["to_logits.1.bias"].zero_();  // all tokens equally likely
  std::vector<Tokens> rows =
      tokens_of(generate(*model_, std::vector<Tokens>(40, {1}), {.max_new_tokens = 40}));
  std::vector<int> counts(23);
  for (const Tokens& row : rows) {
    for (const std::int64_t token : row) ++counts[token];
  }
  EXPECT_THAT(counts,
              Each(::testing::AllOf(::testing::Ge(30), ::testing::Le(110))));  // 70 +- 5 sigma
  std::sort(rows.begin(), rows.end());
  EXPECT_EQ(std::unique(rows.begin(), rows.end()), rows.end());
}

TEST_F(SmallGeneration, FiltersReachTheSampler) {
  const auto greedy = run({.max_new_tokens = 12, .temperature = 0});
  EXPECT_EQ(run({.max_new_tokens = 12, .top_k = 1}), greedy);
  EXPECT_EQ(run({.max_new_tokens = 12, .top_p = 1e-9}), greedy);
  const auto rows = run({.max_new_tokens = 12, .temperature = 0, .repetition_penalty = 1e9});
  EXPECT_NE(rows, greedy);
}

TEST_F(SmallGeneration, StopsAfterAToken) {
  const auto free = generate(*model_, kPrompts, {.max_new_tokens = 12});
  const std::int64_t stop = free[0].tokens[4];
  const auto rows = generate(*model_, kPrompts, {.max_new_tokens = 12, .stop_tokens = {stop}});
  for (std::size_t row = 0; row < rows.size(); ++row) {
    const Tokens& all = free[row].tokens;
    const auto end = std::find(all.begin(), all.end(), stop);
    const bool stops = end != all.end();
    EXPECT_EQ(rows[row].tokens, Tokens(all.begin(), stops ? end + 1 : end)) << "row " << row;
    EXPECT_EQ(rows[row].stop_reason, stops ? StopReason::kStop : StopReason::kMaxNewTokens);
  }
}

TEST_F(SmallGeneration, StopsAfterAText) {
  const auto free = run({.max_new_tokens = 12})[2];
  const std::string text = {static_cast<char>(free[6]), static_cast<char>(free[7])};
  const auto row =
      generate(*model_, {kPrompts[2]}, {.max_new_tokens = 12, .first_row = 2, .stop = text})[0];
  EXPECT_EQ(row.stop_reason, StopReason::kStop);
  EXPECT_EQ(row.tokens, Tokens(free.begin(), free.begin() + std::ssize(row.tokens)));
  ASSERT_GE(row.tokens.size(), 2u);
  EXPECT_EQ(Tokens(row.tokens.end() - 2, row.tokens.end()), Tokens({free[6], free[7]}));
}

TEST_F(SmallGeneration, StreamsEveryTokenAndCanBeCancelled) {
  std::vector<Tokens> streamed(kPrompts.size());
  const auto rows =
      generate(*model_, kPrompts, {.max_new_tokens = 6}, [&](std::int64_t row, std::int64_t token) {
        streamed[row].push_back(token);
        return row != 1 || streamed[row].size() < 3;
      });
  EXPECT_EQ(streamed, tokens_of(rows));
  EXPECT_EQ(rows[0].tokens.size(), 6u);
  EXPECT_EQ(rows[1].tokens.size(), 3u);
  EXPECT_EQ(rows[1].stop_reason, StopReason::kCancelled);
  EXPECT_EQ(to_string(rows[1].stop_reason), "cancelled");
}

TEST_F(SmallGeneration, LeavesTheModelAsItWas) {
  const auto boom = [](std::int64_t, std::int64_t) -> bool { throw std::runtime_error("boom"); };
  for (const bool training : {true, false}) {
    model_->train(training);
    bool was_training = true;
    generate(*model_, {{1}}, {.max_new_tokens = 1}, [&](std::int64_t, std::int64_t) {
      was_training = model_->is_training();
      return true;
    });
    EXPECT_FALSE(was_training);
    EXPECT_EQ(model_->is_training(), training);
    EXPECT_THROW(generate(*model_, {{1}}, {}, boom), std::runtime_error);
    EXPECT_EQ(model_->is_training(), training);
    EXPECT_TRUE(at::GradMode::is_enabled());
  }
}

TEST_F(SmallGeneration, NothingToDo) {
  EXPECT_TRUE(generate(*model_, {}).empty());
  EXPECT_THAT(run({.max_new_tokens = 0}), Each(Tokens()));
}

TEST_F(SmallGeneration, TokensThatCannotFollowAreNeverDrawn) {
  for (std::int64_t token = 0; token < 21; ++token) add_bias(token, -INFINITY);
  for (const GenerateOptions& options :
       {GenerateOptions{.max_new_tokens = 20}, GenerateOptions{.max_new_tokens = 20, .top_k = 10},
        GenerateOptions{.max_new_tokens = 20, .top_p = 0.99, .repetition_penalty = 1.5}}) {
    for (const auto& tokens : run(options)) EXPECT_THAT(tokens, Each(::testing::Ge(21)));
  }
}

TEST_F(SmallGeneration, RefusesLogitsThatAreNone) {
  const auto refuses = [&](const std::string& words) {
    for (const double temperature : {0.0, 1.0}) {
      nn::expect_refusal([&] { run({.temperature = temperature}); }, "weir::generate: " + words);
    }
  };
  add_bias(3, INFINITY);
  refuses("expected the model's logits to be finite or -inf, but row 0 has inf.");
  add_bias(3, NAN);
  refuses("expected the model's logits to be finite or -inf, but row 0 has nan.");
  model_ = small_model(small_cases()[0].options);
  for (std::int64_t token = 0; token < 23; ++token) add_bias(token, -INFINITY);
  refuses("expected a token that can follow, but all logits of row 0 are -inf.");
}

TEST_F(SmallGeneration, RefusesWhatDoesNotFit) {
  const auto refuses = [&](const std::vector<Tokens>& prompts, const GenerateOptions& options,
                           const std::string& words) {
    nn::expect_refusal([&] { generate(*model_, prompts, options); }, "weir::generate: " + words);
  };
  refuses({{1}, {}}, {}, "expected prompt 1 to have at least 1 token, but it is empty.");
  refuses({{1}, {4, 23}}, {}, "expected the tokens of prompt 1 in [0, 23), but got 23.");
  refuses({{1}}, {.max_new_tokens = -1}, "expected `max_new_tokens` to be at least 0, but got -1.");
  refuses({{1}}, {.temperature = -1},
          "expected `temperature` to be finite and at least 0, but got -1.");
  refuses({{1}}, {.temperature = NAN},
          "expected `temperature` to be finite and at least 0, but got nan.");
  refuses({{1}}, {.top_k = -1}, "expected `top_k` to be at least 0, but got -1.");
  refuses({{1}}, {.top_p = 0}, "expected `top_p` to lie in (0, 1], but got 0.");
  refuses({{1}}, {.repetition_penalty = 0},
          "expected `repetition_penalty` to be finite and positive, but got 0.");
  refuses({{1}}, {.first_row = -1}, "expected `first_row` to be at least 0, but got -1.");
}

}  // namespace
}  // namespace weir::models
