// SPDX-License-Identifier: Apache-2.0
// 2^t for vectors. float: degree 5, at most 1.7e-7 relative, exactly 1 at 0; below 2^-126 it stays
// at 2^-126, so that no denormal is ever met. double: Highway's Exp, about 1 ulp.
#if defined(WEIR_KERNELS_CPU_EXP2_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_EXP2_INL_H_
#undef WEIR_KERNELS_CPU_EXP2_INL_H_
#else
#define WEIR_KERNELS_CPU_EXP2_INL_H_
#endif

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <concepts>

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Exponents below this one count as "nothing": 2^t is 0 in results, and negligible in sums that
/// are >= 1.
template <class T>
constexpr T kSmallestExponent = sizeof(T) == 4 ? T(-126) : T(-1021);

template <class D>
requires std::same_as < hn::TFromD<D>,
float > HWY_INLINE hn::Vec<D> Exp2(D d, hn::Vec<D> t) {
  // Minimax of (1 + f q(f)) / 2^f - 1 on [-1/2, 1/2]: 9.1e-8 before rounding.
  const auto c5 = hn::Set(d, 0.001326472731307149f), c4 = hn::Set(d, 0.009671512991189957f),
             c3 = hn::Set(d, 0.05550733581185341f), c2 = hn::Set(d, 0.24022242426872253f),
             c1 = hn::Set(d, 0.6931470036506653f), c0 = hn::Set(d, 1.0f);
  t = hn::Max(t, hn::Set(d, kSmallestExponent<float>));
#if HWY_TARGET <= HWY_AVX3
  const auto n = hn::Round(t);
#else
  // Adding 1.5 * 2^23 leaves the nearest integer in the low bits.
  const auto magic = hn::Set(d, 12582912.0f);
  const auto shifted = hn::Add(t, magic);
  const auto n = hn::Sub(shifted, magic);
#endif
  const auto f = hn::Sub(t, n);
  auto p = hn::MulAdd(c5, f, c4);
  p = hn::MulAdd(p, f, c3);
  p = hn::MulAdd(p, f, c2);
  p = hn::MulAdd(p, f, c1);
  p = hn::MulAdd(p, f, c0);
#if HWY_TARGET <= HWY_AVX3
  return hn::Vec<D>{_mm512_scalef_ps(p.raw, n.raw)};
#else
  const hn::RebindToUnsigned<D> du;
  return hn::BitCast(d, hn::Add(hn::BitCast(du, p), hn::ShiftLeft<23>(hn::BitCast(du, shifted))));
#endif
}

template <class D>
requires std::same_as < hn::TFromD<D>,
double > HWY_INLINE hn::Vec<D> Exp2(D d, hn::Vec<D> t) {
  t = hn::Max(t, hn::Set(d, kSmallestExponent<double>));
  return hn::Exp(d, hn::Mul(t, hn::Set(d, 0.693147180559945309417)));
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_EXP2_INL_H_
