// SPDX-License-Identifier: Apache-2.0
// Which attention weights are dropped: a hash of (seed, head, query, key), so that the backward
// draws the same numbers and nothing is stored.
#pragma once

#include <cstdint>

namespace weir::kernels {

constexpr std::uint32_t kMix1 = 0x7feb352d, kMix2 = 0x846ca68b;  // C. Wellons, "lowbias32"
constexpr std::uint32_t kHeads = 0x9e3779b9, kColumns = 0x9e3779b1;

/// 32 well-mixed bits of 32.
constexpr std::uint32_t mix32(std::uint32_t x) {
  x = (x ^ x >> 16) * kMix1;
  x = (x ^ x >> 15) * kMix2;
  return x ^ x >> 16;
}

/// `head` counts batch * heads.
constexpr std::uint32_t dropout_head(std::uint64_t seed, std::int64_t head) {
  const auto low = static_cast<std::uint32_t>(seed), high = static_cast<std::uint32_t>(seed >> 32);
  return mix32(mix32(low ^ static_cast<std::uint32_t>(head) * kHeads) + high);
}
constexpr std::uint32_t dropout_row(std::uint32_t head, std::int64_t query) {
  return mix32(head ^ static_cast<std::uint32_t>(query));
}
constexpr std::uint32_t dropout_bits(std::uint32_t row, std::int64_t key) {
  return mix32(row + static_cast<std::uint32_t>(key) * kColumns);
}

/// Weights whose bits lie below it are dropped.
constexpr std::uint32_t dropout_threshold(double dropout) {
  return static_cast<std::uint32_t>(dropout * 4294967296.0);
}

}  // namespace weir::kernels
