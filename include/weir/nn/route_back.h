// SPDX-License-Identifier: Apache-2.0
// Puts what was computed for routed tokens back at their places.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "weir/export.h"

namespace weir::nn {

/// `src` (..., n, dim) with row `indices[..., i]` overwritten by `tokens[..., i, :]`: a new tensor
/// of the shape and dtype of `src`. Leading sizes are equal, none or several: (batch), (batch,
/// routes).
///
/// `tokens` (..., k, dim) may be of another floating dtype, as under autocast; `indices` (..., k)
/// is int64, each at most once in a row. Entries with an index outside [0, n), which is how a
/// router marks fillers, are dropped, and so are those whose `mask` (bool, (..., k)) is false.
/// Gradients: overwritten rows go to `tokens`, the others to `src`. Throws c10::Error on shapes and
/// dtypes that do not fit.
WEIR_API at::Tensor route_back(const at::Tensor& src, const at::Tensor& tokens,
                               const at::Tensor& indices,
                               const std::optional<at::Tensor>& mask = std::nullopt);

}  // namespace weir::nn
