// SPDX-License-Identifier: Apache-2.0
// What a training run is told: the table [train] of a run file. The defaults suit a byte-level
// model of a few million weights on two cores.
#pragma once

#include <cstdint>

#include "weir/export.h"

namespace weir::train {

struct TrainOptions {
  std::int64_t steps = 1000;
  std::int64_t batch_size = 8;
  std::int64_t accumulate = 1;
  double learning_rate = 1e-3;
  double min_learning_rate = 1e-4;
  std::int64_t warmup_steps = 50;
  double weight_decay = 0.1;
  double beta1 = 0.9;
  double beta2 = 0.99;
  double adam_eps = 1e-8;
  double clip = 1.0;
  std::int64_t seed = 1;
  std::int64_t eval_every = 100;
  std::int64_t eval_batches = 16;
  std::int64_t save_every = 100;
  std::int64_t keep_last = 2;
  std::int64_t log_every = 10;
  std::int64_t max_nan_steps = 10;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = TrainOptions;
    field("steps", &Self::steps, "Updates of the weights in the whole run.");
    field("batch_size", &Self::batch_size, "Sequences that are read at a time.");
    field("accumulate", &Self::accumulate, "Batches whose gradients are averaged for one update.");
    field("learning_rate", &Self::learning_rate, "Highest learning rate, after the warm-up.");
    field("min_learning_rate", &Self::min_learning_rate, "Learning rate of the last step.");
    field("warmup_steps", &Self::warmup_steps, "Steps in which the learning rate rises.");
    field("weight_decay", &Self::weight_decay,
          "AdamW's decay of matrices; biases, norms and embeddings have none.");
    field("beta1", &Self::beta1, "AdamW's memory of the gradient.");
    field("beta2", &Self::beta2, "AdamW's memory of its square.");
    field("adam_eps", &Self::adam_eps, "AdamW's guard against division by zero.");
    field("clip", &Self::clip, "Largest norm of the whole gradient; 0: no limit.");
    field("seed", &Self::seed, "Seed of the first weights and of the order of the text.");
    field("eval_every", &Self::eval_every, "Steps between evaluations on held-out text; 0: none.");
    field("eval_batches", &Self::eval_batches,
          "Batches per evaluation, spread over the held-out text; 0: all of it.");
    field("save_every", &Self::save_every, "Steps between checkpoints; 0: only the last.");
    field("keep_last", &Self::keep_last, "Checkpoints to keep; 0: all.");
    field("log_every", &Self::log_every, "Steps between lines of progress; 0: none.");
    field("max_nan_steps", &Self::max_nan_steps,
          "Stop after so many steps in a row whose loss or gradient is not finite.");
  }
};

/// Throws config::Error on an option out of range.
WEIR_API void check(const TrainOptions& options);

}  // namespace weir::train
