// SPDX-License-Identifier: Apache-2.0
// Checks of arguments that several operators have in common. `op` is the operator's public name,
// for the message.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace weir::ops {

/// Whether a tensor of `shape` broadcasts to `target` without making it larger.
bool broadcasts_to(c10::SymIntArrayRef shape, c10::SymIntArrayRef target);

/// `scores`: floating point, at least one dimension.
void check_scores(const char* op, const at::Tensor& scores);

/// `mask`: bool (true = keep), broadcasts to `scores`, on its device.
void check_mask(const char* op, const at::Tensor& scores, const std::optional<at::Tensor>& mask);

}  // namespace weir::ops
