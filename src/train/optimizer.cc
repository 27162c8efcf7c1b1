// SPDX-License-Identifier: Apache-2.0
// torch keeps the state of an optimizer by the addresses of the tensors; this file gives it names.
#include "train/optimizer.h"

#include <ATen/ops/scalar_tensor.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/utils/clip_grad.h>

#include <limits>
#include <memory>
#include <set>

#include "config/error.h"

namespace weir::train {
namespace {

using torch::optim::AdamWOptions;
using torch::optim::AdamWParamState;
using torch::optim::OptimizerParamGroup;

std::set<const void*> embeddings(const torch::nn::Module& model) {
  std::set<const void*> weights;
  for (const auto& module : model.modules()) {
    if (const auto* embedding = module->as<torch::nn::Embedding>()) {
      weights.insert(embedding->weight.unsafeGetTensorImpl());
    }
  }
  return weights;
}

std::vector<OptimizerParamGroup> groups(const torch::nn::Module& model,
                                        const TrainOptions& options) {
  const auto exempt = embeddings(model);
  std::vector<at::Tensor> decayed, plain;
  for (const at::Tensor& parameter : model.parameters()) {
    const bool decays = parameter.dim() >= 2 && !exempt.contains(parameter.unsafeGetTensorImpl());
    (decays ? decayed : plain).push_back(parameter);
  }
  const auto with_decay = [&](double decay) {
    return std::make_unique<AdamWOptions>(AdamWOptions(options.learning_rate)
                                              .betas({options.beta1, options.beta2})
                                              .eps(options.adam_eps)
                                              .weight_decay(decay));
  };
  std::vector<OptimizerParamGroup> result;
  result.emplace_back(std::move(decayed), with_decay(options.weight_decay));
  result.emplace_back(std::move(plain), with_decay(0));
  return result;
}

std::vector<std::pair<std::string, at::Tensor>> named(const torch::nn::Module& model) {
  std::vector<std::pair<std::string, at::Tensor>> parameters;
  for (const auto& item : model.named_parameters())
    parameters.emplace_back(item.key(), item.value());
  return parameters;
}

// The entry `key`, fit for a parameter of these sizes; an undefined tensor when there is none.
at::Tensor entry(const models::TensorMap& state, const std::string& key, at::IntArrayRef sizes,
                 at::ScalarType dtype, const std::string& source) {
  const auto found = state.find(key);
  if (found == state.end()) return {};
  const at::Tensor& tensor = found->second;
  if (tensor.sizes() == sizes && tensor.scalar_type() == dtype) return tensor;
  throw config::InputError(source + ": tensor `" + key +
                           "` does not fit the shape and dtype of its parameter");
}

std::unique_ptr<AdamWParamState> read_state(const models::TensorMap& state, const std::string& name,
                                            const at::Tensor& parameter,
                                            const std::string& source) {
  const auto dtype = parameter.scalar_type();
  const auto average = entry(state, "exp_avg." + name, parameter.sizes(), dtype, source);
  const auto square = entry(state, "exp_avg_sq." + name, parameter.sizes(), dtype, source);
  const auto step = entry(state, "step." + name, {}, at::kLong, source);
  if (!average.defined() && !square.defined() && !step.defined()) return nullptr;
  if (!average.defined() || !square.defined() || !step.defined()) {
    throw config::InputError(source + ": the state of parameter `" + name + "` is incomplete");
  }
  auto result = std::make_unique<AdamWParamState>();
  result->exp_avg(average.clone());
  result->exp_avg_sq(square.clone());
  result->step(step.item<std::int64_t>());
  return result;
}

}  // namespace

Optimizer::Optimizer(const torch::nn::Module& model, const TrainOptions& options)
    : parameters_(named(model)),
      clip_(options.clip > 0 ? options.clip : std::numeric_limits<double>::infinity()),
      adamw_(groups(model, options), AdamWOptions()) {}

double Optimizer::clip_gradients() {
  std::vector<at::Tensor> tensors;
  for (const auto& [name, parameter] : parameters_) tensors.push_back(parameter);
  return torch::nn::utils::clip_grad_norm_(tensors, clip_);
}

void Optimizer::step(double learning_rate) {
  for (auto& group : adamw_.param_groups()) group.options().set_lr(learning_rate);
  adamw_.step();
}

models::TensorMap Optimizer::state() const {
  models::TensorMap result;
  for (const auto& [name, parameter] : parameters_) {
    const auto found = adamw_.state().find(parameter.unsafeGetTensorImpl());
    if (found == adamw_.state().end()) continue;
    const auto& entry = static_cast<const AdamWParamState&>(*found->second);
    result["exp_avg." + name] = entry.exp_avg();
    result["exp_avg_sq." + name] = entry.exp_avg_sq();
    result["step." + name] = at::scalar_tensor(entry.step(), at::kLong);
  }
  return result;
}

void Optimizer::load_state(const models::TensorMap& state, const std::string& source) {
  std::vector<std::pair<void*, std::unique_ptr<AdamWParamState>>> entries;
  for (const auto& [name, parameter] : parameters_) {
    auto entry = read_state(state, name, parameter, source);
    if (entry) entries.emplace_back(parameter.unsafeGetTensorImpl(), std::move(entry));
  }
  if (state.size() != 3 * entries.size()) {
    throw config::InputError(source + ": expected the state of " + std::to_string(entries.size()) +
                             " parameters and nothing else, but got " +
                             std::to_string(state.size()) + " tensors");
  }
  adamw_.state().clear();
  for (auto& [key, entry] : entries) adamw_.state()[key] = std::move(entry);
}

}  // namespace weir::train
