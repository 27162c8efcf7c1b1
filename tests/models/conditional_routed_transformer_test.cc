// SPDX-License-Identifier: Apache-2.0
// The CoLT5 language model: no leak to the last bit, cache equal to the full pass, greedy text,
// learning, copies, messages.
#include "weir/models/conditional_routed_transformer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "models/small_models.h"
#include "support/message_of.h"
#include "support/temporary_directory.h"
#include "weir/models/checkpoint.h"
#include "weir/models/generate.h"

namespace weir::models {
namespace {

using nn::distance;
using Options = ConditionalRoutedTransformerOptions;
using Model = ConditionalRoutedTransformer;

constexpr std::int64_t kLength = 30;

const Options kSmall = {.num_tokens = 23,
                        .max_seq_len = kLength,
                        .dim = 12,
                        .depth = 2,
                        .num_heavy_attn_tokens_q = 2,
                        .num_heavy_attn_tokens_kv = 6,
                        .num_heavy_ff_tokens = 2,
                        .light_dim_head = 4,
                        .light_heads = 2,
                        .light_window_size = 4,
                        .heavy_dim_head = 4,
                        .heavy_heads = 4};

Options with(void (*change)(Options&)) {
  Options options = kSmall;
  change(options);
  return options;
}

const nn::Named<Options> kCases[] = {
    {"plain", kSmall},
    {"routes", with([](Options& o) { o.num_routed_kv = 2, o.heavy_window_size = 5; })},
    {"soft", with([](Options& o) {
       o.router_straight_through = o.rotary_emb = false, o.threshold_solver = "iterative";
       o.router_kwargs = {.eps = 0.5, .cosine_sim_routing = true, .cosine_sim_scale = 1};
     })},
};

at::Tensor random_tokens(std::int64_t batch, std::int64_t n) {
  return at::randint(23, {batch, n}, at::kLong);
}

class RoutedModel : public ::testing::TestWithParam<nn::Named<Options>> {
 protected:
  RoutedModel() {
    torch::manual_seed(1);
    model_ = Model(GetParam().options);
    nn::randomise(*model_);
  }
  Model model_{nullptr};
};

TEST_P(RoutedModel, IsCausalToTheBit) {
  torch::NoGradGuard no_grad;
  const at::Tensor tokens = random_tokens(2, kLength);
  const at::Tensor before = model_->forward(tokens);
  for (std::int64_t t = 1; t < kLength; ++t) {
    at::Tensor other = tokens.clone();
    other.select(1, t).add_(1).remainder_(23);
    ASSERT_TRUE(model_->forward(other).narrow(1, 0, t).equal(before.narrow(1, 0, t))) << t;
  }
}

TEST_P(RoutedModel, StepsGiveTheLogitsOfTheFullPass) {
  model_->to(at::kDouble);
  const at::Tensor tokens = random_tokens(2, kLength);
  const at::Tensor expected = model_->forward(tokens);
  for (const std::vector<std::int64_t>& split :
       {std::vector<std::int64_t>(kLength, 1), {kLength}, {11, 1, 0, 1, 10, 7}}) {
    Cache cache = model_->make_cache(2);
    std::vector<at::Tensor> parts;
    std::int64_t begin = 0;
    for (const std::int64_t count : split) {
      parts.push_back(model_->step(tokens.narrow(1, begin, count), cache));
      begin += count;
    }
    EXPECT_LE(distance(at::cat(parts, 1), expected), kCachedFloat64) << split.size() << " steps";
  }
}

TEST_P(RoutedModel, RowsOfTheCacheHaveTheirOwnLengths) {
  model_->to(at::kDouble);
  const at::Tensor tokens = random_tokens(3, kLength);
  const at::Tensor expected = model_->forward(tokens);
  Cache cache = model_->make_cache(3);
  model_->step(tokens.narrow(1, 0, 13), cache);  // as if 13 were the longest of three prompts
  cache.set_lengths({2, 13, 9});
  for (int repeat = 0; repeat < 3; ++repeat) {  // then keep two rows, in another order
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
}

TEST_P(RoutedModel, GreedyTextIsTheSameWithAndWithoutTheCache) {
  model_->to(at::kDouble);  // ties aside, rounding decides nothing
  for (std::int64_t seed = 0; seed < 20; ++seed) {
    torch::manual_seed(static_cast<std::uint64_t>(seed));
    std::vector<std::vector<std::int64_t>> prompts(1 + seed % 3);
    for (auto& prompt : prompts) {
      prompt.resize(static_cast<std::size_t>(at::randint(1, 15, {1}).item<std::int64_t>()));
      for (auto& token : prompt) token = at::randint(23, {1}).item<std::int64_t>();
    }
    GenerateOptions greedy = {.max_new_tokens = 20, .temperature = 0};  // some beyond max_seq_len
    const auto cached = generate(*model_, prompts, greedy);
    greedy.use_cache = false;
    const auto uncached = generate(*model_, prompts, greedy);
    for (std::size_t row = 0; row < prompts.size(); ++row) {
      ASSERT_EQ(cached[row].tokens, uncached[row].tokens) << "seed " << seed << ", row " << row;
    }
  }
}

at::Tensor next_token_loss(Model& model, const at::Tensor& tokens) {
  const std::int64_t n = tokens.size(1) - 1;
  const at::Tensor logits = model->forward(tokens.narrow(1, 0, n));
  return at::cross_entropy_loss(logits.flatten(0, 1), tokens.narrow(1, 1, n).flatten());
}

TEST_P(RoutedModel, LearnsATinyBatchByHeart) {
  torch::manual_seed(2);
  const at::Tensor tokens = random_tokens(2, 17);
  Model model(GetParam().options);
  torch::optim::Adam optimizer(model->parameters(), 1e-2);
  for (int step = 0; step < 100; ++step) {
    optimizer.zero_grad();
    next_token_loss(model, tokens).backward();
    optimizer.step();
  }
  EXPECT_LT(next_token_loss(model, tokens).item<double>(), 0.1);
}

TEST_P(RoutedModel, GradientsReachEveryParameter) {
  next_token_loss(model_, random_tokens(2, kLength)).backward();
  nn::expect_gradients_everywhere(*model_);
}

TEST_P(RoutedModel, CopiesAgree) {
  nn::expect_copies_agree(model_, Model(GetParam().options), random_tokens(2, 19));
  const tests::TemporaryDirectory directory;
  save_model(directory.path(), *model_);
  const at::Tensor tokens = random_tokens(2, 19);
  EXPECT_TRUE(load_model(directory.path())->forward(tokens).equal(model_->forward(tokens)));
}

INSTANTIATE_TEST_SUITE_P(Modes, RoutedModel, ::testing::ValuesIn(kCases),
                         [](const auto& info) { return info.param.name; });

TEST(ConditionalRoutedTransformer, RefusesWhatDoesNotFit) {
  const auto words = [](void (*change)(Options&)) {
    return tests::message_of([&] { Model model(with(change)); });
  };
  const std::string who = "weir::ConditionalRoutedTransformer: expected ";
  EXPECT_EQ(words([](Options& o) { o.depth = 0; }), who + "`depth` to be at least 1, but got 0.");
  EXPECT_EQ(words([](Options& o) { o.num_heavy_ff_tokens = 0; }),
            who + "`num_heavy_ff_tokens` to be at least 1, but got 0.");
  Model windowed(with([](Options& o) { o.autoregressive_routing = "window"; }));
  Cache cache = windowed->make_cache(1);
  EXPECT_THAT(tests::message_of([&] { windowed->step(random_tokens(1, 3), cache); }),
              ::testing::HasSubstr("expected `autoregressive_routing` \"strict\" for a step"));
}

}  // namespace
}  // namespace weir::models
