// SPDX-License-Identifier: Apache-2.0
// The ranges of the options.
#include "train/options.h"

#include <sstream>
#include <string>

#include "config/error.h"

namespace weir::train {
namespace {

template <class T>
void require(bool holds, const char* key, const char* range, T value) {
  if (holds) return;
  std::ostringstream message;
  message << "train: expected `" << key << "` to be " << range << ", but got " << value << ".";
  throw config::Error(message.str());
}

void at_least(const char* key, std::int64_t value, std::int64_t least) {
  require(value >= least, key, ("at least " + std::to_string(least)).c_str(), value);
}

}  // namespace

void check(const TrainOptions& options) {
  at_least("steps", options.steps, 1);
  at_least("batch_size", options.batch_size, 1);
  at_least("accumulate", options.accumulate, 1);
  at_least("warmup_steps", options.warmup_steps, 0);
  at_least("eval_every", options.eval_every, 0);
  at_least("eval_batches", options.eval_batches, 0);
  at_least("save_every", options.save_every, 0);
  at_least("keep_last", options.keep_last, 0);
  at_least("log_every", options.log_every, 0);
  at_least("max_nan_steps", options.max_nan_steps, 1);
  require(options.learning_rate > 0, "learning_rate", "positive", options.learning_rate);
  require(options.min_learning_rate >= 0 && options.min_learning_rate <= options.learning_rate,
          "min_learning_rate", "between 0 and `learning_rate`", options.min_learning_rate);
  require(options.weight_decay >= 0, "weight_decay", "at least 0", options.weight_decay);
  require(options.beta1 >= 0 && options.beta1 < 1, "beta1", "in [0, 1)", options.beta1);
  require(options.beta2 >= 0 && options.beta2 < 1, "beta2", "in [0, 1)", options.beta2);
  require(options.adam_eps > 0, "adam_eps", "positive", options.adam_eps);
  require(options.clip >= 0, "clip", "at least 0", options.clip);
}

}  // namespace weir::train
