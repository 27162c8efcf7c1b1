// SPDX-License-Identifier: Apache-2.0
// The gradient of the iterative solver on one row of scratch, from the thresholds that forward
// left.
//
// Each step t whose mass has not vanished takes coefficient_t exp((x_j - c_t) / eps_t) from the
// gradient of the entries below the threshold before it. Steps at the last eps share one
// exponential per entry: it is multiplied by the sum of the coefficients that reach the entry.
#if defined(WEIR_KERNELS_CPU_COORDINATE_DESCENT_GRADIENT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_COORDINATE_DESCENT_GRADIENT_INL_H_
#undef WEIR_KERNELS_CPU_COORDINATE_DESCENT_GRADIENT_INL_H_
#else
#define WEIR_KERNELS_CPU_COORDINATE_DESCENT_GRADIENT_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "kernels/cpu/coordinate_descent_iterative-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// ds -= coefficient * exp((x - c) / eps) where x <= limit.
template <class T>
struct GradientTerm {
  Exponent<T> exponent;
  T limit, coefficient;
};

/// The terms of a row. The first `shared` have one exponent; the last `single` have each their own.
template <class T>
struct GradientTerms {
  GradientTerm<T>* terms = nullptr;  // [size]
  std::size_t size = 0, shared = 0, single = 0;

  HWY_INLINE GradientTerm<T>& add(bool is_shared) {
    return is_shared ? terms[shared++] : terms[size - ++single];
  }
};

/// A term shares its exponential while its threshold is within this factor of the last one's.
constexpr double kGradientDrift = 1 << 24;

/// Below this share of the first one a mass no longer moves a bit of the result.
template <class T>
constexpr double kNegligibleMass = sizeof(T) == 4 ? 1e-14 : 1e-26;

/// where ? sum + v : sum
template <class V, class M>
HWY_INLINE V AddWhere(M where, V sum, V v) {
#if HWY_TARGET <= HWY_AVX3
  if constexpr (sizeof(hn::TFromV<V>) == 4) {
    return V{_mm512_mask_add_ps(sum.raw, where.raw, sum.raw, v.raw)};
  } else {
    return V{_mm512_mask_add_pd(sum.raw, where.raw, sum.raw, v.raw)};
  }
#else
  return hn::Add(sum, hn::IfThenElseZero(where, v));
#endif
}

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

/// Limits whose entries above are counted in one pass.
constexpr std::int64_t kLimits = 4;

/// counts[i] = #{j : x_j > limits[i]}
template <class T>
HWY_INLINE void CountAboveEach(const T* HWY_RESTRICT x, std::size_t padded, const T* limits,
                               double* counts) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  const auto one = hn::Set(d, T(1));
  const auto l0 = hn::Set(d, limits[0]), l1 = hn::Set(d, limits[1]), l2 = hn::Set(d, limits[2]),
             l3 = hn::Set(d, limits[3]);
  std::fill(counts, counts + kLimits, 0.0);
  for (std::size_t begin = 0; begin < padded; begin += kChunk) {
    const std::size_t end = std::min(padded, begin + kChunk);
    auto n0 = hn::Zero(d), n1 = n0, n2 = n0, n3 = n0;
    for (std::size_t i = begin; i < end; i += lanes) {
      const auto v = hn::Load(d, x + i);
      n0 = AddWhere(hn::Gt(v, l0), n0, one);
      n1 = AddWhere(hn::Gt(v, l1), n1, one);
      n2 = AddWhere(hn::Gt(v, l2), n2, one);
      n3 = AddWhere(hn::Gt(v, l3), n3, one);
    }
    counts[0] += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, n0)));
    counts[1] += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, n1)));
    counts[2] += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, n2)));
    counts[3] += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, n3)));
  }
}

/// Walks the iterations backwards, mass_{t-1} = mass_t * m_t exp((a_t - a_{t-1}) / eps_t) / k with
/// m_t saturated entries, and writes one term for each t with mass left. Returns d loss / d budget.
template <class T>
HWY_INLINE double CollectTerms(const T* HWY_RESTRICT x, const RowStatistics<T>& row, double budget,
                               const double* eps, std::int64_t n_iters, const double* trace,
                               double mass, GradientTerms<T>& terms) {
  const double negligible = std::abs(mass) * kNegligibleMass<T>;
  const double base = -trace[n_iters - 1];
  double grad_budget = 0, factor = 1, saturated = 0, counts[kLimits];
  T limits[kLimits];
  std::int64_t newest = n_iters + kLimits;  // counts[i] belongs to step newest - i
  GradientTerm<T>* term = nullptr;
  for (std::int64_t t = n_iters - 1;; --t) {
    grad_budget += mass * eps[t] / budget;
    if (t == 0 || std::abs(mass) <= negligible) return grad_budget;
    const bool repeats = t + 1 < n_iters && trace[t + 1] == trace[t] && trace[t] == trace[t - 1] &&
                         eps[t + 1] == eps[t];
    if (!repeats) {  // else the row had converged: the same term again
      const double drift = std::exp((base + trace[t]) / eps[t]);
      const bool shared =
          eps[t] == eps[n_iters] && drift >= 1 / kGradientDrift && drift <= kGradientDrift;
      factor = shared ? drift : 1;
      term = &terms.add(shared);
      *term = {MakeExponent<T>(shared ? base : -trace[t], eps[t]), RoundDown<T>(-trace[t - 1]),
               T(0)};
      if (newest - t >= kLimits && term->limit < row.max) {
        newest = t;
        for (std::int64_t i = 0; i < kLimits; ++i) {
          limits[i] = RoundDown<T>(-trace[std::max<std::int64_t>(t - 1 - i, 0)]);
        }
        CountAboveEach(x, Padded(row.span), limits, counts);
      }
      saturated = term->limit < row.max ? counts[newest - t] : 0;
    }
    term->coefficient += static_cast<T>(mass * factor / budget);
    mass = saturated == 0
               ? 0
               : mass * saturated * std::exp((trace[t] - trace[t - 1]) / eps[t]) / budget;
  }
}

