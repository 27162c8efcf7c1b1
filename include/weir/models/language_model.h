// SPDX-License-Identifier: Apache-2.0
// What every language model of the library can do: logits of whole sequences for training, and
// steps with a cache for generation. Both give the same logits.
//
//   tokens (batch, n) int64 in [0, num_tokens)  ->  logits (batch, n, num_tokens)
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "weir/export.h"
#include "weir/models/cache.h"

namespace weir::models {

/// A causal model: the logits at a position depend on the tokens up to it and predict the next one.
class WEIR_API LanguageModel : public torch::nn::Module {
 public:
  using Module::Module;

  /// (batch, n) -> (batch, n, num_tokens). Throws c10::ValueError on tokens outside [0, num_tokens)
  /// and on n > max_length.
  virtual at::Tensor forward(const at::Tensor& tokens) = 0;

  /// An empty cache for `batch` rows.
  virtual Cache make_cache(std::int64_t batch) const = 0;

  /// Appends `tokens` (batch, m) to the rows of `cache`, each at its own length, and returns their
  /// logits (batch, m, num_tokens). Not differentiable. Throws like `forward`, and when a row is
  /// full.
  virtual at::Tensor step(const at::Tensor& tokens, Cache& cache) = 0;

  virtual std::int64_t max_length() const = 0;
  virtual std::int64_t num_tokens() const = 0;

  /// The name under which the registry, run files and checkpoints know this model.
  virtual std::string kind() const = 0;

  /// The options as a JSON object; with `kind`, all it takes to construct the model again.
  virtual std::string options_json() const = 0;

  /// A model of its own with equal options and weights. Only for kinds of the registry.
  std::shared_ptr<Module> clone(
      const std::optional<torch::Device>& device = std::nullopt) const override;

 protected:
  /// The checks of `forward` and `step`; `name` is the class in the message.
  void check_tokens(const char* name, const at::Tensor& tokens) const;
  void check_step(const char* name, const at::Tensor& tokens, const Cache& cache) const;

 private:
  void clone_(Module& other, const std::optional<torch::Device>& device) override;
};

}  // namespace weir::models
