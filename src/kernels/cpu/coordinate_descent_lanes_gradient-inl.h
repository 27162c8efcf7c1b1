// SPDX-License-Identifier: Apache-2.0
// The gradient of the iterative solver for short rows, one row per lane.
#if defined(WEIR_KERNELS_CPU_COORDINATE_DESCENT_LANES_GRADIENT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_COORDINATE_DESCENT_LANES_GRADIENT_INL_H_
#undef WEIR_KERNELS_CPU_COORDINATE_DESCENT_LANES_GRADIENT_INL_H_
#else
#define WEIR_KERNELS_CPU_COORDINATE_DESCENT_LANES_GRADIENT_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>

#include "kernels/cpu/coordinate_descent_gradient-inl.h"
#include "kernels/cpu/coordinate_descent_lanes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// u_j = g_j y_j / eps where x_j <= c, in place of g; their sums per lane.
template <class T>
HWY_INLINE void StartGradientLanes(const T* HWY_RESTRICT x, std::size_t cols, const double* c,
                                   double eps, T* HWY_RESTRICT g, double* HWY_RESTRICT sums) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  LaneExponents<T> exponents;
  exponents.set(c, lanes, eps);
  const auto zero = hn::Zero(d), smallest = hn::Set(d, kSmallestExponent<T>);
  const auto inverse = hn::Set(d, static_cast<T>(1 / eps));
  auto sum = zero;
  for (std::size_t j = 0; j < cols; ++j) {
    const auto t = exponents.apply(d, hn::Load(d, x + j * lanes));
    const auto live = hn::And(hn::Le(t, zero), hn::Ge(t, smallest));
    const auto u = hn::Mul(hn::Load(d, g + j * lanes), hn::Mul(Exp2(d, t), inverse));
    const auto kept = hn::IfThenElseZero(live, u);
    hn::Store(kept, d, g + j * lanes);
    sum = hn::Add(sum, kept);
  }
  StoreWide(d, sum, sums);
}

/// g_j -= coefficient exp((x_j - c) / eps) where x_j <= limit: one term with an exponential of its
/// own.
template <class T>
HWY_INLINE void SubtractTermLanes(const T* HWY_RESTRICT x, std::size_t cols,
                                  const LaneExponents<T>& exponents, const T* limits,
                                  const T* coefficients, T* HWY_RESTRICT g) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  const auto limit = hn::Load(d, limits), coefficient = hn::Load(d, coefficients);
  for (std::size_t j = 0; j < cols; ++j) {
    const auto v = hn::Load(d, x + j * lanes);
    const auto term = hn::IfThenElseZero(hn::Le(v, limit), Exp2(d, exponents.apply(d, v)));
    hn::Store(hn::NegMulAdd(coefficient, term, hn::Load(d, g + j * lanes)), d, g + j * lanes);
  }
}

/// #{j : x_j > limit} per lane
template <class T>
HWY_INLINE void CountAboveLanes(const T* HWY_RESTRICT x, std::size_t cols, const T* limits,
                                double* HWY_RESTRICT above) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  const auto limit = hn::Load(d, limits), one = hn::Set(d, T(1));
  auto n0 = hn::Zero(d), n1 = n0, n2 = n0, n3 = n0;
  std::size_t j = 0;
  for (; j + 4 <= cols; j += 4) {
    const T* HWY_RESTRICT p = x + j * lanes;
    n0 = AddWhere(hn::Gt(hn::Load(d, p), limit), n0, one);
    n1 = AddWhere(hn::Gt(hn::Load(d, p + lanes), limit), n1, one);
    n2 = AddWhere(hn::Gt(hn::Load(d, p + 2 * lanes), limit), n2, one);
    n3 = AddWhere(hn::Gt(hn::Load(d, p + 3 * lanes), limit), n3, one);
  }
  for (; j < cols; ++j) n0 = AddWhere(hn::Gt(hn::Load(d, x + j * lanes), limit), n0, one);
  StoreWide(d, hn::Add(hn::Add(n0, n1), hn::Add(n2, n3)), above);
}

/// RoundDown of every lane.
template <class T>
HWY_INLINE void RoundDownLanes(const double* HWY_RESTRICT c, std::size_t lanes,
                               T* HWY_RESTRICT to) {
  HWY_ALIGN double rounded[kMostLanes];
  ForWide(lanes, [&](std::size_t i) HWY_ATTR {
    hn::Store(Narrowed(ClampTo<T>(hn::Load(Wide(), c + i)), to + i), Wide(), rounded + i);
  });
  for (std::size_t lane = 0; lane < lanes; ++lane) {
    to[lane] = rounded[lane] > c[lane] ? NextBelow(to[lane]) : to[lane];
  }
}

