// SPDX-License-Identifier: Apache-2.0
// AdamW over the parameters of a model, with a state that can be saved under the parameters' names.
// Weight decay applies to matrices, not to biases, norms and embeddings: the usual choice since
// GPT-2, as the latter have no scale to lose.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>
#include <torch/optim/adamw.h>

#include <string>
#include <utility>
#include <vector>

#include "models/safetensors.h"
#include "train/options.h"
#include "weir/export.h"

namespace weir::train {

class WEIR_API Optimizer {
 public:
  /// For the parameters that `model` has now; it must not get others.
  Optimizer(const torch::nn::Module& model, const TrainOptions& options);

  void zero_gradients() { adamw_.zero_grad(); }

  /// Scales the gradients so that their common norm is at most `options.clip`; returns the norm
  /// they had, which is not finite if one of them is not.
  double clip_gradients();

  void step(double learning_rate);

  /// exp_avg.<parameter>, exp_avg_sq.<parameter> and, int64, step.<parameter>, for each parameter
  /// that was updated. The tensors are those in use, not copies.
  models::TensorMap state() const;

  /// Takes over what `state` returned. Throws config::InputError, naming `source`, on names, shapes
  /// and dtypes that do not fit.
  void load_state(const models::TensorMap& state, const std::string& source);

 private:
  std::vector<std::pair<std::string, at::Tensor>> parameters_;
  double clip_;
  torch::optim::AdamW adamw_;
};

}  // namespace weir::train
