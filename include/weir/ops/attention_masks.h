// SPDX-License-Identifier: Apache-2.0
// The masks of an attention operator.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace weir::ops {

/// bool, true = keep.
struct AttentionMasks {
  std::optional<at::Tensor> key_mask = std::nullopt;  ///< (batch, m)
  std::optional<at::Tensor> mask = std::nullopt;      ///< broadcasts to (batch, heads, n, m)
};

}  // namespace weir::ops
