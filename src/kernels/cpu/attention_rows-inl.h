// SPDX-License-Identifier: Apache-2.0
// Rows of queries, keys and values in scratch, and their products: what every attention kernel
// does.
#if defined(WEIR_KERNELS_CPU_ATTENTION_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_ATTENTION_ROWS_INL_H_
#undef WEIR_KERNELS_CPU_ATTENTION_ROWS_INL_H_
#else
#define WEIR_KERNELS_CPU_ATTENTION_ROWS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/matmul-inl.h"
#include "kernels/cpu/transpose-inl.h"
#include "kernels/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

HWY_INLINE std::size_t PaddedSize(std::int64_t count) {
  return Padded(static_cast<std::size_t>(count));
}

/// to[i] = from[i] * factor, `count` padded
template <class T>
HWY_INLINE void ScaleRow(const T* from, std::size_t padded, T factor, T* to) {
  const hn::ScalableTag<T> d;
  for (std::size_t i = 0; i < padded; i += hn::Lanes(d)) {
    hn::Store(hn::Mul(hn::Load(d, from + i), hn::Set(d, factor)), d, to + i);
  }
}

/// Whether no entry of `rows` rows is NaN or infinite; `columns` is a whole number of vectors.
template <class T>
HWY_INLINE bool AllFinite(const T* HWY_RESTRICT at, std::size_t rows, std::size_t step,
                          std::size_t columns) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  auto even = hn::Zero(d), odd = hn::Zero(d);  // sums of x * 0, which is 0 or NaN
  for (std::size_t r = 0; r < rows; ++r, at += step) {
    std::size_t i = 0;
    for (; i + 2 * lanes <= columns; i += 2 * lanes) {
      even = hn::MulAdd(hn::LoadU(d, at + i), hn::Zero(d), even);
      odd = hn::MulAdd(hn::LoadU(d, at + i + lanes), hn::Zero(d), odd);
    }
    if (i < columns) even = hn::MulAdd(hn::LoadU(d, at + i), hn::Zero(d), even);
  }
  return hn::AllFalse(d, hn::IsNaN(hn::Add(even, odd)));
}

/// Puts rows into a panel: row(r) gives row r of `rows`, padded, and zeros fill the last group.
template <class T, class Row>
HWY_INLINE void PackPanel(std::int64_t rows, std::int64_t count, const Row& row, T* panel) {
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  const auto depth = static_cast<std::size_t>((count + 3) / 4 * 4);
  const auto last = (static_cast<std::size_t>(rows) + lanes - 1) / lanes * lanes;
  std::fill_n(panel + (last - lanes) * depth, lanes * depth, T(0));
  for (std::size_t r = 0; r < static_cast<std::size_t>(rows); ++r) {
    PutPieces(row(r), r % lanes, depth, panel + r / lanes * lanes * depth);
  }
  for (std::size_t r = 0; r < last; r += lanes) TransposePieces(panel + r * depth, depth);
}

/// C += A B for what queries and keys exchange. Unless all is finite, a zero in A is a pair that is
/// not allowed: NaN in B must not meet it.
template <class T>
HWY_INLINE void AddProduct(bool finite, std::size_t rows, std::size_t columns, std::size_t depth,
                           const Left<T>& a, const Right<T>& b, const Product<T>& c) {
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  const std::size_t vectors = (columns + lanes - 1) / lanes;
  if (finite) {
    Multiply<true>(rows, vectors, depth, a, b, c);
  } else {
    MultiplyPresent(rows, vectors, depth, a, b, c);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_ATTENTION_ROWS_INL_H_
