// SPDX-License-Identifier: Apache-2.0
// A row between memory (float, double, 16-bit types, a mask) and scratch (float or double, padded
// to whole blocks, entries that do not count at -inf). Loops over scratch need neither tails nor
// masks.
#if defined(WEIR_KERNELS_CPU_ROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_ROW_INL_H_
#undef WEIR_KERNELS_CPU_ROW_INL_H_
#else
#define WEIR_KERNELS_CPU_ROW_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/half.h"
#include "kernels/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
constexpr T kNothing = -std::numeric_limits<T>::infinity();

/// What a Value is computed in.
template <class Value>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};

/// A row as it counts: entries [first, first + span) of it contain all that are valid.
template <class T>
struct RowStatistics {
  std::size_t first = 0, span = 0;         // the part of the row that is in scratch
  std::size_t valid = 0;                   // entries above -inf
  T max = kNothing<T>, min = kNothing<T>;  // over the part in scratch
  bool has_nan = false;
};

// ---- one vector of values, converted

template <class D>
HWY_INLINE hn::Vec<D> LoadValues(D d, const hn::TFromD<D>* from) {
  return hn::LoadU(d, from);
}
template <class D>
HWY_INLINE hn::Vec<D> LoadValues(D d, const BFloat16* from) {
  const hn::RebindToUnsigned<D> du;
  const hn::Rebind<std::uint16_t, D> du16;
  const auto bits = hn::PromoteTo(du, hn::LoadU(du16, &from->bits));
  return hn::BitCast(d, hn::ShiftLeft<16>(bits));
}
template <class D>
HWY_INLINE hn::Vec<D> LoadValues(D d, const Float16* from) {
#if HWY_TARGET <= HWY_AVX2
  const hn::Rebind<hwy::float16_t, D> df16;
  return hn::PromoteTo(d, hn::LoadU(df16, reinterpret_cast<const hwy::float16_t*>(from)));
#else
  HWY_ALIGN float values[HWY_MAX_BYTES / sizeof(float)];
  for (std::size_t i = 0; i < hn::Lanes(d); ++i) values[i] = to_float(from[i]);
  return hn::Load(d, values);
#endif
}

template <class D>
HWY_INLINE void StoreValues(D d, hn::Vec<D> v, hn::TFromD<D>* to) {
  hn::StoreU(v, d, to);
}
template <class D>
HWY_INLINE void StoreValues(D /*d*/, hn::Vec<D> v, BFloat16* to) {
  const hn::RebindToUnsigned<D> du;
  const hn::RebindToSigned<D> di;
  const hn::Rebind<std::uint16_t, D> du16;
  const auto bits = hn::BitCast(du, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1u));
  const auto even = hn::Add(bits, hn::Add(odd, hn::Set(du, 0x7FFFu)));  // nearest, ties to even
  const auto quiet = hn::Or(bits, hn::Set(du, 0x400000u));  // rounding could make NaN infinite
  const auto rounded = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(v)), quiet, even);
  hn::StoreU(hn::DemoteTo(du16, hn::BitCast(di, hn::ShiftRight<16>(rounded))), du16, &to->bits);
}
template <class D>
HWY_INLINE void StoreValues(D d, hn::Vec<D> v, Float16* to) {
#if HWY_TARGET <= HWY_AVX2
  const hn::Rebind<hwy::float16_t, D> df16;
  hn::StoreU(hn::DemoteTo(df16, v), df16, reinterpret_cast<hwy::float16_t*>(to));
#else
  HWY_ALIGN float values[HWY_MAX_BYTES / sizeof(float)];
  hn::Store(v, d, values);
  for (std::size_t i = 0; i < hn::Lanes(d); ++i) to[i] = to_float16(values[i]);
#endif
}

// ---- whole rows

/// to[0, count) = from, to[count, Padded(count)) = fill.
template <class T, class Value>
HWY_INLINE void LoadRow(const Value* HWY_RESTRICT from, std::size_t count, T fill,
                        T* HWY_RESTRICT to) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) hn::Store(LoadValues(d, from + i), d, to + i);
  if (i < count) {
    HWY_ALIGN Value tail[HWY_MAX_BYTES / sizeof(T)] = {};
    std::memcpy(tail, from + i, (count - i) * sizeof(Value));
    hn::Store(LoadValues(d, tail), d, to + i);
  }
  for (std::size_t j = count; j < Padded(count); ++j) to[j] = fill;
}