/// exp(v), 0 below and 1e304 above what double holds.
HWY_INLINE hn::Vec<Wide> ExpClamped(hn::Vec<Wide> v) {
  const auto largest = hn::Set(Wide(), 700.0);
  return hn::Exp(Wide(), hn::Max(hn::Min(v, largest), hn::Neg(largest)));
}

/// The terms that share the exponentials exp((x_j - base) / eps): [size, lanes] each.
template <class T>
struct LaneTerms {
  T* limits = nullptr;
  T* coefficients = nullptr;
  std::size_t size = 0;
};

/// g_j -= exp((x_j - base) / eps) times the coefficients whose limit x_j does not exceed; 0 where
/// x_j is -inf and does not count.
template <class T>
HWY_INLINE void SubtractSharedLanes(const T* HWY_RESTRICT x, std::size_t cols,
                                    const LaneExponents<T>& exponents, const LaneTerms<T>& terms,
                                    T* HWY_RESTRICT g) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  const auto nothing = hn::Set(d, kNothing<T>), largest = hn::Set(d, -kSmallestExponent<T>);
  const auto finish = [&](std::size_t j, hn::Vec<decltype(d)> v, hn::Vec<decltype(d)> w) HWY_ATTR {
    const auto e = Exp2(d, hn::Min(exponents.apply(d, v), largest));
    const auto value = hn::NegMulAdd(w, e, hn::Load(d, g + j * lanes));
    hn::Store(hn::IfThenElseZero(hn::Gt(v, nothing), value), d, g + j * lanes);
  };
  std::size_t j = 0;
  for (; j + 4 <= cols; j += 4) {
    const T* HWY_RESTRICT p = x + j * lanes;
    const auto x0 = hn::Load(d, p), x1 = hn::Load(d, p + lanes), x2 = hn::Load(d, p + 2 * lanes),
               x3 = hn::Load(d, p + 3 * lanes);
    auto w0 = hn::Zero(d), w1 = w0, w2 = w0, w3 = w0;
    for (std::size_t t = 0; t < terms.size; ++t) {
      const auto limit = hn::Load(d, terms.limits + t * lanes);
      const auto coefficient = hn::Load(d, terms.coefficients + t * lanes);
      w0 = AddWhere(hn::Le(x0, limit), w0, coefficient);
      w1 = AddWhere(hn::Le(x1, limit), w1, coefficient);
      w2 = AddWhere(hn::Le(x2, limit), w2, coefficient);
      w3 = AddWhere(hn::Le(x3, limit), w3, coefficient);
    }
    finish(j, x0, w0);
    finish(j + 1, x1, w1);
    finish(j + 2, x2, w2);
    finish(j + 3, x3, w3);
  }
  for (; j < cols; ++j) {
    const auto v = hn::Load(d, x + j * lanes);
    auto w = hn::Zero(d);
    for (std::size_t t = 0; t < terms.size; ++t) {
      const auto below = hn::Le(v, hn::Load(d, terms.limits + t * lanes));
      w = AddWhere(below, w, hn::Load(d, terms.coefficients + t * lanes));
    }
    finish(j, v, w);
  }
}

/// Adds mass_t eps_t / k to the gradient of the budget and drops masses that no longer matter; true
/// when none is left.
HWY_INLINE bool SpendMass(double* HWY_RESTRICT mass, const double* HWY_RESTRICT negligible,
                          const double* HWY_RESTRICT inverse_budget, double eps, std::size_t lanes,
                          double* HWY_RESTRICT grad_budget) {
  bool none = true;
  ForWide(lanes, [&](std::size_t i) HWY_ATTR {
    const auto m = hn::Load(Wide(), mass + i);
    const auto part =
        hn::Mul(hn::Mul(m, hn::Set(Wide(), eps)), hn::Load(Wide(), inverse_budget + i));
    hn::Store(hn::Add(hn::Load(Wide(), grad_budget + i), part), Wide(), grad_budget + i);
    const auto counts = hn::Gt(hn::Abs(m), hn::Load(Wide(), negligible + i));
    hn::Store(hn::IfThenElseZero(counts, m), Wide(), mass + i);
    none &= hn::AllFalse(Wide(), counts);
  });
  return none;
}

