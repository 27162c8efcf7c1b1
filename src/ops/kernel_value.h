// SPDX-License-Identifier: Apache-2.0
// The kernels' name for each of torch's floating types.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <type_traits>

#include "kernels/half.h"

namespace weir::ops {

template <class Scalar>
using Value = std::conditional_t<
    std::is_same_v<Scalar, at::BFloat16>, kernels::BFloat16,
    std::conditional_t<std::is_same_v<Scalar, at::Half>, kernels::Float16, Scalar>>;

/// What kernels compute it in.
template <class Scalar>
using Compute = std::conditional_t<std::is_same_v<Scalar, double>, double, float>;

/// The elements of a contiguous tensor of `Scalar`, as kernels take them.
template <class Scalar>
Value<Scalar>* values_of(const at::Tensor& x) {
  return reinterpret_cast<Value<Scalar>*>(x.mutable_data_ptr<Scalar>());
}
template <class Scalar>
const Value<Scalar>* const_values_of(const at::Tensor& x) {
  return reinterpret_cast<const Value<Scalar>*>(x.const_data_ptr<Scalar>());
}

}  // namespace weir::ops
