// SPDX-License-Identifier: Apache-2.0
// One step of training: gradients of some micro-batches, clipping, an update by AdamW. It knows
// nothing of files, and everything it does follows from the model, the optimizer's state and the
// number of the step.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "train/optimizer.h"
#include "train/options.h"
#include "train/stop_signals.h"
#include "weir/export.h"
#include "weir/models/language_model.h"

namespace weir::train {

struct StepResult {
  double loss = 0;       ///< mean cross entropy of the step's text, in nats
  double grad_norm = 0;  ///< before clipping
  double learning_rate = 0;
  bool skipped = false;  ///< loss or grad_norm is not finite; the weights are as they were
};

class WEIR_API Learner {
 public:
  /// Keeps a reference to `text`.
  Learner(std::shared_ptr<models::LanguageModel> model, std::span<const std::uint8_t> text,
          const TrainOptions& options);

  /// Step 1, 2, ... Nothing, and the weights are as they were, when `stop` says so in between.
  std::optional<StepResult> step(std::int64_t step, const StopCheck& stop = nullptr);

  models::LanguageModel& model() { return *model_; }
  Optimizer& optimizer() { return optimizer_; }

 private:
  double add_gradients(std::int64_t step, std::int64_t micro_batch);

  std::shared_ptr<models::LanguageModel> model_;
  std::span<const std::uint8_t> text_;
  TrainOptions options_;
  Optimizer optimizer_;
};

}  // namespace weir::train
