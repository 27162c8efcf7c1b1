// SPDX-License-Identifier: Apache-2.0
// A module's parameters and buffers in one map.
#include "models/state_dict.h"

namespace weir::models {

TensorMap state_dict(const torch::nn::Module& module) {
  TensorMap tensors;
  for (const auto& item : module.named_parameters()) tensors[item.key()] = item.value();
  for (const auto& item : module.named_buffers()) tensors[item.key()] = item.value();
  return tensors;
}

}  // namespace weir::models
