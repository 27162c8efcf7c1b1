// SPDX-License-Identifier: Apache-2.0
// Tokens of a batch by their positions, as rows of (batch * n, dim).
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>

#include <cstdint>

namespace weir::nn {

/// Rows of `positions` int64 (batch, k) of sequences of n: (batch, k). Those beyond the end are the
/// last token's.
inline at::Tensor rows_of(const at::Tensor& positions, std::int64_t n) {
  const at::Tensor first = at::arange(positions.size(0), positions.options()).unsqueeze(1) * n;
  return positions.clamp_max(n - 1) + first;
}

/// `x` (batch, n, dim) at `positions` (batch, k): (batch, k, dim).
inline at::Tensor tokens_at(const at::Tensor& x, const at::Tensor& positions) {
  return x.flatten(0, 1)
      .index_select(0, rows_of(positions, x.size(1)).flatten())
      .view({positions.size(0), positions.size(1), x.size(2)});
}

}  // namespace weir::nn
