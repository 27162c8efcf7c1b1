// SPDX-License-Identifier: Apache-2.0
// The iterative solver for short rows (attention windows, small routers): one row per lane, so that
// a row of 64 scores does not pay a horizontal sum and a scalar log per iteration. Lanes never mix,
// so results do not depend on which rows share a vector.
//
// Scratch is transposed: entry j of all rows stands together, x[j * lanes + lane].
#if defined(WEIR_KERNELS_CPU_COORDINATE_DESCENT_LANES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_COORDINATE_DESCENT_LANES_INL_H_
#undef WEIR_KERNELS_CPU_COORDINATE_DESCENT_LANES_INL_H_
#else
#define WEIR_KERNELS_CPU_COORDINATE_DESCENT_LANES_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>

#include "kernels/cpu/coordinate_descent_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr std::size_t kMostLanes = HWY_MAX_BYTES / sizeof(float);

/// Exponent<T> of every lane.
template <class T>
struct LaneExponents {
  HWY_ALIGN T high[kMostLanes], shift[kMostLanes];
  T scale = 0;

  /// MakeExponent for all lanes, in a form that compilers vectorise.
  HWY_INLINE void set(const double* HWY_RESTRICT c, std::size_t lanes, double eps) {
    constexpr double kLargest = std::numeric_limits<T>::max();
    const double wide_scale = 1.442695040888963407360 / eps;
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      high[lane] = static_cast<T>(std::clamp(c[lane], -kLargest, kLargest));
      const double rest = (static_cast<double>(high[lane]) - c[lane]) * wide_scale;
      shift[lane] = static_cast<T>(std::clamp(rest, -kLargest, kLargest));
    }
    scale = static_cast<T>(wide_scale);
  }
};

template <class T>
struct LaneRows {
  std::size_t cols = 0;
  T* x = nullptr;  // [cols, lanes]
  RowStatistics<T> row[kMostLanes];
  HWY_ALIGN double budget[kMostLanes], log_budget[kMostLanes], max[kMostLanes];
};

/// values[i] = log(values[i])
HWY_INLINE void LogInPlace(double* HWY_RESTRICT values, std::size_t count) {
  const hn::ScalableTag<double> d;
  for (std::size_t i = 0; i < count; i += hn::Lanes(d)) {
    hn::Store(hn::Log(d, hn::Load(d, values + i)), d, values + i);
  }
}

/// sum_j exp(min(x_j - r, 0) / eps) per lane
template <class T>
HWY_INLINE void SumCappedLanes(const T* HWY_RESTRICT x, std::size_t cols, const LaneExponents<T>& e,
                               double* HWY_RESTRICT sums) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  const auto high = hn::Load(d, e.high), shift = hn::Load(d, e.shift), scale = hn::Set(d, e.scale);
  const auto zero = hn::Zero(d);
  auto s0 = zero, s1 = zero;
  std::size_t j = 0;
  for (; j + 2 <= cols; j += 2) {
    const auto x0 = hn::Load(d, x + j * lanes), x1 = hn::Load(d, x + (j + 1) * lanes);
    s0 = hn::Add(s0, Exp2(d, hn::Min(hn::MulAdd(hn::Sub(x0, high), scale, shift), zero)));
    s1 = hn::Add(s1, Exp2(d, hn::Min(hn::MulAdd(hn::Sub(x1, high), scale, shift), zero)));
  }
  if (j < cols) {
    const auto x0 = hn::Load(d, x + j * lanes);
    s0 = hn::Add(s0, Exp2(d, hn::Min(hn::MulAdd(hn::Sub(x0, high), scale, shift), zero)));
  }
  HWY_ALIGN T sum[kMostLanes];
  hn::Store(hn::Add(s0, s1), d, sum);
  for (std::size_t lane = 0; lane < lanes; ++lane) sums[lane] = static_cast<double>(sum[lane]);
}

/// a_t of every lane: trace[t * lanes + lane].
template <class T>
HWY_INLINE void IterateLanes(const LaneRows<T>& rows, const double* eps, std::int64_t n_iters,
                             double* HWY_RESTRICT trace) {
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  HWY_ALIGN double r[kMostLanes], log_sum[kMostLanes];
  LaneExponents<T> exponents;
  for (std::size_t lane = 0; lane < lanes; ++lane) {
    trace[lane] =
        eps[0] * (rows.log_budget[lane] - std::log(static_cast<double>(rows.row[lane].valid)));
  }
  for (std::int64_t t = 1; t < n_iters; ++t) {
    const double* HWY_RESTRICT before = trace + static_cast<std::size_t>(t - 1) * lanes;
    double* HWY_RESTRICT now = trace + static_cast<std::size_t>(t) * lanes;
    for (std::size_t lane = 0; lane < lanes; ++lane)
      r[lane] = std::min(-before[lane], rows.max[lane]);
    exponents.set(r, lanes, eps[t]);
    SumCappedLanes(rows.x, rows.cols, exponents, log_sum);
    LogInPlace(log_sum, lanes);
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      now[lane] = eps[t] * (rows.log_budget[lane] - log_sum[lane]) - r[lane];
    }
    const bool fixed = eps[t] == eps[n_iters] && std::equal(now, now + lanes, before);
    if (fixed) {  // all lanes repeat from here on, to the last bit
      for (std::int64_t later = t + 1; later < n_iters; ++later) {
        std::copy(now, now + lanes, trace + static_cast<std::size_t>(later) * lanes);
      }
      return;
    }
  }
}

