// SPDX-License-Identifier: Apache-2.0
// Bits per byte against the definition, the choice of windows, and stopping.
#include "train/evaluation.h"

#include <cmath>

#include "config/error.h"
#include "data/sampler.h"
#include "train/small_run.h"

namespace weir::train {
namespace {

std::vector<std::uint8_t> bytes_of(const std::string& text) { return {text.begin(), text.end()}; }

TEST(Evaluation, IsTheMeanOverAllBytes) {
  const auto model = small_model();
  const auto text = bytes_of(small_text(10));
  const auto result = evaluate(*model, text, 3, 0);
  ASSERT_TRUE(result);
  const std::int64_t windows = data::evaluation_windows(std::ssize(text), 16);
  EXPECT_EQ(result->bytes, windows * 16);
  torch::NoGradGuard no_grad;
  double sum = 0;
  for (std::int64_t i = 0; i < windows; ++i) {
    const auto tokens = data::evaluation_batch(text, i, 1, 16);
    const auto log_p = model->forward(tokens.narrow(1, 0, 16)).log_softmax(-1)[0];
    for (int j = 0; j < 16; ++j) {
      sum -= log_p[j][tokens[0][j + 1].item<std::int64_t>()].item<double>();
    }
  }
  EXPECT_NEAR(result->loss, sum / static_cast<double>(result->bytes), 1e-5);
  EXPECT_DOUBLE_EQ(result->bits_per_byte, result->loss / std::log(2.0));
}

TEST(Evaluation, SomeBatchesAreSpreadAndAlwaysTheSame) {
  const auto model = small_model();
  auto text = bytes_of(small_text(100));
  const auto result = evaluate(*model, text, 2, 3);
  EXPECT_EQ(result->bytes, 3 * 2 * 16);
  EXPECT_EQ(result->loss, evaluate(*model, text, 2, 3)->loss);
  std::fill(text.begin() + std::ssize(text) / 2, text.end(), 'x');
  EXPECT_NE(result->loss, evaluate(*model, text, 2, 3)->loss) << "the second half counts";
  EXPECT_EQ(evaluate(*model, text, 2, 100000)->bytes, evaluate(*model, text, 2, 0)->bytes);
}

TEST(Evaluation, LeavesTheModelAsItWas) {
  const auto model = small_model();
  const auto text = bytes_of(small_text(10));
  for (const bool training : {true, false}) {
    model->train(training);
    evaluate(*model, text, 2, 1);
    EXPECT_EQ(model->is_training(), training);
  }
  EXPECT_TRUE(at::GradMode::is_enabled());
}

TEST(Evaluation, StopsBetweenBatches) {
  const auto model = small_model();
  int polls = 0;
  EXPECT_FALSE(evaluate(*model, bytes_of(small_text(10)), 1, 5, [&] { return ++polls == 3; }));
  EXPECT_EQ(polls, 3);
}

TEST(Evaluation, RefusesATextWithoutAWindow) {
  EXPECT_THROW(evaluate(*small_model(), bytes_of("0123456789abcdef"), 1, 0), config::InputError);
}

}  // namespace
}  // namespace weir::train
