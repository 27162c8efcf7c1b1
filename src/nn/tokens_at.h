// SPDX-License-Identifier: Apache-2.0
// Tokens of a batch by their positions, as rows of (batch * n, dim).
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/embedding.h>

#include <cstdint>
#include <vector>

namespace weir::nn {

/// Rows of `positions` int64 (batch, ...) of sequences of n: the same shape. Those beyond the end
/// are the last token's.
inline at::Tensor rows_of(const at::Tensor& positions, std::int64_t n) {
  std::vector<std::int64_t> shape(static_cast<std::size_t>(positions.dim()), 1);
  shape[0] = positions.size(0);
  const at::Tensor first = at::arange(positions.size(0), positions.options()).view(shape) * n;
  return positions.clamp_max(n - 1) + first;
}

/// `x` (batch, n, dim) at `positions` (batch, ...): (batch, ..., dim).
inline at::Tensor tokens_at(const at::Tensor& x, const at::Tensor& positions) {
  // index_select has the same result; its gradient takes four times as long.
  return at::embedding(x.flatten(0, 1), rows_of(positions, x.size(1)));
}

}  // namespace weir::nn