/// y of every lane, in place of x.
template <class T>
HWY_INLINE void ReadOutLanes(T* HWY_RESTRICT x, std::size_t cols, const double* c, double eps) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  LaneExponents<T> e;
  e.set(c, lanes, eps);
  const auto high = hn::Load(d, e.high), shift = hn::Load(d, e.shift), scale = hn::Set(d, e.scale);
  const auto zero = hn::Zero(d), smallest = hn::Set(d, kSmallestExponent<T>);
  for (std::size_t j = 0; j < cols; ++j) {
    const auto v = hn::Load(d, x + j * lanes);
    const auto t = hn::Min(hn::MulAdd(hn::Sub(v, high), scale, shift), zero);
    hn::Store(hn::IfThenElseZero(hn::Ge(t, smallest), Exp2(d, t)), d, x + j * lanes);
  }
}

/// u_j = g_j y_j / eps where x_j <= c, in place of g; their sums per lane.
template <class T>
HWY_INLINE void StartGradientLanes(const T* HWY_RESTRICT x, std::size_t cols, const double* c,
                                   double eps, T* HWY_RESTRICT g, double* HWY_RESTRICT sums) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  LaneExponents<T> e;
  e.set(c, lanes, eps);
  const auto high = hn::Load(d, e.high), shift = hn::Load(d, e.shift), scale = hn::Set(d, e.scale);
  const auto zero = hn::Zero(d), smallest = hn::Set(d, kSmallestExponent<T>);
  const auto inverse = hn::Set(d, static_cast<T>(1 / eps));
  auto sum = zero;
  for (std::size_t j = 0; j < cols; ++j) {
    const auto t = hn::MulAdd(hn::Sub(hn::Load(d, x + j * lanes), high), scale, shift);
    const auto live = hn::And(hn::Le(t, zero), hn::Ge(t, smallest));
    const auto u = hn::Mul(hn::Load(d, g + j * lanes), hn::Mul(Exp2(d, t), inverse));
    const auto kept = hn::IfThenElseZero(live, u);
    hn::Store(kept, d, g + j * lanes);
    sum = hn::Add(sum, kept);
  }
  HWY_ALIGN T sum_of[kMostLanes];
  hn::Store(sum, d, sum_of);
  for (std::size_t lane = 0; lane < lanes; ++lane) sums[lane] = static_cast<double>(sum_of[lane]);
}

/// g_j -= coefficient exp((x_j - c) / eps) where x_j <= limit; counts the entries above the limit.
template <class T>
HWY_INLINE void SubtractTermLanes(const T* HWY_RESTRICT x, std::size_t cols,
                                  const LaneExponents<T>& e, const T* limits, const T* coefficients,
                                  T* HWY_RESTRICT g, T* HWY_RESTRICT above) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  const auto high = hn::Load(d, e.high), shift = hn::Load(d, e.shift), scale = hn::Set(d, e.scale);
  const auto limit = hn::Load(d, limits), coefficient = hn::Load(d, coefficients);
  const auto one = hn::Set(d, T(1));
  auto count = hn::Zero(d);
  for (std::size_t j = 0; j < cols; ++j) {
    const auto v = hn::Load(d, x + j * lanes);
    const auto below = hn::Le(v, limit);
    const auto term =
        hn::IfThenElseZero(below, Exp2(d, hn::MulAdd(hn::Sub(v, high), scale, shift)));
    hn::Store(hn::NegMulAdd(coefficient, term, hn::Load(d, g + j * lanes)), d, g + j * lanes);
    count = hn::Add(count, hn::IfThenZeroElse(below, one));
  }
  hn::Store(count, d, above);
}

/// Gradient of all lanes in place of g; d loss / d budget per lane.
template <class T>
HWY_INLINE void GradientLanes(const LaneRows<T>& rows, const double* eps, std::int64_t n_iters,
                              const double* HWY_RESTRICT trace, T* HWY_RESTRICT g,
                              double* HWY_RESTRICT grad_budget) {
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  double mass[kMostLanes], negligible[kMostLanes], c[kMostLanes];
  HWY_ALIGN T limits[kMostLanes], coefficients[kMostLanes], above[kMostLanes];
  LaneExponents<T> exponents;
  const double* last = trace + static_cast<std::size_t>(n_iters - 1) * lanes;
  for (std::size_t lane = 0; lane < lanes; ++lane) c[lane] = -last[lane];
  StartGradientLanes(rows.x, rows.cols, c, eps[n_iters], g, mass);
  for (std::size_t lane = 0; lane < lanes; ++lane) {
    negligible[lane] = std::abs(mass[lane]) * kNegligibleMass<T>;
    grad_budget[lane] = 0;
  }
  for (std::int64_t t = n_iters - 1;; --t) {
    const double* now = trace + static_cast<std::size_t>(t) * lanes;
    bool any = false;
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      grad_budget[lane] += mass[lane] * eps[t] / rows.budget[lane];
      if (std::abs(mass[lane]) <= negligible[lane]) mass[lane] = 0;
      any |= mass[lane] != 0;
    }
    if (t == 0 || !any) return;
    const double* before = now - lanes;
    for (std::size_t lane = 0; lane < lanes; ++lane) c[lane] = -now[lane];
    exponents.set(c, lanes, eps[t]);
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      limits[lane] = RoundDown<T>(-before[lane]);
      coefficients[lane] = static_cast<T>(mass[lane] / rows.budget[lane]);
    }
    SubtractTermLanes(rows.x, rows.cols, exponents, limits, coefficients, g, above);
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      mass[lane] *= static_cast<double>(above[lane]) *
                    std::exp((now[lane] - before[lane]) / eps[t]) / rows.budget[lane];
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_COORDINATE_DESCENT_LANES_INL_H_
