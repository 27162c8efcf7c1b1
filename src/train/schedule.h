// SPDX-License-Identifier: Apache-2.0
// The learning rate over a run: a linear rise, then half a cosine down.
//
//   step <= warmup_steps:  learning_rate * step / warmup_steps
//   later:  min + (learning_rate - min) * (1 + cos(pi * t)) / 2,
//           t = (step - warmup_steps) / (steps - warmup_steps)
#pragma once

#include <cstdint>

#include "train/options.h"
#include "weir/export.h"

namespace weir::train {

/// The learning rate of step 1, 2, ... `options.steps`; past the end that of the last step.
WEIR_API double learning_rate(const TrainOptions& options, std::int64_t step);

}  // namespace weir::train
