// SPDX-License-Identifier: Apache-2.0
// The k largest logits of each query of a tile, found while runs of keys pass by. A query keeps a
// lower bound of its k-th largest; what lies above is appended, in the order of its keys. When a
// query's room is full the exact k largest stay, of equal ones the first, and the smallest of them
// is the new bound: no later key at or below it can be among the k.
#if defined(WEIR_KERNELS_CPU_TOP_K_CANDIDATES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_TOP_K_CANDIDATES_INL_H_
#undef WEIR_KERNELS_CPU_TOP_K_CANDIDATES_INL_H_
#else
#define WEIR_KERNELS_CPU_TOP_K_CANDIDATES_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>

#include "kernels/cpu/attention_runs-inl.h"
#include "kernels/cpu/attention_sizes.h"
#include "kernels/cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// An integer as wide as T: numbers of keys, and the order of logits.
template <class T>
using Integer = hwy::MakeSigned<T>;

template <class T>
struct Candidates {
  std::size_t k = 0, limit = 0, capacity = 0;
  T* logits = nullptr;          // [kMostTileRows, capacity]
  Integer<T>* keys = nullptr;   // the same
  Integer<T>* order = nullptr;  // [capacity]
  T* bound = nullptr;           // [kMostTileRows]
  std::size_t count[kMostTileRows] = {};
};

template <class T>
HWY_INLINE Candidates<T> TakeCandidates(std::size_t k, std::size_t keys, Scratch& scratch) {
  Candidates<T> all;
  all.k = k, all.limit = CandidateLimit(k, keys), all.capacity = CandidateCapacity(k, keys);
  all.logits = scratch.take<T>(kMostTileRows * all.capacity);
  all.keys = scratch.take<Integer<T>>(kMostTileRows * all.capacity);
  all.order = scratch.take<Integer<T>>(all.capacity);
  all.bound = scratch.take<T>(kMostTileRows);
  return all;
}

template <class T>
HWY_INLINE void ForgetCandidates(Candidates<T>& all) {
  std::fill_n(all.bound, kMostTileRows, kNothing<T>);
  std::fill_n(all.count, kMostTileRows, std::size_t{0});
}

// ---- order

/// Integers in the order of the numbers, both zeros equal and NaN above infinity.
template <class D>
HWY_INLINE hn::Vec<hn::RebindToSigned<D>> OrderOf(D d, hn::Vec<D> v) {
  using T = hn::TFromD<D>;
  const hn::RebindToSigned<D> di;
  const auto nan = hn::Set(d, std::numeric_limits<T>::quiet_NaN());
  const auto bits = hn::BitCast(di, hn::IfThenElse(hn::IsNaN(v), nan, hn::Add(v, hn::Zero(d))));
  const auto magnitude = hn::Set(di, std::numeric_limits<Integer<T>>::max());
  return hn::Xor(bits, hn::And(hn::BroadcastSignBit(bits), magnitude));
}

template <class T>
HWY_INLINE T NumberOf(Integer<T> order) {
  const Integer<T> magnitude = std::numeric_limits<Integer<T>>::max();
  return std::bit_cast<T>(static_cast<Integer<T>>(order < 0 ? order ^ magnitude : order));
}

/// How many of `count` padded entries lie above `threshold`.
template <class I>
HWY_INLINE std::size_t CountAbove(const I* HWY_RESTRICT order, std::size_t count, I threshold) {
  const hn::ScalableTag<I> d;
  const std::size_t lanes = hn::Lanes(d);
  const auto least = hn::Set(d, threshold);
  auto even = hn::Zero(d), odd = hn::Zero(d);  // minus the number
  std::size_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    even = hn::Add(even, hn::VecFromMask(d, hn::Gt(hn::Load(d, order + i), least)));
    odd = hn::Add(odd, hn::VecFromMask(d, hn::Gt(hn::Load(d, order + i + lanes), least)));
  }
  if (i < count) even = hn::Add(even, hn::VecFromMask(d, hn::Gt(hn::Load(d, order + i), least)));
  return static_cast<std::size_t>(-hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd))));
}

/// The k largest are all above `threshold`, and the first `ties` of those that equal it.
template <class I>
struct Cut {
  I threshold = 0;
  std::size_t ties = 0;
};

/// Bisects between `below`, under all `count` > k entries, and their largest.
template <class I>
HWY_INLINE Cut<I> FindCut(const I* order, std::size_t count, std::size_t k, I below, I largest) {
  while (below + 1 < largest) {
    const I middle = std::midpoint(below, largest);
    const std::size_t above = CountAbove(order, count, middle);
    if (above == k) return {middle, 0};
    (above > k ? below : largest) = middle;
  }
  return {largest, k - CountAbove(order, count, largest)};
}

// ---- selection

