// SPDX-License-Identifier: Apache-2.0
// The exact threshold c of a row: sum_j exp(min(x_j - c, 0) / eps) = k.
//
// Let c_k be the ceil(k)-th largest score. The sum at c_k is at least k and falls with c, so the
// solution lies at or above c_k, and only scores above c_k - 30 eps matter to float. From c_k
// Newton's method on z = exp(c / eps), z <- R / (k - m) with m scores above c and R = sum of exp(x
// / eps) over the rest, lands right of the solution once and then falls to it in finitely many
// steps; 2-7 in practice.
#if defined(WEIR_KERNELS_CPU_COORDINATE_DESCENT_EXACT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_COORDINATE_DESCENT_EXACT_INL_H_
#undef WEIR_KERNELS_CPU_COORDINATE_DESCENT_EXACT_INL_H_
#else
#define WEIR_KERNELS_CPU_COORDINATE_DESCENT_EXACT_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "kernels/cpu/coordinate_descent_iterative-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr std::size_t kSample = 1024;
constexpr int kMostNewtonSteps = 100;  // never reached by numbers; a bound for the rest

/// How far below c, in units of eps, an exponential still changes a sum of at least 1.
template <class T>
constexpr double kBand = sizeof(T) == 4 ? 30 : 50;

/// Copies the entries >= bound; `to` needs room for one vector more. Returns their number.
template <class T>
HWY_INLINE std::size_t CompressFrom(const T* HWY_RESTRICT x, std::size_t padded, T bound,
                                    T* HWY_RESTRICT to) {
  const hn::ScalableTag<T> d;
  const auto lower = hn::Set(d, bound);
  std::size_t count = 0;
  for (std::size_t i = 0; i < padded; i += hn::Lanes(d)) {
    const auto v = hn::Load(d, x + i);
    const auto keep = hn::Ge(v, lower);
    if (!hn::AllFalse(d, keep)) count += hn::CompressStore(v, keep, d, to + count);
  }
  return count;
}

/// #{j : x_j >= bound}
template <class T>
HWY_INLINE std::size_t CountFrom(const T* HWY_RESTRICT x, std::size_t padded, T bound) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  const auto lower = hn::Set(d, bound);
  std::size_t count = 0;
  for (std::size_t i = 0; i < padded; i += 2 * lanes) {
    count += hn::CountTrue(d, hn::Ge(hn::Load(d, x + i), lower)) +
             hn::CountTrue(d, hn::Ge(hn::Load(d, x + i + lanes), lower));
  }
  return count;
}

/// A value that at least `rank` entries reach, and not many more: by bisection between the smallest
/// and the largest. Always valid, tight for all but wild distributions.
template <class T>
HWY_INLINE T BoundByBisection(const T* HWY_RESTRICT x, const RowStatistics<T>& row,
                              std::size_t rank) {
  constexpr int kMostSteps = 12;
  T low = std::max(row.min, -std::numeric_limits<T>::max()), high = row.max;
  for (int step = 0; step < kMostSteps; ++step) {
    const T middle = low / 2 + high / 2;
    if (!(middle > low && middle < high)) break;
    const std::size_t count = CountFrom(x, Padded(row.span), middle);
    (count >= rank ? low : high) = middle;
    if (count >= rank && count <= 2 * rank + 16) break;
  }
  return low;
}

/// The same from a sample of a long row; -inf when the sample was misleading.
template <class T>
HWY_INLINE T BoundBySample(const T* HWY_RESTRICT x, const RowStatistics<T>& row, std::size_t rank,
                           T* HWY_RESTRICT sample) {
  const std::size_t stride = row.span / kSample;
  for (std::size_t i = 0; i < kSample; ++i) sample[i] = x[i * stride];
  const double expected = static_cast<double>(rank) * kSample / static_cast<double>(row.span);
  const auto safe = static_cast<std::size_t>(expected + 4 * std::sqrt(expected) + 5);  // 4 sigma
  if (safe >= kSample) return kNothing<T>;
  std::nth_element(sample, sample + safe, sample + kSample, std::greater<T>());
  const T bound = sample[safe];
  return CountFrom(x, Padded(row.span), bound) >= rank ? bound : kNothing<T>;
}

/// The rank-th largest entry (1-based): SIMD narrows the row down to a few candidates first.
template <class T>
HWY_INLINE T RankLargest(const T* HWY_RESTRICT x, const RowStatistics<T>& row, std::size_t rank,
                         T* HWY_RESTRICT scratch) {
  const T bound = row.span >= 4 * kSample ? BoundBySample(x, row, rank, scratch)
                                          : BoundByBisection(x, row, rank);
  const std::size_t count = CompressFrom(x, Padded(row.span), bound, scratch);
  std::nth_element(scratch, scratch + (rank - 1), scratch + count, std::greater<T>());
  return scratch[rank - 1];
}

