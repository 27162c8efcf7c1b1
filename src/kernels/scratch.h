// SPDX-License-Identifier: Apache-2.0
// Hands out aligned arrays from the bytes that a caller owns.
#pragma once

#include <cstddef>
#include <cstdint>

namespace weir::kernels {

/// Scratch rows are padded to whole blocks of this many elements, on every instruction set, so that
/// inner loops of up to four vectors need no tails.
constexpr std::size_t kBlock = 64;
constexpr std::size_t kAlignment = 64;
/// Floats in the widest vector of any instruction set.
constexpr std::size_t kMostLanes = 16;

constexpr std::size_t Padded(std::size_t count) { return (count + kBlock - 1) / kBlock * kBlock; }

class Scratch {
 public:
  explicit Scratch(std::byte* bytes) : next_(reinterpret_cast<std::uintptr_t>(bytes)) {}

  template <class T>
  T* take(std::size_t count) {
    next_ = (next_ + kAlignment - 1) / kAlignment * kAlignment;
    T* result = reinterpret_cast<T*>(next_);
    next_ += count * sizeof(T);
    return result;
  }

  /// Bytes that `take<T>(count)` may use up.
  template <class T>
  static constexpr std::size_t bytes(std::size_t count) {
    return count * sizeof(T) + kAlignment;
  }

 private:
  std::uintptr_t next_;
};

}  // namespace weir::kernels
