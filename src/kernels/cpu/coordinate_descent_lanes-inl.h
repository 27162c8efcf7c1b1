// SPDX-License-Identifier: Apache-2.0
// The iterative solver for short rows (attention windows, small routers): one row per lane, so that
// a row of 64 scores does not pay a horizontal sum and a scalar log per iteration. Lanes never mix,
// so results do not depend on which rows share a vector.
//
// Scratch is transposed: entry j of all rows stands together, x[j * lanes + lane]. What a row has
// as a scalar stands in an array of doubles, one per lane.
#if defined(WEIR_KERNELS_CPU_COORDINATE_DESCENT_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_COORDINATE_DESCENT_LANES_INL_H_
#undef WEIR_KERNELS_CPU_COORDINATE_DESCENT_LANES_INL_H_
#else
#define WEIR_KERNELS_CPU_COORDINATE_DESCENT_LANES_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>

#include "kernels/cpu/coordinate_descent_iterative-inl.h"
#include "kernels/cpu/coordinate_descent_rows-inl.h"
#include "kernels/cpu/transpose-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

static_assert(HWY_MAX_BYTES / sizeof(float) <= kMostLanes);

/// 16 transposed rows of 512 are 32 KB. Beyond, a row's own work hides its horizontal sums and
/// logs.
constexpr std::size_t kLongestLaneRow = 512;

HWY_INLINE bool SuitsLanes(std::int64_t n_iters, std::int64_t cols) {
  return n_iters > 0 && cols <= static_cast<std::int64_t>(kLongestLaneRow);
}

using Wide = hn::ScalableTag<double>;

/// f(i) for i = 0, Lanes(Wide), ... below `lanes`.
template <class F>
HWY_INLINE void ForWide(std::size_t lanes, const F& f) {
  for (std::size_t i = 0; i < lanes; i += hn::Lanes(Wide())) f(i);
}

HWY_INLINE hn::Vec<Wide> Narrowed(hn::Vec<Wide> v, double* to) {
  hn::Store(v, Wide(), to);
  return v;
}

/// Rounds to T, stores, and returns the rounded value.
HWY_INLINE hn::Vec<Wide> Narrowed(hn::Vec<Wide> v, float* to) {
  const hn::Rebind<float, Wide> d;
  const auto narrow = hn::DemoteTo(d, v);
  hn::Store(narrow, d, to);
  return hn::PromoteTo(Wide(), narrow);
}

template <class T>
HWY_INLINE hn::Vec<Wide> ClampTo(hn::Vec<Wide> v) {
  const auto largest = hn::Set(Wide(), std::numeric_limits<T>::max());
  return hn::Max(hn::Min(v, largest), hn::Neg(largest));
}

/// to[lane] = v in double
template <class D>
HWY_INLINE void StoreWide(D d, hn::Vec<D> v, double* HWY_RESTRICT to) {
  HWY_ALIGN hn::TFromD<D> lane_of[kMostLanes];
  hn::Store(v, d, lane_of);
  for (std::size_t lane = 0; lane < hn::Lanes(d); ++lane) to[lane] = lane_of[lane];
}

/// Exponent<T> of every lane.
template <class T>
struct LaneExponents {
  HWY_ALIGN T high[kMostLanes], shift[kMostLanes];
  T scale = 0;

  /// MakeExponent for all lanes.
  HWY_INLINE void set(const double* HWY_RESTRICT c, std::size_t lanes, double eps) {
    const double wide_scale = 1.442695040888963407360 / eps;
    scale = static_cast<T>(wide_scale);
    ForWide(lanes, [&](std::size_t i) HWY_ATTR {
      const auto exact = hn::Load(Wide(), c + i);
      const auto rounded = Narrowed(ClampTo<T>(exact), high + i);
      const auto rest = hn::Mul(hn::Sub(rounded, exact), hn::Set(Wide(), wide_scale));
      Narrowed(ClampTo<T>(rest), shift + i);
    });
  }

  template <class D>
  HWY_INLINE hn::Vec<D> apply(D d, hn::Vec<D> x) const {
    return hn::MulAdd(hn::Sub(x, hn::Load(d, high)), hn::Set(d, scale), hn::Load(d, shift));
  }
};

template <class T>
struct LaneRows {
  std::size_t cols = 0;
  T* x = nullptr;  // [cols, lanes]
  T* e = nullptr;  // [cols, lanes]: exponentials of the iteration
  RowStatistics<T> row[kMostLanes];
  HWY_ALIGN double valid[kMostLanes], budget[kMostLanes], inverse_budget[kMostLanes],
      max[kMostLanes];
};

template <class T>
HWY_INLINE bool Computes(const RowStatistics<T>& row) {
  return row.valid > 0 && !row.has_nan;
}