/// R = sum over x <= c of exp((x - c) / eps), and the number of x > c.
template <class T>
HWY_INLINE double SumBelow(const T* HWY_RESTRICT x, std::size_t padded, double c, double eps,
                           std::size_t& above) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  const Exponent<T> exponent = MakeExponent<T>(c, eps);
  const auto zero = hn::Zero(d), limit = hn::Set(d, RoundDown<T>(c));
  double total = 0;
  above = 0;
  for (std::size_t begin = 0; begin < padded; begin += kChunk) {
    const std::size_t end = std::min(padded, begin + kChunk);
    auto s0 = zero, s1 = zero;
    for (std::size_t i = begin; i < end; i += 2 * lanes) {
      const auto x0 = hn::Load(d, x + i), x1 = hn::Load(d, x + i + lanes);
      const auto below0 = hn::Le(x0, limit), below1 = hn::Le(x1, limit);
      s0 = hn::Add(s0, hn::IfThenElseZero(below0, Exp2(d, Apply(d, exponent, x0))));
      s1 = hn::Add(s1, hn::IfThenElseZero(below1, Exp2(d, Apply(d, exponent, x1))));
      above += 2 * lanes - hn::CountTrue(d, below0) - hn::CountTrue(d, below1);
    }
    total += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, hn::Add(s0, s1))));
  }
  return total;
}

/// The scalar a = -c of the exact solution; +inf when all valid entries are 1. `scratch` holds
/// ExactScratch(span) elements.
template <class T>
HWY_INLINE double SolveExact(const T* HWY_RESTRICT x, const RowStatistics<T>& row, double budget,
                             double eps, T* HWY_RESTRICT scratch) {
  if (static_cast<double>(row.valid) <= budget) return std::numeric_limits<double>::infinity();
  const auto rank = static_cast<std::size_t>(std::ceil(std::max(budget, 1.0)));
  constexpr double kLargest = std::numeric_limits<T>::max();
  double c = std::clamp<double>(RankLargest(x, row, rank, scratch), -kLargest, kLargest);

  const T bound = RoundDown<T>(c - kBand<T> * eps);
  const std::size_t count = CompressFrom(x, Padded(row.span), bound, scratch);
  std::fill(scratch + count, scratch + Padded(count), kNothing<T>);

  std::size_t previous = row.valid + 1;
  for (int step = 0; step < kMostNewtonSteps; ++step) {
    std::size_t above = 0;
    const double below = SumBelow(scratch, Padded(count), c, eps, above);
    const double left = budget - static_cast<double>(above);
    if (!(left > 0) || !(below > 0)) break;  // more +inf than budget: they alone are chosen
    c += eps * std::log(below / left);
    if (above == previous) break;  // the same entries are saturated: c was the solution
    previous = above;
  }
  return -c;
}

constexpr std::size_t ExactScratch(std::size_t span) { return Padded(span) + kSample + 2 * kBlock; }

/// ds_j = y_j / eps (g_j - G / D) with G = sum g y and D = sum y over the unsaturated entries, in
/// place of g; returns d loss / d budget = G / D.
template <class T>
HWY_INLINE double ExactGradient(const T* HWY_RESTRICT x, std::size_t padded, double a, double eps,
                                T* HWY_RESTRICT y, T* HWY_RESTRICT g) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  const Exponent<T> exponent = MakeExponent<T>(-a, eps);
  const auto zero = hn::Zero(d), limit = hn::Set(d, RoundDown<T>(-a));
  const auto smallest = hn::Set(d, kSmallestExponent<T>);
  double weighted = 0, mass = 0;
  for (std::size_t begin = 0; begin < padded; begin += kChunk) {
    const std::size_t end = std::min(padded, begin + kChunk);
    auto sum_gy = zero, sum_y = zero;
    for (std::size_t i = begin; i < end; i += lanes) {
      const auto v = hn::Load(d, x + i);
      const auto t = Apply(d, exponent, v);
      const auto live = hn::And(hn::Le(v, limit), hn::Ge(t, smallest));
      const auto weight = hn::IfThenElseZero(live, Exp2(d, t));
      const auto product = hn::IfThenElseZero(live, hn::Mul(weight, hn::Load(d, g + i)));
      hn::Store(weight, d, y + i);
      sum_y = hn::Add(sum_y, weight);
      sum_gy = hn::Add(sum_gy, product);
    }
    mass += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum_y)));
    weighted += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum_gy)));
  }
  const double mean = mass > 0 ? weighted / mass : 0;
  const auto center = hn::Set(d, static_cast<T>(mean)),
             inverse = hn::Set(d, static_cast<T>(1 / eps));
  for (std::size_t i = 0; i < padded; i += lanes) {
    const auto weight = hn::Load(d, y + i);
    const auto value = hn::Mul(hn::Mul(weight, inverse), hn::Sub(hn::Load(d, g + i), center));
    hn::Store(hn::IfThenElseZero(hn::Gt(weight, zero), value), d, g + i);
  }
  return mean;
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_COORDINATE_DESCENT_EXACT_INL_H_
