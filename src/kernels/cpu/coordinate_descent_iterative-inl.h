// SPDX-License-Identifier: Apache-2.0
// The iterative solver on one row of scratch.
//
// While eps falls, a step is one exponential per entry. From the first step at the last eps on, the
// exponentials e_j = exp((x_j - base) / eps) stay, and with the level z = exp((c - base) / eps) a
// step is z <- sum_j min(e_j, z) / k: two instructions for a whole vector.
#if defined(WEIR_KERNELS_CPU_COORDINATE_DESCENT_ITERATIVE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_COORDINATE_DESCENT_ITERATIVE_INL_H_
#undef WEIR_KERNELS_CPU_COORDINATE_DESCENT_ITERATIVE_INL_H_
#else
#define WEIR_KERNELS_CPU_COORDINATE_DESCENT_ITERATIVE_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels/cpu/exp2-inl.h"
#include "kernels/cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Partial sums leave float after this many elements; a lane then adds at most 64 numbers.
constexpr std::size_t kChunk = 4096;

// The solver's scalars stay in range whatever the budget: log(budget) must be finite.
constexpr double kSmallestBudget = 1e-20, kLargestBudget = 3.4e38;

/// log2(exp((x - c) / eps)) = (x - high) * scale + shift, with c rounded to `high` and the rest in
/// `shift`: c / eps alone would lose |c| / eps * 2^-24.
template <class T>
struct Exponent {
  T high, scale, shift;
};

template <class T>
HWY_INLINE Exponent<T> MakeExponent(double c, double eps) {
  constexpr double kLargest = std::numeric_limits<T>::max();
  const double scale = 1.442695040888963407360 / eps;
  const T high = static_cast<T>(std::clamp(c, -kLargest, kLargest));
  const double shift = (static_cast<double>(high) - c) * scale;
  return {high, static_cast<T>(scale), static_cast<T>(std::clamp(shift, -kLargest, kLargest))};
}

/// The next number below `value`, by its bits: std::nextafter does not vectorise.
template <class T>
HWY_INLINE T NextBelow(T value) {
  using Bits = std::conditional_t<sizeof(T) == 4, std::int32_t, std::int64_t>;
  const Bits bits = std::bit_cast<Bits>(value);
  const Bits below_zero = std::numeric_limits<Bits>::min() + 1;
  return std::bit_cast<T>(value > 0 ? bits - 1 : value < 0 ? bits + 1 : below_zero);
}

/// x > c for every x of type T exactly when x > RoundDown<T>(c).
template <class T>
HWY_INLINE T RoundDown(double c) {
  constexpr double kLargest = std::numeric_limits<T>::max();
  const T nearest = static_cast<T>(std::clamp(c, -kLargest, kLargest));
  return static_cast<double>(nearest) > c ? NextBelow(nearest) : nearest;
}

template <class D, class T>
HWY_INLINE hn::Vec<D> Apply(D d, const Exponent<T>& e, hn::Vec<D> x) {
  return hn::MulAdd(hn::Sub(x, hn::Set(d, e.high)), hn::Set(d, e.scale), hn::Set(d, e.shift));
}

template <class D>
HWY_INLINE double SumOfFour(D d, hn::Vec<D> a, hn::Vec<D> b, hn::Vec<D> c, hn::Vec<D> e) {
  return static_cast<double>(hn::GetLane(hn::SumOfLanes(d, hn::Add(hn::Add(a, b), hn::Add(c, e)))));
}

/// sum_j exp(min(x_j - r, 0) / eps)
template <class T>
HWY_INLINE double SumCapped(const T* HWY_RESTRICT x, std::size_t padded, double r, double eps) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  const Exponent<T> exponent = MakeExponent<T>(r, eps);
  const auto zero = hn::Zero(d);
  double total = 0;
  for (std::size_t begin = 0; begin < padded; begin += kChunk) {
    const std::size_t end = std::min(padded, begin + kChunk);
    auto s0 = zero, s1 = zero, s2 = zero, s3 = zero;
    for (std::size_t i = begin; i < end; i += 4 * lanes) {
      const T* HWY_RESTRICT p = x + i;
      s0 = hn::Add(s0, Exp2(d, hn::Min(Apply(d, exponent, hn::Load(d, p)), zero)));
      s1 = hn::Add(s1, Exp2(d, hn::Min(Apply(d, exponent, hn::Load(d, p + lanes)), zero)));
      s2 = hn::Add(s2, Exp2(d, hn::Min(Apply(d, exponent, hn::Load(d, p + 2 * lanes)), zero)));
      s3 = hn::Add(s3, Exp2(d, hn::Min(Apply(d, exponent, hn::Load(d, p + 3 * lanes)), zero)));
    }
    total += SumOfFour(d, s0, s1, s2, s3);
  }
  return total;
}

