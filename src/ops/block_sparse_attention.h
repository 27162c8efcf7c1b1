// SPDX-License-Identifier: Apache-2.0
// What every backend of block_sparse_attention shares: the checked problem and the composite.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

namespace weir::ops {

/// The arguments of one call, checked and normalised.
struct BlockSparseAttentionProblem {
  c10::SymInt batch, heads, kv_heads;
  c10::SymInt queries, keys;  ///< n, m
  c10::SymInt dim, value_dim;
  std::int64_t block_size = 32;
  bool causal = false;
  std::int64_t window = 0;  ///< 0: none
  std::int64_t stride = 1;
  std::int64_t prefix = 0;
  double scale = 1;
  at::ScalarType compute = at::kFloat;  ///< float64 for float64 inputs, else float32

  std::vector<c10::SymInt> lse_shape() const { return {batch, heads, queries}; }
  std::vector<c10::SymInt> output_shape() const { return {batch, heads, queries, value_dim}; }
};

/// Checks all arguments; the first call of every backend. Throws c10::Error.
BlockSparseAttentionProblem block_sparse_attention_problem(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const std::optional<at::Tensor>& layout, const std::optional<at::Tensor>& key_mask,
    const std::optional<at::Tensor>& mask, std::int64_t block_size, bool causal,
    std::optional<std::int64_t> window, std::int64_t stride, std::int64_t prefix,
    std::optional<double> scale);

/// Output (batch, heads, n, value_dim) and log-sum-exp (batch, heads, n) from ATen operators;
/// the output is differentiable in query, key and value, any number of times.
std::tuple<at::Tensor, at::Tensor> block_sparse_attention_composite_forward(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const std::optional<at::Tensor>& layout, const std::optional<at::Tensor>& key_mask,
    const std::optional<at::Tensor>& mask, std::int64_t block_size, bool causal,
    std::optional<std::int64_t> window, std::int64_t stride, std::int64_t prefix,
    std::optional<double> scale);

/// Gradients of query, key and value from ATen operators.
std::tuple<at::Tensor, at::Tensor, at::Tensor> block_sparse_attention_composite_backward(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& output, const at::Tensor& lse, const std::optional<at::Tensor>& layout,
    const std::optional<at::Tensor>& key_mask, const std::optional<at::Tensor>& mask,
    std::int64_t block_size, bool causal, std::optional<std::int64_t> window, std::int64_t stride,
    std::int64_t prefix, std::optional<double> scale);

}  // namespace weir::ops
