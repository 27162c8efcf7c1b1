// SPDX-License-Identifier: Apache-2.0
// Whole vectors of values in memory, and the one at the end of a row: loops over columns are
// written once for both.
#if defined(WEIR_KERNELS_CPU_VECTOR_ACCESS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_VECTOR_ACCESS_INL_H_
#undef WEIR_KERNELS_CPU_VECTOR_ACCESS_INL_H_
#else
#define WEIR_KERNELS_CPU_VECTOR_ACCESS_INL_H_
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

/// `count` values, at most a vector of them, then zeros.
template <class D, class Value>
HWY_INLINE hn::Vec<D> LoadTail(D d, const Value* from, std::size_t count) {
  HWY_ALIGN Value tail[HWY_MAX_BYTES / sizeof(hn::TFromD<D>)] = {};
  std::memcpy(tail, from, count * sizeof(Value));
  return LoadValues(d, tail);
}

struct WholeVectors {
  template <class D, class Value>
  HWY_INLINE hn::Vec<D> Load(D d, const Value* from) const {
    return LoadValues(d, from);
  }
  template <class D, class Value>
  HWY_INLINE void Store(D d, hn::Vec<D> v, Value* to) const {
    StoreValues(d, v, to);
  }
};

struct TailVector {
  std::size_t count;

  template <class D, class Value>
  HWY_INLINE hn::Vec<D> Load(D d, const Value* from) const {
    return LoadTail(d, from, count);
  }
  template <class D, class Value>
  HWY_INLINE void Store(D d, hn::Vec<D> v, Value* to) const {
    HWY_ALIGN Value tail[HWY_MAX_BYTES / sizeof(hn::TFromD<D>)];
    StoreValues(d, v, tail);
    std::memcpy(static_cast<void*>(to), tail, count * sizeof(Value));
  }
};

/// Calls body(first column of a vector, how to access it) for the columns of a row of `dim`.
template <class T, class Body>
HWY_INLINE void ForColumns(std::int64_t dim, const Body& body) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<T>()));
  std::int64_t column = 0;
  for (; column + lanes <= dim; column += lanes) body(column, WholeVectors());
  if (column < dim) body(column, TailVector{static_cast<std::size_t>(dim - column)});
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_VECTOR_ACCESS_INL_H_