/// Gradient of all lanes in place of g; d loss / d budget per lane. `terms` has room for n_iters.
template <class T>
HWY_INLINE void GradientLanes(const LaneRows<T>& rows, const double* eps, std::int64_t n_iters,
                              const double* HWY_RESTRICT trace, LaneTerms<T> terms,
                              T* HWY_RESTRICT g, double* HWY_RESTRICT grad_budget) {
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  HWY_ALIGN double mass[kMostLanes], negligible[kMostLanes], base[kMostLanes], c[kMostLanes],
      before[kMostLanes], above[kMostLanes] = {};
  HWY_ALIGN T single[kMostLanes];
  LaneExponents<T> exponents;
  const auto at = [&](std::int64_t t) { return trace + static_cast<std::size_t>(t) * lanes; };
  for (std::size_t lane = 0; lane < lanes; ++lane) base[lane] = -at(n_iters - 1)[lane];
  StartGradientLanes(rows.x, rows.cols, base, eps[n_iters], g, mass);
  for (std::size_t lane = 0; lane < lanes; ++lane) {
    negligible[lane] = std::abs(mass[lane]) * kNegligibleMass<T>;
    grad_budget[lane] = 0;
  }
  for (std::int64_t t = n_iters - 1;; --t) {
    const bool none = SpendMass(mass, negligible, rows.inverse_budget, eps[t], lanes, grad_budget);
    if (t == 0 || none) break;
    for (std::size_t lane = 0; lane < lanes; ++lane) {
      c[lane] = -at(t)[lane];
      before[lane] = -at(t - 1)[lane];
    }
    T* HWY_RESTRICT limits = terms.limits + terms.size * lanes;
    T* HWY_RESTRICT shared = terms.coefficients + terms.size * lanes;
    RoundDownLanes(before, lanes, limits);
    // What a lane's shared exponential lacks of its own is exp((base - c) / eps).
    const bool last_eps = eps[t] == eps[n_iters];
    const auto inverse_eps = hn::Set(Wide(), 1 / eps[t]);
    bool any_single = false;
    ForWide(lanes, [&](std::size_t i) HWY_ATTR {
      const auto coefficient =
          hn::Mul(hn::Load(Wide(), mass + i), hn::Load(Wide(), rows.inverse_budget + i));
      const auto distance = hn::Sub(hn::Load(Wide(), base + i), hn::Load(Wide(), c + i));
      const auto drift = ExpClamped(hn::Mul(distance, inverse_eps));
      const auto within = hn::And(hn::Ge(drift, hn::Set(Wide(), 1 / kGradientDrift)),
                                  hn::Le(drift, hn::Set(Wide(), last_eps ? kGradientDrift : 0)));
      Narrowed(hn::IfThenElseZero(within, hn::Mul(coefficient, drift)), shared + i);
      const auto own = hn::IfThenZeroElse(within, coefficient);
      Narrowed(own, single + i);
      any_single |= !hn::AllTrue(Wide(), hn::Eq(own, hn::Zero(Wide())));
    });
    if (any_single) {
      exponents.set(c, lanes, eps[t]);
      SubtractTermLanes(rows.x, rows.cols, exponents, limits, single, g);
    }
    const bool repeats = terms.size > 0 && t + 1 < n_iters && eps[t + 1] == eps[t] &&
                         std::equal(at(t), at(t + 1), at(t + 1)) &&
                         std::equal(at(t), at(t + 1), at(t - 1));
    if (repeats) {  // all lanes had converged: the same term and count again
      for (std::size_t lane = 0; lane < lanes; ++lane) *(shared + lane - lanes) += shared[lane];
    } else {
      CountAboveLanes(rows.x, rows.cols, limits, above);
      terms.size += last_eps ? 1 : 0;
    }
    ForWide(lanes, [&](std::size_t i) HWY_ATTR {
      const auto step = hn::Sub(hn::Load(Wide(), before + i), hn::Load(Wide(), c + i));
      const auto ratio = ExpClamped(hn::Mul(step, inverse_eps));
      const auto share =
          hn::Mul(hn::Load(Wide(), above + i), hn::Load(Wide(), rows.inverse_budget + i));
      const auto moved = hn::Mul(hn::Load(Wide(), mass + i), share);  // 0 first: ratio may be 1e304
      hn::Store(hn::Mul(moved, ratio), Wide(), mass + i);
    });
  }
  exponents.set(base, lanes, eps[n_iters]);
  SubtractSharedLanes(rows.x, rows.cols, exponents, terms, g);
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_COORDINATE_DESCENT_LANES_GRADIENT_INL_H_
