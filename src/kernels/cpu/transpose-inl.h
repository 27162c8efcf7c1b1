// SPDX-License-Identifier: Apache-2.0
// As many rows as a vector has lanes, transposed: entry j of all rows stands together.
#if defined(WEIR_KERNELS_CPU_TRANSPOSE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_TRANSPOSE_INL_H_
#undef WEIR_KERNELS_CPU_TRANSPOSE_INL_H_
#else
#define WEIR_KERNELS_CPU_TRANSPOSE_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Rows enter and leave a transposed group in pieces of 16 bytes: piece j of row 4 b + i is block b
// of vector 4 j + i. Transposing each block of four such vectors among themselves (two for double)
// then puts entry 4 j + i of all rows into vector 4 j + i, and back.
#if HWY_TARGET == HWY_SCALAR
template <class T>
constexpr std::size_t kPiece = 1;
#else
template <class T>
constexpr std::size_t kPiece = 16 / sizeof(T);
#endif

/// Row `lane` of the group, as pieces. `row` is padded.
template <class T>
HWY_INLINE void PutPieces(const T* HWY_RESTRICT row, std::size_t lane, std::size_t cols,
                          T* HWY_RESTRICT group) {
  constexpr std::size_t kSize = kPiece<T>;
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  T* HWY_RESTRICT to = group + lane % kSize * lanes + lane / kSize * kSize;
  for (std::size_t j = 0; j < cols; j += kSize) std::copy_n(row + j, kSize, to + j * lanes);
}

template <class T>
HWY_INLINE void TakePieces(const T* HWY_RESTRICT group, std::size_t lane, std::size_t cols,
                           T* HWY_RESTRICT row) {
  constexpr std::size_t kSize = kPiece<T>;
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  const T* HWY_RESTRICT from = group + lane % kSize * lanes + lane / kSize * kSize;
  for (std::size_t j = 0; j < cols; j += kSize) std::copy_n(from + j * lanes, kSize, row + j);
}

/// Pieces to lanes and, the same function, lanes to pieces.
template <class T>
HWY_INLINE void TransposePieces(T* HWY_RESTRICT group, std::size_t cols) {
#if HWY_TARGET != HWY_SCALAR
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  for (std::size_t j = 0; j < cols; j += kPiece<T>) {
    T* HWY_RESTRICT p = group + j * lanes;
    const auto v0 = hn::Load(d, p), v1 = hn::Load(d, p + lanes);
    if constexpr (kPiece<T> == 2) {
      hn::Store(hn::InterleaveLower(d, v0, v1), d, p);
      hn::Store(hn::InterleaveUpper(d, v0, v1), d, p + lanes);
    } else {
      const auto v2 = hn::Load(d, p + 2 * lanes), v3 = hn::Load(d, p + 3 * lanes);
      const auto low02 = hn::InterleaveLower(d, v0, v2), low13 = hn::InterleaveLower(d, v1, v3);
      const auto up02 = hn::InterleaveUpper(d, v0, v2), up13 = hn::InterleaveUpper(d, v1, v3);
      hn::Store(hn::InterleaveLower(d, low02, low13), d, p);
      hn::Store(hn::InterleaveUpper(d, low02, low13), d, p + lanes);
      hn::Store(hn::InterleaveLower(d, up02, up13), d, p + 2 * lanes);
      hn::Store(hn::InterleaveUpper(d, up02, up13), d, p + 3 * lanes);
    }
  }
#else
  (void)group, (void)cols;
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_TRANSPOSE_INL_H_
