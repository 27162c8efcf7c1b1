// SPDX-License-Identifier: Apache-2.0
// l2_rms_norm on the CPU, once per instruction set. A row is read twice, the second time from the
// L1 cache.
#include "kernels/l2_rms_norm.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/flush_denormals.h"
#include "kernels/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/l2_rms_norm.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/vector_access-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {

template <class T>
constexpr T kLeast = static_cast<T>(1e-12);

template <class Value, class T>
HWY_INLINE void Forward(const L2RmsNormForward<Value, T>& args, std::int64_t begin,
                        std::int64_t end) {
  const hn::ScalableTag<T> d;
  const T target = std::sqrt(static_cast<T>(args.dim));
  for (std::int64_t index = begin; index < end; ++index) {
    const Value* x = args.x + index * args.dim;
    Value* output = args.output + index * args.dim;
    auto squares = hn::Zero(d);
    ForColumns<T>(args.dim, [&](std::int64_t column, auto access) HWY_ATTR {
      const auto v = access.Load(d, x + column);
      squares = hn::MulAdd(v, v, squares);
    });
    const T whole = std::sqrt(hn::GetLane(hn::SumOfLanes(d, squares)));
    const T length = whole < kLeast<T> ? kLeast<T> : whole;  // NaN stays
    args.lengths[index] = length;
    const auto factor = hn::Set(d, target / length);
    ForColumns<T>(args.dim, [&](std::int64_t column, auto access) HWY_ATTR {
      const auto v = hn::Mul(access.Load(d, x + column), factor);
      access.Store(d, hn::Mul(v, access.Load(d, args.gamma + column)), output + column);
    });
  }
}

/// With h = g gamma and a = sqrt(dim) / |x|: dx = a (h - <h, x> / |x|^2 x), dgamma += a g x
template <class Value, class T>
HWY_INLINE void BackwardRow(const L2RmsNormBackward<Value, T>& args, std::int64_t index, T* sums) {
  const hn::ScalableTag<T> d;
  const Value* x = args.x + index * args.dim;
  const Value* grad = args.grad + index * args.dim;
  Value* grad_x = args.grad_x + index * args.dim;
  auto products = hn::Zero(d);
  ForColumns<T>(args.dim, [&](std::int64_t column, auto access) HWY_ATTR {
    const auto h = hn::Mul(access.Load(d, grad + column), access.Load(d, args.gamma + column));
    products = hn::MulAdd(h, access.Load(d, x + column), products);
  });
  const T length = args.lengths[index], a = std::sqrt(static_cast<T>(args.dim)) / length;
  const T product = hn::GetLane(hn::SumOfLanes(d, products));
  const bool turns = !(length <= kLeast<T>);  // a length at its floor is constant
  const auto factor = hn::Set(d, a), along = hn::Set(d, turns ? product / length / length : T(0));
  ForColumns<T>(args.dim, [&](std::int64_t column, auto access) HWY_ATTR {
    const auto g = access.Load(d, grad + column), v = access.Load(d, x + column);
    const auto h = hn::Mul(g, access.Load(d, args.gamma + column));
    access.Store(d, hn::Mul(factor, hn::NegMulAdd(along, v, h)), grad_x + column);
    const auto sum = hn::LoadU(d, sums + column);
    hn::StoreU(hn::MulAdd(hn::Mul(factor, g), v, sum), d, sums + column);
  });
}

template <class Value, class T>
HWY_INLINE void Backward(const L2RmsNormBackward<Value, T>& args, std::int64_t begin,
                         std::int64_t end) {
  const std::int64_t part_rows = (args.rows + args.parts - 1) / args.parts;
  const std::int64_t width = l2_rms_norm_row(args.dim);
  for (std::int64_t part = begin; part < end; ++part) {
    T* sums = args.grad_gamma + part * width;
    std::fill_n(sums, width, T(0));
    const std::int64_t first = part * part_rows, last = std::min(args.rows, first + part_rows);
    for (std::int64_t index = first; index < last; ++index) BackwardRow(args, index, sums);
  }
}

#define WEIR_INSTANTIATE(Name, Value, T)                                           \
  void Forward##Name(const L2RmsNormForward<Value, T>& args, std::int64_t begin,   \
                     std::int64_t end) {                                           \
    Forward(args, begin, end);                                                     \
  }                                                                                \
  void Backward##Name(const L2RmsNormBackward<Value, T>& args, std::int64_t begin, \
                      std::int64_t end) {                                          \
    Backward(args, begin, end);                                                    \
  }
WEIR_INSTANTIATE(Float, float, float)
WEIR_INSTANTIATE(Double, double, double)
WEIR_INSTANTIATE(BFloat16, BFloat16, float)
WEIR_INSTANTIATE(Float16, Float16, float)
#undef WEIR_INSTANTIATE

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weir::kernels {

std::int64_t l2_rms_norm_row(std::int64_t dim) {
  constexpr auto kLanes = static_cast<std::int64_t>(kMostLanes);
  return (dim + kLanes - 1) / kLanes * kLanes;
}

#define WEIR_DISPATCH(Name, Value, T)                                                    \
  HWY_EXPORT(Forward##Name);                                                             \
  HWY_EXPORT(Backward##Name);                                                            \
  void l2_rms_norm_forward(const L2RmsNormForward<Value, T>& args, std::int64_t begin,   \
                           std::int64_t end) {                                           \
    const FlushDenormals guard;                                                          \
    HWY_DYNAMIC_DISPATCH(Forward##Name)(args, begin, end);                               \
  }                                                                                      \
  void l2_rms_norm_backward(const L2RmsNormBackward<Value, T>& args, std::int64_t begin, \
                            std::int64_t end) {                                          \
    const FlushDenormals guard;                                                          \
    HWY_DYNAMIC_DISPATCH(Backward##Name)(args, begin, end);                              \
  }
WEIR_DISPATCH(Float, float, float)
WEIR_DISPATCH(Double, double, double)
WEIR_DISPATCH(BFloat16, BFloat16, float)
WEIR_DISPATCH(Float16, Float16, float)
#undef WEIR_DISPATCH

}  // namespace weir::kernels
#endif  // HWY_ONCE
