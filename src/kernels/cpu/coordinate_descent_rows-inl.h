// SPDX-License-Identifier: Apache-2.0
// Pieces of coordinate descent that look at one long row of scratch: sums of exponentials below a
// threshold, the read-out, the iterative solver and its gradient.
#if defined(WEIR_KERNELS_CPU_COORDINATE_DESCENT_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_COORDINATE_DESCENT_ROWS_INL_H_
#undef WEIR_KERNELS_CPU_COORDINATE_DESCENT_ROWS_INL_H_
#else
#define WEIR_KERNELS_CPU_COORDINATE_DESCENT_ROWS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

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

/// x > c for every x of type T exactly when x > RoundDown<T>(c).
template <class T>
HWY_INLINE T RoundDown(double c) {
  constexpr double kLargest = std::numeric_limits<T>::max();
  const T nearest = static_cast<T>(std::clamp(c, -kLargest, kLargest));
  return static_cast<double>(nearest) > c
             ? std::nextafter(nearest, -std::numeric_limits<T>::infinity())
             : nearest;
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

/// a_0 ... a_{T-1} of the row; eps has T + 1 entries.
template <class T>
HWY_INLINE void Iterate(const T* HWY_RESTRICT x, const RowStatistics<T>& row, double log_budget,
                        const double* eps, std::int64_t n_iters, double* trace) {
  const std::size_t padded = Padded(row.span);
  trace[0] = eps[0] * (log_budget - std::log(static_cast<double>(row.valid)));
  for (std::int64_t t = 1; t < n_iters; ++t) {
    // The largest capped score as reference: the sum is then at least 1.
    const double r = std::min(-trace[t - 1], static_cast<double>(row.max));
    trace[t] = eps[t] * (log_budget - std::log(SumCapped(x, padded, r, eps[t]))) - r;
    if (trace[t] == trace[t - 1] && eps[t] == eps[n_iters]) {  // a fixed point to the last bit
      std::fill(trace + t + 1, trace + n_iters, trace[t]);
      return;
    }
  }
}

// ---- gradient of the iterative solver
// ------------------------------------------------------------

/// ds -= coefficient * exp((x - c) / eps) where x <= limit: one term of the gradient.
template <class T>
struct GradientTerm {
  Exponent<T> exponent;
  T limit, coefficient;
};

/// u_j = g_j y_j / eps where x_j <= c, else 0, in place of g; returns their sum.
template <class T>
HWY_INLINE double StartGradient(const T* HWY_RESTRICT x, std::size_t padded, double c, double eps,
                                T* HWY_RESTRICT g) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  const Exponent<T> exponent = MakeExponent<T>(c, eps);
  const auto zero = hn::Zero(d), smallest = hn::Set(d, kSmallestExponent<T>);
  const auto inverse = hn::Set(d, static_cast<T>(1 / eps));
  double total = 0;
  for (std::size_t begin = 0; begin < padded; begin += kChunk) {
    const std::size_t end = std::min(padded, begin + kChunk);
    auto sum = zero;
    for (std::size_t i = begin; i < end; i += lanes) {
      const auto t = Apply(d, exponent, hn::Load(d, x + i));
      const auto live = hn::And(hn::Le(t, zero), hn::Ge(t, smallest));
      const auto u = hn::Mul(hn::Load(d, g + i), hn::Mul(Exp2(d, t), inverse));
      const auto kept = hn::IfThenElseZero(live, u);
      hn::Store(kept, d, g + i);
      sum = hn::Add(sum, kept);
    }
    total += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
  }
  return total;
}

/// #{j : x_j > limit}
template <class T>
HWY_INLINE std::size_t CountAbove(const T* HWY_RESTRICT x, std::size_t padded, T limit) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  const auto bound = hn::Set(d, limit);
  std::size_t count = 0;
  for (std::size_t i = 0; i < padded; i += 2 * lanes) {
    count += hn::CountTrue(d, hn::Gt(hn::Load(d, x + i), bound)) +
             hn::CountTrue(d, hn::Gt(hn::Load(d, x + i + lanes), bound));
  }
  return count;
}

/// Below this share of the first one a mass no longer moves a bit of the result.
template <class T>
constexpr double kNegligibleMass = sizeof(T) == 4 ? 1e-14 : 1e-26;

