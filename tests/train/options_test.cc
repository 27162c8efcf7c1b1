// SPDX-License-Identifier: Apache-2.0
// The defaults pass, and every range has its message.
#include "train/options.h"

#include <gtest/gtest.h>

#include "config/error.h"

namespace weir::train {
namespace {

void refuses(const TrainOptions& options, const std::string& words) {
  try {
    check(options);
    ADD_FAILURE() << "not refused: " << words;
  } catch (const config::Error& error) {
    EXPECT_EQ(std::string(error.what()), "train: expected " + words);
  }
}

TEST(TrainOptions, DefaultsPass) { check({}); }

TEST(TrainOptions, RefusesWhatIsOutOfRange) {
  refuses({.steps = 0}, "`steps` to be at least 1, but got 0.");
  refuses({.batch_size = 0}, "`batch_size` to be at least 1, but got 0.");
  refuses({.accumulate = 0}, "`accumulate` to be at least 1, but got 0.");
  refuses({.learning_rate = 0}, "`learning_rate` to be positive, but got 0.");
  refuses({.learning_rate = 0.1, .min_learning_rate = 0.2},
          "`min_learning_rate` to be between 0 and `learning_rate`, but got 0.2.");
  refuses({.warmup_steps = -1}, "`warmup_steps` to be at least 0, but got -1.");
  refuses({.weight_decay = -0.1}, "`weight_decay` to be at least 0, but got -0.1.");
  refuses({.beta1 = 1}, "`beta1` to be in [0, 1), but got 1.");
  refuses({.beta2 = -1}, "`beta2` to be in [0, 1), but got -1.");
  refuses({.adam_eps = 0}, "`adam_eps` to be positive, but got 0.");
  refuses({.clip = -1}, "`clip` to be at least 0, but got -1.");
  refuses({.eval_every = -1}, "`eval_every` to be at least 0, but got -1.");
  refuses({.eval_batches = -1}, "`eval_batches` to be at least 0, but got -1.");
  refuses({.save_every = -1}, "`save_every` to be at least 0, but got -1.");
  refuses({.keep_last = -1}, "`keep_last` to be at least 0, but got -1.");
  refuses({.log_every = -1}, "`log_every` to be at least 0, but got -1.");
  refuses({.max_nan_steps = 0}, "`max_nan_steps` to be at least 1, but got 0.");
}

}  // namespace
}  // namespace weir::train