/// Puts `x`, padded with -inf to whole blocks, into a lane, as pieces. A lane that must not compute
/// (no valid entry, NaN, no row) computes on zeros, in x too, and is written by hand afterwards.
template <class T>
HWY_INLINE void PutLane(RowStatistics<T> row, double budget, std::size_t lane, T* x,
                        LaneRows<T>& rows) {
  row.has_nan |= std::isnan(budget);
  if (!Computes(row)) {
    std::fill(x, x + Padded(rows.cols), T(0));
    row.max = 0;
    budget = 1;
  }
  rows.row[lane] = row;
  rows.valid[lane] = static_cast<double>(std::max<std::size_t>(row.valid, 1));
  rows.budget[lane] = budget;
  rows.inverse_budget[lane] = 1 / budget;
  rows.max[lane] = static_cast<double>(row.max);
  PutPieces(x, lane, rows.cols, rows.x);
}

/// sum_j exp(min(x_j - r, 0) / eps) per lane
template <class T>
HWY_INLINE void SumCappedLanes(const T* HWY_RESTRICT x, std::size_t cols, const LaneExponents<T>& e,
                               double* HWY_RESTRICT sums) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  const auto zero = hn::Zero(d);
  auto s0 = zero, s1 = zero, s2 = zero, s3 = zero;
  const auto term = [&](std::size_t j) HWY_ATTR {
    return Exp2(d, hn::Min(e.apply(d, hn::Load(d, x + j * lanes)), zero));
  };
  std::size_t j = 0;
  for (; j + 4 <= cols; j += 4) {
    s0 = hn::Add(s0, term(j));
    s1 = hn::Add(s1, term(j + 1));
    s2 = hn::Add(s2, term(j + 2));
    s3 = hn::Add(s3, term(j + 3));
  }
  for (; j < cols; ++j) s0 = hn::Add(s0, term(j));
  StoreWide(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)), sums);
}

/// e_j = exp((x_j - base) / eps) per lane, kept within the range of T.
template <class T>
HWY_INLINE void ExponentialsLanes(const T* HWY_RESTRICT x, std::size_t cols,
                                  const LaneExponents<T>& exponents, T* HWY_RESTRICT e) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  const auto largest = hn::Set(d, -kSmallestExponent<T>);
  for (std::size_t j = 0; j < cols; ++j) {
    const auto t = exponents.apply(d, hn::Load(d, x + j * lanes));
    hn::Store(Exp2(d, hn::Min(t, largest)), d, e + j * lanes);
  }
}

/// sum_j min(e_j, level) per lane
template <class T>
HWY_INLINE void SumBelowLevelLanes(const T* HWY_RESTRICT e, std::size_t cols,
                                   const T* HWY_RESTRICT levels, double* HWY_RESTRICT sums) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  const auto z = hn::Load(d, levels);
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  std::size_t j = 0;
  for (; j + 4 <= cols; j += 4) {
    const T* HWY_RESTRICT p = e + j * lanes;
    s0 = hn::Add(s0, hn::Min(hn::Load(d, p), z));
    s1 = hn::Add(s1, hn::Min(hn::Load(d, p + lanes), z));
    s2 = hn::Add(s2, hn::Min(hn::Load(d, p + 2 * lanes), z));
    s3 = hn::Add(s3, hn::Min(hn::Load(d, p + 3 * lanes), z));
  }
  for (; j < cols; ++j) s0 = hn::Add(s0, hn::Min(hn::Load(d, e + j * lanes), z));
  StoreWide(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)), sums);
}

/// Level of every lane.
struct LaneLevels {
  HWY_ALIGN double base[kMostLanes] = {}, highest[kMostLanes] = {}, z[kMostLanes] = {};

  HWY_INLINE Level of(std::size_t lane) const { return {base[lane], highest[lane], z[lane]}; }

  HWY_INLINE bool any_drifted(std::size_t lanes) const {
    bool any = false;
    ForWide(lanes, [&](std::size_t i) HWY_ATTR {
      const auto reached = hn::Min(hn::Load(Wide(), z + i), hn::Load(Wide(), highest + i));
      const auto within = hn::And(hn::Ge(reached, hn::Set(Wide(), 1 / kDrift)),
                                  hn::Le(reached, hn::Set(Wide(), kDrift)));
      any |= !hn::AllTrue(Wide(), within);
    });
    return any;
  }

  /// Lanes that have not drifted keep their base, so that their bits do not depend on the others.
  HWY_INLINE void restart(const double* c, const double* max, double eps, std::size_t lanes) {
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      Level level = of(lane);
      if (level.drifted()) level.restart(c[lane], max[lane], eps);
      base[lane] = level.base;
      highest[lane] = level.highest;
      z[lane] = level.z;
    }
  }
};

