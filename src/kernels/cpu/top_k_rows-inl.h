// SPDX-License-Identifier: Apache-2.0
// Rows of keys and values that a query keeps, read where they lie: of any Value type, and not
// always filling whole vectors.
#if defined(WEIR_KERNELS_CPU_TOP_K_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_TOP_K_ROWS_INL_H_
#undef WEIR_KERNELS_CPU_TOP_K_ROWS_INL_H_
#else
#define WEIR_KERNELS_CPU_TOP_K_ROWS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "kernels/cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Entries [i, i + lanes) of a row of `count`, 0 behind its end.
template <class D, class Value>
HWY_INLINE hn::Vec<D> LoadPart(D d, const Value* row, std::size_t i, std::size_t count) {
  if (HWY_LIKELY(i + hn::Lanes(d) <= count)) return LoadValues(d, row + i);
  HWY_ALIGN Value tail[HWY_MAX_BYTES / sizeof(hn::TFromD<D>)] = {};
  std::memcpy(tail, row + i, (count - i) * sizeof(Value));
  return LoadValues(d, tail);
}

/// <a, b>, a padded.
template <class Value, class T>
HWY_INLINE T Dot(const T* HWY_RESTRICT a, const Value* HWY_RESTRICT b, std::size_t count) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  auto even = hn::Zero(d), odd = hn::Zero(d);
  std::size_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    even = hn::MulAdd(hn::Load(d, a + i), LoadValues(d, b + i), even);
    odd = hn::MulAdd(hn::Load(d, a + i + lanes), LoadValues(d, b + i + lanes), odd);
  }
  for (; i < count; i += lanes) {
    even = hn::MulAdd(hn::Load(d, a + i), LoadPart(d, b, i, count), even);
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
}

/// Rows of keys or values of one head, some of which are kept.
template <class Value>
struct KeptRows {
  const Value* at = nullptr;
  std::int64_t step = 0;
  std::size_t count = 0;  // entries of a row
};

/// to[j] = <a, kept row j>, a padded. Four rows at a time: their sums do not wait for each other.
template <class Value, class T, class Index>
HWY_INLINE void DotKept(const T* HWY_RESTRICT a, const KeptRows<Value>& rows, std::size_t kept,
                        const Index* keys, T* HWY_RESTRICT to) {
  constexpr std::size_t kRows = 4;
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  const auto row = [&](std::size_t j) {
    return rows.at + static_cast<std::int64_t>(keys[j]) * rows.step;
  };
  std::size_t j = 0;
  for (; j + kRows <= kept; j += kRows) {
    const Value* at[kRows] = {row(j), row(j + 1), row(j + 2), row(j + 3)};
    hn::Vec<decltype(d)> sum[kRows];
#pragma GCC unroll 4
    for (std::size_t n = 0; n < kRows; ++n) sum[n] = hn::Zero(d);
    std::size_t i = 0;
    for (; i + lanes <= rows.count; i += lanes) {
      const auto part = hn::Load(d, a + i);
#pragma GCC unroll 4
      for (std::size_t n = 0; n < kRows; ++n) {
        sum[n] = hn::MulAdd(part, LoadValues(d, at[n] + i), sum[n]);
      }
    }
    if (i < rows.count) {
      const auto part = hn::Load(d, a + i);
#pragma GCC unroll 4
      for (std::size_t n = 0; n < kRows; ++n) {
        sum[n] = hn::MulAdd(part, LoadPart(d, at[n], i, rows.count), sum[n]);
      }
    }
#pragma GCC unroll 4
    for (std::size_t n = 0; n < kRows; ++n) {
      to[j + n] = hn::GetLane(hn::SumOfLanes(d, sum[n]));
    }
  }
  for (; j < kept; ++j) to[j] = Dot(a, row(j), rows.count);
}

/// Vectors i, i + lanes, ... of sums = sum over the kept rows of weight times row.
template <std::size_t kVectors, class Value, class T, class Index>
HWY_INLINE void SumVectors(const KeptRows<Value>& rows, std::size_t kept, const Index* keys,
                           const T* HWY_RESTRICT weights, std::size_t i, T* HWY_RESTRICT sums) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  hn::Vec<decltype(d)> sum[kVectors];
#pragma GCC unroll 4
  for (std::size_t n = 0; n < kVectors; ++n) sum[n] = hn::Zero(d);
  for (std::size_t j = 0; j < kept; ++j) {
    const Value* row = rows.at + static_cast<std::int64_t>(keys[j]) * rows.step;
    const auto weight = hn::Set(d, weights[j]);
#pragma GCC unroll 4
    for (std::size_t n = 0; n < kVectors; ++n) {
      if constexpr (kVectors > 1) {  // whole ones
        sum[n] = hn::MulAdd(weight, LoadValues(d, row + i + n * lanes), sum[n]);
      } else {
        sum[n] = hn::MulAdd(weight, LoadPart(d, row, i, rows.count), sum[n]);
      }
    }
  }
#pragma GCC unroll 4
  for (std::size_t n = 0; n < kVectors; ++n) hn::Store(sum[n], d, sums + i + n * lanes);
}

template <class Value, class T, class Index>
HWY_INLINE void SumKept(const KeptRows<Value>& rows, std::size_t kept, const Index* keys,
                        const T* weights, T* sums) {
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  std::size_t i = 0;
  for (; i + 4 * lanes <= rows.count; i += 4 * lanes) {
    SumVectors<4>(rows, kept, keys, weights, i, sums);
  }
  for (; i < rows.count; i += lanes) SumVectors<1>(rows, kept, keys, weights, i, sums);
}

/// Vectors i, i + lanes, ... of a row times weight, added to the kept rows of `to`.
template <std::size_t kVectors, class T, class Index>
HWY_INLINE void AddVectors(const T* HWY_RESTRICT row, std::size_t kept, const Index* keys,
                           const T* HWY_RESTRICT weights, std::size_t i, T* HWY_RESTRICT to,
                           std::size_t step) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  hn::Vec<decltype(d)> v[kVectors];
#pragma GCC unroll 4
  for (std::size_t n = 0; n < kVectors; ++n) v[n] = hn::Load(d, row + i + n * lanes);
  for (std::size_t j = 0; j < kept; ++j) {
    T* HWY_RESTRICT at = to + static_cast<std::size_t>(keys[j]) * step + i;
    const auto weight = hn::Set(d, weights[j]);
#pragma GCC unroll 4
    for (std::size_t n = 0; n < kVectors; ++n, at += lanes) {
      hn::StoreU(hn::MulAdd(weight, v[n], hn::LoadU(d, at)), d, at);
    }
  }
}

/// The transpose of SumKept: kept rows of `to`, `step` apart and whole vectors, += weight * row.
template <class T, class Index>
HWY_INLINE void AddKept(const T* row, std::size_t count, std::size_t kept, const Index* keys,
                        const T* weights, T* to, std::size_t step) {
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  std::size_t i = 0;
  for (; i + 4 * lanes <= count; i += 4 * lanes) {
    AddVectors<4>(row, kept, keys, weights, i, to, step);
  }
  for (; i < count; i += lanes) AddVectors<1>(row, kept, keys, weights, i, to, step);
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_TOP_K_ROWS_INL_H_