/// Leaves the k largest of `count` > k candidates, in their order; returns the smallest.
template <class T>
HWY_NOINLINE T SelectLargest(std::size_t k, std::size_t count, T* HWY_RESTRICT logits,
                             Integer<T>* HWY_RESTRICT keys, Integer<T>* HWY_RESTRICT order) {
  using I = Integer<T>;
  const hn::ScalableTag<T> d;
  const hn::RebindToSigned<decltype(d)> di;
  const std::size_t lanes = hn::Lanes(d), padded = (count + lanes - 1) / lanes * lanes;
  std::fill(logits + count, logits + padded, logits[0]);  // so that neither extreme moves
  auto least = hn::Set(di, std::numeric_limits<I>::max()),
       most = hn::Set(di, std::numeric_limits<I>::min());
  for (std::size_t i = 0; i < padded; i += lanes) {
    const auto v = OrderOf(d, hn::Load(d, logits + i));
    least = hn::Min(least, v), most = hn::Max(most, v);
    hn::Store(v, di, order + i);
  }
  std::fill(order + count, order + padded, std::numeric_limits<I>::min());
  const auto [threshold, ties] =
      FindCut<I>(order, padded, k, hn::GetLane(hn::MinOfLanes(di, least)) - 1,
                 hn::GetLane(hn::MaxOfLanes(di, most)));
  std::size_t kept = 0;
  if (ties > 0) {
    std::size_t left = ties;
    for (std::size_t i = 0; i < count; ++i) {
      if (order[i] < threshold || (order[i] == threshold && left == 0)) continue;
      left -= order[i] == threshold;
      logits[kept] = logits[i], keys[kept] = keys[i];
      ++kept;
    }
    return NumberOf<T>(threshold);
  }
  const auto cut = hn::Set(di, threshold), nothing = hn::Set(di, std::numeric_limits<I>::max());
  least = nothing;
  for (std::size_t i = 0; i < padded; i += lanes) {
    const auto v = hn::Load(di, order + i);
    const auto stays = hn::Gt(v, cut);
    least = hn::Min(least, hn::IfThenElse(stays, v, nothing));
    const auto some_logits = hn::Load(d, logits + i);
    const auto some_keys = hn::Load(di, keys + i);
    hn::StoreU(hn::Compress(some_logits, hn::RebindMask(d, stays)), d, logits + kept);
    hn::StoreU(hn::Compress(some_keys, stays), di, keys + kept);
    kept += hn::CountTrue(di, stays);
  }
  return NumberOf<T>(hn::GetLane(hn::MinOfLanes(di, least)));
}

/// Selects in row r if it has more than k candidates.
template <class T>
HWY_INLINE void SelectRow(std::size_t r, Candidates<T>& all) {
  if (all.count[r] <= all.k) return;
  all.bound[r] = SelectLargest(all.k, all.count[r], all.logits + r * all.capacity,
                               all.keys + r * all.capacity, all.order);
  all.count[r] = all.k;
}

/// Appends what lies above the bounds of a part's rows. Logits stand as PackPanel puts keys: key
/// g * lanes + i of the run and row r at (g * depth + r) * lanes + i.
template <class T>
HWY_INLINE void Collect(const KeyRun& run, const Part& part, const T* HWY_RESTRICT panel,
                        std::size_t depth, std::size_t rows, Candidates<T>& all) {
  const hn::ScalableTag<T> d;
  const hn::RebindToSigned<decltype(d)> di;
  const std::size_t lanes = hn::Lanes(d), end = part.key + part.keys;
  const auto steps = hn::Iota(di, 0);
  for (std::size_t r = part.row; r < std::min(part.row + part.rows, rows); ++r) {
    T* HWY_RESTRICT logits = all.logits + r * all.capacity;
    Integer<T>* HWY_RESTRICT keys = all.keys + r * all.capacity;
    const auto bound = hn::Set(d, all.bound[r]);
    std::size_t count = all.count[r];
    for (std::size_t key = part.key; key < end; key += lanes) {
      const auto v = hn::Load(d, panel + (key / lanes * depth + r) * lanes);
      const auto inside = hn::FirstN(d, std::min(lanes, end - key));
      const auto enters = hn::AndNot(hn::Le(v, bound), inside);  // NaN too
      if (hn::AllFalse(d, enters)) continue;
      const auto first = static_cast<Integer<T>>(run.begin + static_cast<std::int64_t>(key));
      hn::StoreU(hn::Compress(v, enters), d, logits + count);
      const auto numbers = hn::Add(steps, hn::Set(di, first));
      hn::StoreU(hn::Compress(numbers, hn::RebindMask(di, enters)), di, keys + count);
      count += hn::CountTrue(d, enters);
    }
    all.count[r] = count;
    if (count > all.limit) SelectRow(r, all);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_TOP_K_CANDIDATES_INL_H_
