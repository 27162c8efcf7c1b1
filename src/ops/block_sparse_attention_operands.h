// SPDX-License-Identifier: Apache-2.0
// Operands of attention on the CPU: tensors, and the kernels' pointers into them.
#pragma once

#include <ATen/core/Tensor.h>

#include "kernels/block_sparse_attention.h"
#include "ops/block_sparse_attention_plan.h"
#include "ops/kernel_attention.h"
#include "ops/kernel_value.h"

namespace weir::ops {

/// The tensors that kernels point into.
struct AttentionOperands {
  at::Tensor query, key, value, bias, query_rotation, key_rotation;
};

inline AttentionOperands attention_operands(const BlockSparseAttentionProblem& problem,
                                            const at::Tensor& query, const at::Tensor& key,
                                            const at::Tensor& value) {
  const auto computed = [&](const OptionalTensor& x) {
    return x ? x->to(problem.compute).contiguous() : at::Tensor();
  };
  return {.query = with_contiguous_features(query),
          .key = with_contiguous_features(key),
          .value = with_contiguous_features(value),
          .bias = problem.bias ? computed(problem.bias->transpose(1, 2)) : at::Tensor(),
          .query_rotation = computed(problem.tensors.query_rotation),
          .key_rotation = computed(problem.tensors.key_rotation)};
}

template <class Scalar>
auto attention_pointers(const AttentionPlan& plan, const AttentionOperands& from) {
  using T = Compute<Scalar>;
  const auto values = [](const at::Tensor& tensor) {
    return reinterpret_cast<const Value<Scalar>*>(tensor.const_data_ptr<Scalar>());
  };
  const auto numbers = [](const at::Tensor& tensor) -> const T* {
    return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
  };
  return kernels::BlockSparseAttentionOperands<Value<Scalar>, T>{
      .shape = plan.shape,
      .query = values(from.query),
      .key = values(from.key),
      .value = values(from.value),
      .query_strides = attention_strides(from.query),
      .key_strides = attention_strides(from.key),
      .value_strides = attention_strides(from.value),
      .bias = numbers(from.bias),
      .query_rotation = numbers(from.query_rotation),
      .key_rotation = numbers(from.key_rotation)};
}

}  // namespace weir::ops
