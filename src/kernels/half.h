// SPDX-License-Identifier: Apache-2.0
// The 16-bit floating point types as kernels see them: bits to be read and written, never computed
// with.
#pragma once

#include <bit>
#include <cstdint>

namespace weir::kernels {

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

/// For instruction sets without a conversion; Highway's emulation truncates instead of rounding.
inline float to_float(Float16 value) {
  const std::uint32_t magnitude = value.bits & 0x7FFFu, sign = (value.bits & 0x8000u) << 16;
  const float scaled = std::bit_cast<float>(magnitude << 13) * 0x1p112f;  // exponent bias 15 to 127
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(scaled);
  const bool special = magnitude >= 0x7C00u;  // infinity and NaN
  return std::bit_cast<float>((special ? bits | 0x7F800000u : bits) | sign);
}

/// Nearest, ties to even; overflow is infinity.
inline Float16 to_float16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t magnitude = bits & 0x7FFFFFFFu, sign = bits >> 16 & 0x8000u;
  std::uint32_t half = 0;
  if (magnitude > 0x7F800000u) {
    half = 0x7E00u;
  } else if (magnitude >= 0x477FF000u) {  // 65520 and above
    half = 0x7C00u;
  } else if (magnitude < 0x38800000u) {  // denormal result: adding 1/2 rounds at the right bit
    half = std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3F000000u;
  } else {
    half = (magnitude - (112u << 23) + 0xFFFu + (magnitude >> 13 & 1u)) >> 13;
  }
  return {static_cast<std::uint16_t>(half | sign)};
}

}  // namespace weir::kernels
