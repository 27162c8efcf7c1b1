// SPDX-License-Identifier: Apache-2.0
// Hard top-k with an answer that is the same on every run and machine.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace weir::nn {

/// Where the `k` largest of each row of `values` (..., cols) stand, k <= cols: int64 (..., k), by
/// descending value. Of equal values the smaller index is chosen, and comes first; NaN counts as
/// the largest. (at::topk leaves the order of equal values open.)
at::Tensor indices_of_largest(const at::Tensor& values, std::int64_t k);

}  // namespace weir::nn