/// One step at an eps that still falls, for all lanes: c in place.
template <class T>
HWY_INLINE void AnnealLanes(const LaneRows<T>& rows, double eps, double* HWY_RESTRICT c) {
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  HWY_ALIGN double r[kMostLanes], sum[kMostLanes];
  LaneExponents<T> exponents;
  ForWide(lanes, [&](std::size_t i) HWY_ATTR {
    hn::Store(hn::Min(hn::Load(Wide(), c + i), hn::Load(Wide(), rows.max + i)), Wide(), r + i);
  });
  exponents.set(r, lanes, eps);
  SumCappedLanes(rows.x, rows.cols, exponents, sum);
  ForWide(lanes, [&](std::size_t i) HWY_ATTR {
    const auto share =
        hn::Mul(hn::Load(Wide(), sum + i), hn::Load(Wide(), rows.inverse_budget + i));
    const auto log = hn::Log(Wide(), share);
    hn::Store(hn::MulAdd(hn::Set(Wide(), eps), log, hn::Load(Wide(), r + i)), Wide(), c + i);
  });
}

/// One step at the last eps: c in place; true when no lane moved.
template <class T>
HWY_INLINE bool RaiseLanes(const LaneRows<T>& rows, double eps, LaneLevels& level,
                           double* HWY_RESTRICT c) {
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  HWY_ALIGN double sum[kMostLanes];
  HWY_ALIGN T reached[kMostLanes];
  if (level.any_drifted(lanes)) {
    LaneExponents<T> exponents;
    level.restart(c, rows.max, eps, lanes);
    exponents.set(level.base, lanes, eps);
    ExponentialsLanes(rows.x, rows.cols, exponents, rows.e);
  }
  ForWide(lanes, [&](std::size_t i) HWY_ATTR {
    const auto beyond = hn::Mul(hn::Set(Wide(), 4.0), hn::Load(Wide(), level.highest + i));
    Narrowed(hn::Min(hn::Load(Wide(), level.z + i), beyond), reached + i);
  });
  SumBelowLevelLanes(rows.e, rows.cols, reached, sum);
  bool fixed = true;
  ForWide(lanes, [&](std::size_t i) HWY_ATTR {
    const auto z = hn::Mul(hn::Load(Wide(), sum + i), hn::Load(Wide(), rows.inverse_budget + i));
    fixed &= hn::AllTrue(Wide(), hn::Eq(z, hn::Load(Wide(), level.z + i)));
    hn::Store(z, Wide(), level.z + i);
    const auto log = hn::Log(Wide(), z);
    const auto base = hn::Load(Wide(), level.base + i);
    hn::Store(hn::MulAdd(hn::Set(Wide(), eps), log, base), Wide(), c + i);
  });
  return fixed;
}

/// a_t of every lane: trace[t * lanes + lane].
template <class T>
HWY_INLINE void IterateLanes(const LaneRows<T>& rows, const double* eps, std::int64_t n_iters,
                             double* HWY_RESTRICT trace) {
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  HWY_ALIGN double c[kMostLanes];
  LaneLevels level;
  ForWide(lanes, [&](std::size_t i) HWY_ATTR {
    const auto share =
        hn::Mul(hn::Load(Wide(), rows.valid + i), hn::Load(Wide(), rows.inverse_budget + i));
    hn::Store(hn::Mul(hn::Set(Wide(), eps[0]), hn::Log(Wide(), share)), Wide(), c + i);
  });
  bool fixed = false;
  for (std::int64_t t = 0; t < n_iters; ++t) {
    if (t > 0 && !fixed) {
      if (eps[t] != eps[n_iters]) {
        AnnealLanes(rows, eps[t], c);
      } else {
        fixed = RaiseLanes(rows, eps[t], level, c);
      }
    }
    ForWide(lanes, [&](std::size_t i) HWY_ATTR {
      double* HWY_RESTRICT now = trace + static_cast<std::size_t>(t) * lanes;
      hn::Store(hn::Neg(hn::Load(Wide(), c + i)), Wide(), now + i);
    });
  }
}

/// y of every lane, in place of x.
template <class T>
HWY_INLINE void ReadOutLanes(T* HWY_RESTRICT x, std::size_t cols, const double* c, double eps) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  LaneExponents<T> exponents;
  exponents.set(c, lanes, eps);
  const auto zero = hn::Zero(d), smallest = hn::Set(d, kSmallestExponent<T>);
  for (std::size_t j = 0; j < cols; ++j) {
    const auto t = hn::Min(exponents.apply(d, hn::Load(d, x + j * lanes)), zero);
    hn::Store(hn::IfThenElseZero(hn::Ge(t, smallest), Exp2(d, t)), d, x + j * lanes);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_COORDINATE_DESCENT_LANES_INL_H_
