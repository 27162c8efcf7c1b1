// SPDX-License-Identifier: Apache-2.0
// How queries, keys and values lie in memory.
#pragma once

#include <cstdint>

namespace weir::kernels {

/// Strides in elements of (batch, heads, positions); the last axis is contiguous.
struct AttentionStrides {
  std::int64_t batch = 0, head = 0, position = 0;
};

}  // namespace weir::kernels
