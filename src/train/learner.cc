// SPDX-License-Identifier: Apache-2.0
// The step of training.
#include "train/learner.h"

#include <torch/utils.h>

#include <cmath>
#include <utility>

#include "data/sampler.h"
#include "train/evaluation.h"
#include "train/schedule.h"
#include "train/vector_math.h"

namespace weir::train {
namespace {

// Far from the indices of sequences, which count up from 0.
constexpr std::uint64_t kGeneratorIndex = ~std::uint64_t{0};

}  // namespace

Learner::Learner(std::shared_ptr<models::LanguageModel> model, std::span<const std::uint8_t> text,
                 const TrainOptions& options)
    : model_(std::move(model)), text_(text), options_(options), optimizer_(*model_, options) {
  resolve_vector_math();
}

std::optional<StepResult> Learner::step(std::int64_t step, const StopCheck& stop) {
  model_->train();
  optimizer_.zero_gradients();
  // What a model draws, for dropout say, follows from the step too: no generator is to be saved.
  torch::manual_seed(data::mix(static_cast<std::uint64_t>(options_.seed),
                               static_cast<std::uint64_t>(step), kGeneratorIndex));
  StepResult result;
  for (std::int64_t i = 0; i < options_.accumulate; ++i) {
    if (stop && stop()) return std::nullopt;
    result.loss += add_gradients(step, i) / static_cast<double>(options_.accumulate);
  }
  result.grad_norm = optimizer_.clip_gradients();
  result.learning_rate = learning_rate(options_, step);
  result.skipped = !std::isfinite(result.loss) || !std::isfinite(result.grad_norm);
  if (!result.skipped) optimizer_.step(result.learning_rate);
  return result;
}

double Learner::add_gradients(std::int64_t step, std::int64_t micro_batch) {
  const at::Tensor tokens =
      data::batch(text_, static_cast<std::uint64_t>(options_.seed), step,
                  micro_batch * options_.batch_size, options_.batch_size, model_->max_length());
  const at::Tensor loss = cross_entropy(*model_, tokens);
  (loss / static_cast<double>(options_.accumulate)).backward();
  return loss.item<double>();
}

}  // namespace weir::train