/// Walks the iterations backwards, mass_{t-1} = mass_t * m_t exp((a_t - a_{t-1}) / eps_t) / k with
/// m_t saturated entries, and writes one term for each t with mass left. Returns d loss / d budget.
template <class T>
HWY_INLINE double CollectTerms(const T* HWY_RESTRICT x, std::size_t padded, double budget,
                               const double* eps, std::int64_t n_iters, const double* trace,
                               double mass, GradientTerm<T>* terms, std::size_t& count) {
  const double negligible = std::abs(mass) * kNegligibleMass<T>;
  double grad_budget = 0;
  count = 0;
  for (std::int64_t t = n_iters - 1;; --t) {
    grad_budget += mass * eps[t] / budget;
    if (t == 0 || std::abs(mass) <= negligible) return grad_budget;
    const bool repeats = t + 1 < n_iters && trace[t + 1] == trace[t] && trace[t] == trace[t - 1] &&
                         eps[t + 1] == eps[t];
    const T coefficient = static_cast<T>(mass / budget);
    if (repeats) {  // the row had converged: the same term again
      terms[count - 1].coefficient += coefficient;
    } else {
      terms[count++] = {MakeExponent<T>(-trace[t], eps[t]), RoundDown<T>(-trace[t - 1]),
                        coefficient};
    }
    const double saturated = static_cast<double>(CountAbove(x, padded, terms[count - 1].limit));
    mass *= saturated * std::exp((trace[t] - trace[t - 1]) / eps[t]) / budget;
  }
}

/// g_j -= sum over terms. Four vectors at a time, so that a term's constants are loaded once for
/// them.
template <class T>
HWY_INLINE void SubtractTerms(const T* HWY_RESTRICT x, std::size_t padded,
                              const GradientTerm<T>* HWY_RESTRICT terms, std::size_t count,
                              T* HWY_RESTRICT g) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  for (std::size_t i = 0; i < padded; i += 4 * lanes) {
    const auto x0 = hn::Load(d, x + i), x1 = hn::Load(d, x + i + lanes),
               x2 = hn::Load(d, x + i + 2 * lanes), x3 = hn::Load(d, x + i + 3 * lanes);
    auto g0 = hn::Load(d, g + i), g1 = hn::Load(d, g + i + lanes),
         g2 = hn::Load(d, g + i + 2 * lanes), g3 = hn::Load(d, g + i + 3 * lanes);
    for (std::size_t t = 0; t < count; ++t) {
      const Exponent<T> exponent = terms[t].exponent;
      const auto limit = hn::Set(d, terms[t].limit), coefficient = hn::Set(d, terms[t].coefficient);
      const auto e0 = hn::IfThenElseZero(hn::Le(x0, limit), Exp2(d, Apply(d, exponent, x0)));
      const auto e1 = hn::IfThenElseZero(hn::Le(x1, limit), Exp2(d, Apply(d, exponent, x1)));
      const auto e2 = hn::IfThenElseZero(hn::Le(x2, limit), Exp2(d, Apply(d, exponent, x2)));
      const auto e3 = hn::IfThenElseZero(hn::Le(x3, limit), Exp2(d, Apply(d, exponent, x3)));
      g0 = hn::NegMulAdd(coefficient, e0, g0);
      g1 = hn::NegMulAdd(coefficient, e1, g1);
      g2 = hn::NegMulAdd(coefficient, e2, g2);
      g3 = hn::NegMulAdd(coefficient, e3, g3);
    }
    hn::Store(g0, d, g + i);
    hn::Store(g1, d, g + i + lanes);
    hn::Store(g2, d, g + i + 2 * lanes);
    hn::Store(g3, d, g + i + 3 * lanes);
  }
}

/// Entries at -inf do not count: their gradient is 0.
template <class T>
HWY_INLINE void ClearNothing(const T* HWY_RESTRICT x, std::size_t padded, T* HWY_RESTRICT g) {
  const hn::ScalableTag<T> d;
  const auto nothing = hn::Set(d, kNothing<T>);
  for (std::size_t i = 0; i < padded; i += hn::Lanes(d)) {
    const auto counts = hn::Gt(hn::Load(d, x + i), nothing);
    hn::Store(hn::IfThenElseZero(counts, hn::Load(d, g + i)), d, g + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_COORDINATE_DESCENT_ROWS_INL_H_
