// SPDX-License-Identifier: Apache-2.0
// The loss, and its mean over held-out text.
#include "train/evaluation.h"

#include <torch/nn/functional/loss.h>

#include <algorithm>
#include <numbers>

#include "data/sampler.h"

namespace weir::train {
namespace {

class EvaluationMode {
 public:
  explicit EvaluationMode(torch::nn::Module& module)
      : module_(module), training_(module.is_training()) {
    module.eval();
  }
  ~EvaluationMode() { module_.train(training_); }
  EvaluationMode(const EvaluationMode&) = delete;
  EvaluationMode& operator=(const EvaluationMode&) = delete;

 private:
  torch::nn::Module& module_;
  bool training_;
  at::NoGradGuard no_grad_;
};

}  // namespace

at::Tensor cross_entropy(models::LanguageModel& model, const at::Tensor& tokens) {
  const std::int64_t n = tokens.size(1) - 1;
  const at::Tensor logits = model.forward(tokens.narrow(1, 0, n));  // (batch, n, num_tokens)
  return torch::nn::functional::cross_entropy(logits.flatten(0, 1),
                                              tokens.narrow(1, 1, n).flatten());
}

std::optional<Evaluation> evaluate(models::LanguageModel& model, std::span<const std::uint8_t> text,
                                   std::int64_t batch_size, std::int64_t batches,
                                   const StopCheck& stop) {
  const EvaluationMode mode(model);
  const std::int64_t length = model.max_length();
  const auto windows = data::evaluation_windows(static_cast<std::int64_t>(text.size()), length);
  const std::int64_t all = (windows + batch_size - 1) / batch_size;
  // Without a window one batch is asked for, which the sampler refuses with its message.
  const std::int64_t count = std::max<std::int64_t>(batches == 0 ? all : std::min(batches, all), 1);
  Evaluation result;
  double sum = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    if (stop && stop()) return std::nullopt;
    const std::int64_t first = count == all ? i * batch_size : i * windows / count;
    const at::Tensor tokens = data::evaluation_batch(text, first, batch_size, length);
    const std::int64_t bytes = tokens.size(0) * length;
    sum += cross_entropy(model, tokens).item<double>() * static_cast<double>(bytes);
    result.bytes += bytes;
  }
  result.loss = sum / static_cast<double>(result.bytes);
  result.bits_per_byte = result.loss / std::numbers::ln2;
  return result;
}

}  // namespace weir::train