/// y_j = exp(min(x_j - c, 0) / eps); exactly 1 from c on, exactly 0 far below. `y` may be `x`.
template <class T>
HWY_INLINE void ReadOut(const T* x, std::size_t padded, double c, double eps, T* y) {
  const hn::ScalableTag<T> d;
  const Exponent<T> exponent = MakeExponent<T>(c, eps);
  const auto zero = hn::Zero(d), smallest = hn::Set(d, kSmallestExponent<T>);
  for (std::size_t i = 0; i < padded; i += hn::Lanes(d)) {
    const auto t = hn::Min(Apply(d, exponent, hn::Load(d, x + i)), zero);
    hn::Store(hn::IfThenElseZero(hn::Ge(t, smallest), Exp2(d, t)), d, y + i);
  }
}

/// e_j = exp((x_j - base) / eps), kept within the range of T.
template <class T>
HWY_INLINE void Exponentials(const T* HWY_RESTRICT x, std::size_t padded, double base, double eps,
                             T* HWY_RESTRICT e) {
  const hn::ScalableTag<T> d;
  const Exponent<T> exponent = MakeExponent<T>(base, eps);
  const auto largest = hn::Set(d, -kSmallestExponent<T>);
  for (std::size_t i = 0; i < padded; i += hn::Lanes(d)) {
    hn::Store(Exp2(d, hn::Min(Apply(d, exponent, hn::Load(d, x + i)), largest)), d, e + i);
  }
}

/// sum_j min(e_j, level)
template <class T>
HWY_INLINE double SumBelowLevel(const T* HWY_RESTRICT e, std::size_t padded, T level) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  const auto z = hn::Set(d, level);
  double total = 0;
  for (std::size_t begin = 0; begin < padded; begin += kChunk) {
    const std::size_t end = std::min(padded, begin + kChunk);
    auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
    for (std::size_t i = begin; i < end; i += 4 * lanes) {
      const T* HWY_RESTRICT p = e + i;
      s0 = hn::Add(s0, hn::Min(hn::Load(d, p), z));
      s1 = hn::Add(s1, hn::Min(hn::Load(d, p + lanes), z));
      s2 = hn::Add(s2, hn::Min(hn::Load(d, p + 2 * lanes), z));
      s3 = hn::Add(s3, hn::Min(hn::Load(d, p + 3 * lanes), z));
    }
    total += SumOfFour(d, s0, s1, s2, s3);
  }
  return total;
}

/// The level may leave the base by this factor before the exponentials are taken anew: the argument
/// of one near the threshold then still has 2^-20 of absolute precision in float.
constexpr double kDrift = 65536;

/// Where the threshold stands against the exponentials of its row.
struct Level {
  double base = 0, highest = 0;  // no exponential is above `highest`
  double z = 0;                  // 0: there are no exponentials yet

  /// Entries above the threshold count as much as the threshold: beyond the largest it is enough to
  /// be beyond.
  HWY_INLINE double reached() const { return std::min(z, 4 * highest); }
  HWY_INLINE bool drifted() const {
    return !(std::min(z, highest) >= 1 / kDrift && std::min(z, highest) <= kDrift);
  }
  HWY_INLINE void restart(double c, double max, double eps) {
    base = std::min(c, max);
    highest = std::exp((max - base) / eps);
    z = 1;
  }
};

/// a_0 ... a_{T-1} of the row; eps has T + 1 entries, `e` is as long as `x`.
template <class T>
HWY_INLINE void Iterate(const T* HWY_RESTRICT x, const RowStatistics<T>& row, double budget,
                        const double* eps, std::int64_t n_iters, T* HWY_RESTRICT e, double* trace) {
  const std::size_t padded = Padded(row.span);
  const double max = static_cast<double>(row.max);
  double c = eps[0] * std::log(static_cast<double>(row.valid) / budget);
  trace[0] = -c;
  Level level;
  for (std::int64_t t = 1; t < n_iters; ++t) {
    if (eps[t] != eps[n_iters]) {
      // The largest capped score as reference: the sum is then at least 1.
      const double r = std::min(c, max);
      c = r + eps[t] * std::log(SumCapped(x, padded, r, eps[t]) / budget);
      trace[t] = -c;
      continue;
    }
    if (level.drifted()) {
      level.restart(c, max, eps[t]);
      Exponentials(x, padded, level.base, eps[t], e);
    }
    const double before = level.z;
    level.z = SumBelowLevel(e, padded, static_cast<T>(level.reached())) / budget;
    c = level.base + eps[t] * std::log(level.z);
    trace[t] = -c;
    if (level.z == before) {  // a fixed point to the last bit
      std::fill(trace + t + 1, trace + n_iters, -c);
      return;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_COORDINATE_DESCENT_ITERATIVE_INL_H_
