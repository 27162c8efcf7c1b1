// SPDX-License-Identifier: Apache-2.0
// Products of small matrices in registers: C (+)= A B, entries of A broadcast, rows of B as
// vectors. B and C have whole vectors per row; what stands behind their last column may be
// anything.
#if defined(WEIR_KERNELS_CPU_MATMUL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_MATMUL_INL_H_
#undef WEIR_KERNELS_CPU_MATMUL_INL_H_
#else
#define WEIR_KERNELS_CPU_MATMUL_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <type_traits>

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// A(r, k) = at[r * row + k * column]
template <class T>
struct Left {
  const T* at = nullptr;
  std::size_t row = 0, column = 1;
};

/// Vector n of row k = at[k * row + n * vector]
template <class T>
struct Right {
  const T* at = nullptr;
  std::size_t row = 0, vector = 0;
};

template <class T>
struct Product {
  T* at = nullptr;
  std::size_t row = 0;
};

// Sums of C per pass, rows times vectors: up to 24 of 32 registers, 8 of 16, enough to hide the
// latency of multiply-add.
constexpr bool kManyRegisters = HWY_TARGET <= HWY_AVX3;

template <std::size_t kRows, std::size_t kVectors, bool kAdd, class T>
HWY_INLINE void MultiplyTile(std::size_t depth, const Left<T>& a, const Right<T>& b,
                             const Product<T>& c) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  hn::Vec<decltype(d)> sum[kRows][kVectors];
#pragma GCC unroll 8
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (std::size_t n = 0; n < kVectors; ++n) {
      sum[r][n] = kAdd ? hn::LoadU(d, c.at + r * c.row + n * lanes) : hn::Zero(d);
    }
  }
  const T* HWY_RESTRICT left = a.at;
  const T* HWY_RESTRICT right = b.at;
  for (std::size_t k = 0; k < depth; ++k, left += a.column, right += b.row) {
    hn::Vec<decltype(d)> row[kVectors];
#pragma GCC unroll 8
    for (std::size_t n = 0; n < kVectors; ++n) row[n] = hn::LoadU(d, right + n * b.vector);
#pragma GCC unroll 8
    for (std::size_t r = 0; r < kRows; ++r) {
      const auto factor = hn::Set(d, left[r * a.row]);
#pragma GCC unroll 8
      for (std::size_t n = 0; n < kVectors; ++n) {
        sum[r][n] = hn::MulAdd(factor, row[n], sum[r][n]);
      }
    }
  }
#pragma GCC unroll 8
  for (std::size_t r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (std::size_t n = 0; n < kVectors; ++n) {
      hn::StoreU(sum[r][n], d, c.at + r * c.row + n * lanes);
    }
  }
}

/// kRows rows at a time of kVectors columns of vectors, then fewer.
template <std::size_t kRows, std::size_t kVectors, bool kAdd, class T>
HWY_INLINE void MultiplyColumns(std::size_t rows, std::size_t depth, const Left<T>& a,
                                const Right<T>& b, const Product<T>& c) {
  std::size_t r = 0;
  const auto tiles = [&](auto count) HWY_ATTR {
    for (; r + count() <= rows; r += count()) {
      MultiplyTile<count(), kVectors, kAdd>(depth, {a.at + r * a.row, a.row, a.column}, b,
                                            {c.at + r * c.row, c.row});
    }
  };
  using Most = std::integral_constant<std::size_t, kRows>;
  tiles(Most());
  if (!kAdd && r < rows && rows >= kRows) {  // the last rows again, with some before them
    r = rows - kRows;
    tiles(Most());
  }
  if constexpr (kRows > 4) tiles(std::integral_constant<std::size_t, 4>());
  if constexpr (kRows > 2) tiles(std::integral_constant<std::size_t, 2>());
  tiles(std::integral_constant<std::size_t, 1>());
}

/// C (rows x vectors) = A (rows x depth) B, or += with kAdd.
template <bool kAdd, class T>
HWY_NOINLINE void Multiply(std::size_t rows, std::size_t vectors, std::size_t depth,
                           const Left<T>& a, const Right<T>& b, const Product<T>& c) {
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  std::size_t n = 0;
  const auto columns = [&](auto rows_at_once, auto count) HWY_ATTR {
    for (; n + count() <= vectors; n += count()) {
      MultiplyColumns<rows_at_once(), count(), kAdd>(
          rows, depth, a, {b.at + n * b.vector, b.row, b.vector}, {c.at + n * lanes, c.row});
    }
  };
  if constexpr (kManyRegisters) {
    columns(std::integral_constant<std::size_t, 6>(), std::integral_constant<std::size_t, 4>());
    columns(std::integral_constant<std::size_t, 8>(), std::integral_constant<std::size_t, 2>());
  } else {
    columns(std::integral_constant<std::size_t, 4>(), std::integral_constant<std::size_t, 2>());
  }
  columns(std::integral_constant<std::size_t, 8>(), std::integral_constant<std::size_t, 1>());
}

/// C += A B where a 0 in A means "not there": NaN and infinity in B do not meet it.
template <class T>
HWY_NOINLINE void MultiplyPresent(std::size_t rows, std::size_t vectors, std::size_t depth,
                                  const Left<T>& a, const Right<T>& b, const Product<T>& c) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  for (std::size_t r = 0; r < rows; ++r) {
    for (std::size_t k = 0; k < depth; ++k) {
      const T factor = a.at[r * a.row + k * a.column];
      if (factor == T(0)) continue;
      for (std::size_t n = 0; n < vectors; ++n) {
        T* to = c.at + r * c.row + n * lanes;
        const auto v = hn::LoadU(d, b.at + k * b.row + n * b.vector);
        hn::StoreU(hn::MulAdd(hn::Set(d, factor), v, hn::LoadU(d, to)), d, to);
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_MATMUL_INL_H_
