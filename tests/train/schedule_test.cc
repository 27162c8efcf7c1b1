// SPDX-License-Identifier: Apache-2.0
// The learning rate at the points where the formula is known.
#include "train/schedule.h"

#include <gtest/gtest.h>

namespace weir::train {
namespace {

const TrainOptions kOptions = {
    .steps = 110, .learning_rate = 1.0, .min_learning_rate = 0.2, .warmup_steps = 10};

TEST(Schedule, RisesThenFallsAlongACosine) {
  EXPECT_DOUBLE_EQ(learning_rate(kOptions, 1), 0.1);
  EXPECT_DOUBLE_EQ(learning_rate(kOptions, 5), 0.5);
  EXPECT_DOUBLE_EQ(learning_rate(kOptions, 10), 1.0);
  EXPECT_DOUBLE_EQ(learning_rate(kOptions, 35), 0.2 + 0.8 * (1 + 0.70710678118654752) / 2);
  EXPECT_DOUBLE_EQ(learning_rate(kOptions, 60), 0.6);
  EXPECT_DOUBLE_EQ(learning_rate(kOptions, 110), 0.2);
  EXPECT_DOUBLE_EQ(learning_rate(kOptions, 200), 0.2) << "past the end";
}

TEST(Schedule, NeverRisesAfterTheWarmUp) {
  for (std::int64_t step = 11; step <= 110; ++step) {
    EXPECT_LT(learning_rate(kOptions, step), learning_rate(kOptions, step - 1)) << step;
  }
}

TEST(Schedule, OnlyWarmUpOrNone) {
  TrainOptions options = kOptions;
  options.warmup_steps = 0;
  EXPECT_GT(learning_rate(options, 1), 0.99);
  options.warmup_steps = options.steps = 4;
  EXPECT_DOUBLE_EQ(learning_rate(options, 4), 1.0);
  options.warmup_steps = 8;
  EXPECT_DOUBLE_EQ(learning_rate(options, 4), 0.5);
}

}  // namespace
}  // namespace weir::train