/// g_j -= sum over terms; 0 where x_j is -inf and does not count. Four vectors at a time, so that a
/// term's constants are loaded once for them.
template <class T>
HWY_INLINE void SubtractTerms(const T* HWY_RESTRICT x, std::size_t padded,
                              const GradientTerms<T>& terms, T* HWY_RESTRICT g) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  const GradientTerm<T>* HWY_RESTRICT shared = terms.terms;
  const GradientTerm<T>* HWY_RESTRICT single = terms.terms + (terms.size - terms.single);
  const auto zero = hn::Zero(d), nothing = hn::Set(d, kNothing<T>),
             largest = hn::Set(d, -kSmallestExponent<T>);
  for (std::size_t i = 0; i < padded; i += 4 * lanes) {
    const auto x0 = hn::Load(d, x + i), x1 = hn::Load(d, x + i + lanes),
               x2 = hn::Load(d, x + i + 2 * lanes), x3 = hn::Load(d, x + i + 3 * lanes);
    auto g0 = hn::Load(d, g + i), g1 = hn::Load(d, g + i + lanes),
         g2 = hn::Load(d, g + i + 2 * lanes), g3 = hn::Load(d, g + i + 3 * lanes);
    if (terms.shared > 0) {
      auto w0 = zero, w1 = zero, w2 = zero, w3 = zero;
      for (std::size_t t = 0; t < terms.shared; ++t) {
        const auto limit = hn::Set(d, shared[t].limit),
                   coefficient = hn::Set(d, shared[t].coefficient);
        w0 = AddWhere(hn::Le(x0, limit), w0, coefficient);
        w1 = AddWhere(hn::Le(x1, limit), w1, coefficient);
        w2 = AddWhere(hn::Le(x2, limit), w2, coefficient);
        w3 = AddWhere(hn::Le(x3, limit), w3, coefficient);
      }
      const Exponent<T> exponent = shared[0].exponent;
      g0 = hn::NegMulAdd(w0, Exp2(d, hn::Min(Apply(d, exponent, x0), largest)), g0);
      g1 = hn::NegMulAdd(w1, Exp2(d, hn::Min(Apply(d, exponent, x1), largest)), g1);
      g2 = hn::NegMulAdd(w2, Exp2(d, hn::Min(Apply(d, exponent, x2), largest)), g2);
      g3 = hn::NegMulAdd(w3, Exp2(d, hn::Min(Apply(d, exponent, x3), largest)), g3);
    }
    for (std::size_t t = 0; t < terms.single; ++t) {
      const Exponent<T> exponent = single[t].exponent;
      const auto limit = hn::Set(d, single[t].limit),
                 coefficient = hn::Set(d, single[t].coefficient);
      const auto e0 = hn::IfThenElseZero(hn::Le(x0, limit), Exp2(d, Apply(d, exponent, x0)));
      const auto e1 = hn::IfThenElseZero(hn::Le(x1, limit), Exp2(d, Apply(d, exponent, x1)));
      const auto e2 = hn::IfThenElseZero(hn::Le(x2, limit), Exp2(d, Apply(d, exponent, x2)));
      const auto e3 = hn::IfThenElseZero(hn::Le(x3, limit), Exp2(d, Apply(d, exponent, x3)));
      g0 = hn::NegMulAdd(coefficient, e0, g0);
      g1 = hn::NegMulAdd(coefficient, e1, g1);
      g2 = hn::NegMulAdd(coefficient, e2, g2);
      g3 = hn::NegMulAdd(coefficient, e3, g3);
    }
    hn::Store(hn::IfThenElseZero(hn::Gt(x0, nothing), g0), d, g + i);
    hn::Store(hn::IfThenElseZero(hn::Gt(x1, nothing), g1), d, g + i + lanes);
    hn::Store(hn::IfThenElseZero(hn::Gt(x2, nothing), g2), d, g + i + 2 * lanes);
    hn::Store(hn::IfThenElseZero(hn::Gt(x3, nothing), g3), d, g + i + 3 * lanes);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_COORDINATE_DESCENT_GRADIENT_INL_H_
