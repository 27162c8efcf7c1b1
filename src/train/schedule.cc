// SPDX-License-Identifier: Apache-2.0
// A function of the step alone, so that resuming needs no state.
#include "train/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace weir::train {

double learning_rate(const TrainOptions& options, std::int64_t step) {
  const auto at = static_cast<double>(step), warmup = static_cast<double>(options.warmup_steps);
  if (step <= options.warmup_steps) return options.learning_rate * at / warmup;
  const double t = std::min(1.0, (at - warmup) / (static_cast<double>(options.steps) - warmup));
  const double cosine = (1 + std::cos(std::numbers::pi * t)) / 2;
  return options.min_learning_rate + (options.learning_rate - options.min_learning_rate) * cosine;
}

}  // namespace weir::train
