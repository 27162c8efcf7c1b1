// SPDX-License-Identifier: Apache-2.0
// The tensors that make up a module's state, by the names of the published state dicts.
#pragma once

#include <torch/nn/module.h>

#include "models/safetensors.h"
#include "weir/export.h"

namespace weir::models {

/// The parameters and buffers of `module` themselves, not copies.
WEIR_API TensorMap state_dict(const torch::nn::Module& module);

}  // namespace weir::models
