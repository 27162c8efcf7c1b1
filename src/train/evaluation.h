// SPDX-License-Identifier: Apache-2.0
// How well a model predicts a text: bits per byte = mean cross entropy / ln 2.
#pragma once

#include <cstdint>
#include <optional>
#include <span>

#include "train/stop_signals.h"
#include "weir/export.h"
#include "weir/models/language_model.h"

namespace weir::train {

struct Evaluation {
  double loss = 0;  ///< mean cross entropy, in nats
  double bits_per_byte = 0;
  std::int64_t bytes = 0;  ///< predicted bytes
};

/// Evaluates on `batches` batches of windows, spread evenly over `text` and always the same; on all
/// windows when `batches` is 0 or more than there are. Nothing when `stop` says so. Throws
/// config::InputError when `text` holds no window of model.max_length() + 1 bytes.
WEIR_API std::optional<Evaluation> evaluate(models::LanguageModel& model,
                                            std::span<const std::uint8_t> text,
                                            std::int64_t batch_size, std::int64_t batches,
                                            const StopCheck& stop = nullptr);

/// The mean cross entropy of `tokens` (batch, n + 1): each but the first, predicted from those
/// before it. A scalar, differentiable.
WEIR_API at::Tensor cross_entropy(models::LanguageModel& model, const at::Tensor& tokens);

}  // namespace weir::train
