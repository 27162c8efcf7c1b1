// SPDX-License-Identifier: Apache-2.0
// What one pass of coordinate descent costs at best: sum_j exp(min(x_j - c, 0) / eps) of a row in
// L1.
#pragma once

#include <cstddef>

namespace weir::benchmarks {

/// `x` is aligned to 64 bytes, `count` a multiple of 64.
double exponential_pass(const float* x, std::size_t count, double c, double eps);

/// Seconds per element of that pass, while all of `threads` threads run it: what the operator could
/// reach.
double exponential_ceiling(int threads);

}  // namespace weir::benchmarks
