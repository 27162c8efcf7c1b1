// SPDX-License-Identifier: Apache-2.0
// Queries, keys and values as attention kernels read them.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/attention_strides.h"

namespace weir::ops {

/// (batch, heads, positions, features), copied only if the features are not contiguous.
inline at::Tensor with_contiguous_features(const at::Tensor& x) {
  return x.size(-1) <= 1 || x.stride(-1) == 1 ? x : x.contiguous();
}

inline kernels::AttentionStrides attention_strides(const at::Tensor& x) {
  return {x.stride(0), x.stride(1), x.stride(2)};
}

}  // namespace weir::ops
