// SPDX-License-Identifier: Apache-2.0
// Queries, keys and values as attention kernels read them, and gradients as they leave them.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include "kernels/attention_strides.h"

namespace weir::ops {

/// (batch, heads, positions, features), copied only if the features are not contiguous.
inline at::Tensor with_contiguous_features(const at::Tensor& x) {
  return x.size(-1) <= 1 || x.stride(-1) == 1 ? x : x.contiguous();
}

inline kernels::AttentionStrides attention_strides(const at::Tensor& x) {
  return {x.stride(0), x.stride(1), x.stride(2)};
}

/// The gradient of `like`, keys or values, from parts (parts, ...) whose rows are whole vectors.
inline at::Tensor sum_of_parts(const at::Tensor& parts, const at::Tensor& like) {
  const at::Tensor sum = parts.size(0) == 1 ? parts.squeeze(0) : parts.sum(0);
  if (sum.sizes() == like.sizes() && sum.scalar_type() == like.scalar_type()) return sum;
  // Into strides that Meta says: contiguous() leaves a single row those of its padding.
  return at::empty(like.sizes(), like.options()).copy_(sum.narrow(-1, 0, like.size(-1)));
}

}  // namespace weir::ops
