// SPDX-License-Identifier: Apache-2.0
// The tolerances of all tests, by dtype, in one place. A test never invents its own.
#pragma once

namespace weir::tests {

/// Largest accepted |got - expected| / max(1, largest |expected|) of soft top-k weights, their sums
/// and gradients.
struct Tolerance {
  double weights;
  double gradients;
};

// The computation in float64 differs from the textbook only in the order of sums: a few hundred
// roundings.
inline constexpr Tolerance kFloat64 = {1e-12, 1e-12};
// float: an exponent (s - c) / eps of size 30 carries 30 * 2^-24 = 2e-6 into its exponential;
// gradients add up to n_iters such terms of both signs.
inline constexpr Tolerance kFloat32 = {5e-6, 2e-5};
// 16-bit types round once, on writing: half a unit in the last place of 8 (bfloat16) or 11
// (float16) bits.
inline constexpr Tolerance kBFloat16 = {3.91e-3, 3.91e-3};
inline constexpr Tolerance kFloat16 = {5.0e-4, 5.0e-4};
// Factor on the gradients of attention in 16-bit types: they subtract <grad, output> with the
// output as stored, whose roundings add up over value_dim and over the queries of a key;
// measured 2.5.
inline constexpr double kStoredOutput = 4;
// The same for the gradient of a bias, which adds up over all queries of a slot: there the true
// terms may cancel, and the roundings do not; measured 15.1.
inline constexpr double kStoredOutputBias = 16;
// Factor on kFloat32 where the logits too are computed in float: their rounding is divided by eps;
// measured 1.0 at eps 0.1.
inline constexpr double kComputedLogits = 4;
// What `exact` promises for the sum of a row, relative to its budget, in float.
inline constexpr double kExactSum = 1e-6;

}  // namespace weir::tests