/// to[0, count) = from, rounded to nearest.
template <class T, class Value>
HWY_INLINE void StoreRow(const T* HWY_RESTRICT from, std::size_t count, Value* HWY_RESTRICT to) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) StoreValues(d, hn::Load(d, from + i), to + i);
  if (i < count) {
    HWY_ALIGN Value tail[HWY_MAX_BYTES / sizeof(T)];
    StoreValues(d, hn::Load(d, from + i), tail);
    std::memcpy(to + i, tail, (count - i) * sizeof(Value));
  }
}

template <class T>
HWY_INLINE void Summarise(const T* HWY_RESTRICT row, RowStatistics<T>& summary) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  auto max = hn::Set(d, kNothing<T>), min = hn::Set(d, -kNothing<T>);
  auto nan = hn::Gt(max, min);  // none
  std::size_t i = 0;
  for (; i + lanes <= summary.span; i += lanes) {
    const auto v = hn::Load(d, row + i);
    max = hn::Max(max, v);
    min = hn::Min(min, v);
    nan = hn::Or(nan, hn::IsNaN(v));
  }
  summary.max = hn::GetLane(hn::MaxOfLanes(d, max));
  summary.min = hn::GetLane(hn::MinOfLanes(d, min));
  summary.has_nan = !hn::AllFalse(d, nan);
  for (; i < summary.span; ++i) {
    summary.max = std::max(summary.max, row[i]);
    summary.min = std::min(summary.min, row[i]);
    summary.has_nan |= row[i] != row[i];
  }
  summary.valid = summary.span;
  if (!(summary.min > kNothing<T>)) {
    summary.valid -= static_cast<std::size_t>(std::count(row, row + summary.span, kNothing<T>));
  }
}

/// A row into scratch; entries that the mask leaves out become -inf.
template <class T, class Value>
HWY_INLINE RowStatistics<T> LoadWholeRow(const Value* HWY_RESTRICT scores,
                                         const std::uint8_t* HWY_RESTRICT mask, std::size_t cols,
                                         T* HWY_RESTRICT to) {
  RowStatistics<T> summary;
  summary.span = cols;
  LoadRow(scores, cols, kNothing<T>, to);
  if (mask != nullptr) {
    for (std::size_t i = 0; i < cols; ++i) to[i] = mask[i] != 0 ? to[i] : kNothing<T>;
  }
  Summarise(to, summary);
  return summary;
}

/// The same for the part between the first and the last entry that the mask keeps: causal and
/// padding masks shorten the row.
template <class T, class Value>
HWY_INLINE RowStatistics<T> LoadMaskedRow(const Value* HWY_RESTRICT scores,
                                          const std::uint8_t* HWY_RESTRICT mask, std::size_t cols,
                                          T* HWY_RESTRICT to) {
  if (mask == nullptr) return LoadWholeRow(scores, mask, cols, to);
  const void* kept = std::memchr(mask, 1, cols);
  if (kept == nullptr) return {};
  const auto first = static_cast<std::size_t>(static_cast<const std::uint8_t*>(kept) - mask);
  std::size_t end = cols;
  while (mask[end - 1] == 0) --end;
  RowStatistics<T> summary = LoadWholeRow(scores + first, mask + first, end - first, to);
  summary.first = first;
  return summary;
}

/// Writes a whole row: zeros, with the part in scratch at its place.
template <class T, class Value>
HWY_INLINE void StoreMaskedRow(const T* HWY_RESTRICT from, const RowStatistics<T>& summary,
                               std::size_t cols, Value* HWY_RESTRICT to) {
  const std::size_t end = summary.first + summary.span;
  std::memset(static_cast<void*>(to), 0, summary.first * sizeof(Value));
  StoreRow(from, summary.span, to + summary.first);
  std::memset(static_cast<void*>(to + end), 0, (cols - end) * sizeof(Value));
}

/// scratch[i] = NaN where row[i] counts, 0 elsewhere. `scratch` may be `row`.
template <class T>
HWY_INLINE void PropagateNan(const T* row, std::size_t span, T* scratch) {
  for (std::size_t i = 0; i < span; ++i) {
    scratch[i] = row[i] == kNothing<T> ? T(0) : std::numeric_limits<T>::quiet_NaN();
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_ROW_INL_H_
