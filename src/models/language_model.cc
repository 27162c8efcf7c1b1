// SPDX-License-Identifier: Apache-2.0
// What language models share: the checks of their input, and cloning through the registry.
#include "weir/models/language_model.h"

#include <torch/utils.h>

#include "config/document.h"
#include "models/registry.h"
#include "models/state_dict.h"

namespace weir::models {
namespace {

void copy_state(const torch::nn::Module& from, const torch::nn::Module& to,
                const std::optional<torch::Device>& device) {
  torch::NoGradGuard no_grad;
  TensorMap targets = state_dict(to);
  for (const auto& [name, source] : state_dict(from)) {
    at::Tensor& target = targets.at(name);
    target.set_data(source.to(device.value_or(source.device()), source.scalar_type(),
                              /*non_blocking=*/false, /*copy=*/true));
    target.set_requires_grad(source.requires_grad());
  }
}

}  // namespace

// torch's Cloneable needs the concrete type as a template argument, which would make it a second
// torch::nn::Module beside this one.
std::shared_ptr<torch::nn::Module> LanguageModel::clone(
    const std::optional<torch::Device>& device) const {
  auto copy = make_language_model(kind(), config::parse_json(options_json(), kind()));
  copy_state(*this, *copy, device);
  copy->train(is_training());
  return copy;
}

void LanguageModel::clone_(Module& other, const std::optional<torch::Device>& device) {
  copy_state(other, *this, device);
}

void LanguageModel::check_tokens(const char* name, const at::Tensor& tokens) const {
  TORCH_CHECK_TYPE(tokens.scalar_type() == at::kLong, "weir::", name,
                   ": expected `tokens` to be int64, but got ", tokens.scalar_type(), ".");
  TORCH_CHECK_VALUE(tokens.dim() == 2, "weir::", name,
                    ": expected `tokens` to have shape [batch, n], but got ", tokens.sizes(), ".");
  TORCH_CHECK_VALUE(tokens.size(1) <= max_length(), "weir::", name, ": expected at most ",
                    max_length(), " tokens per row, but got ", tokens.size(1), ".");
  if (tokens.numel() == 0) return;
  const auto [least, largest] = tokens.aminmax();
  const std::int64_t wrong =
      least.item<std::int64_t>() < 0 ? least.item<std::int64_t>() : largest.item<std::int64_t>();
  TORCH_CHECK_VALUE(wrong >= 0 && wrong < num_tokens(), "weir::", name,
                    ": expected `tokens` in [0, ", num_tokens(), "), but got ", wrong, ".");
}

void LanguageModel::check_step(const char* name, const at::Tensor& tokens,
                               const Cache& cache) const {
  check_tokens(name, tokens);
  TORCH_CHECK_VALUE(tokens.size(0) == cache.batch(), "weir::", name,
                    ": expected one row of `tokens` per row of `cache`, ", cache.batch(),
                    ", but got ", tokens.size(0), ".");
}

}  // namespace weir::models
