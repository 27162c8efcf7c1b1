// SPDX-License-Identifier: Apache-2.0
// What every backend of coordinate_descent_attention shares: the rule and how it travels through
// the dispatcher, the checked problem, and the composite.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "ops/block_sparse_attention.h"
#include "ops/coordinate_descent.h"

namespace weir::ops {

/// The options of a call with their defaults filled in.
struct CoordinateDescentAttentionRule {
  bool causal = false;
  std::int64_t nulls = 0;
  std::int64_t n_iters = 20;
  bool normalize = false;
  double eps = 0.1, eps_init = 0.1, eps_decay = 1;
  double scale = 1;
  std::string solver = "iterative";

  std::vector<std::int64_t> integers() const;
  std::vector<double> numbers() const;
  static CoordinateDescentAttentionRule of(at::IntArrayRef integers, at::ArrayRef<double> numbers,
                                           std::string_view solver);
};

/// The arguments of one call, checked and normalised.
struct CoordinateDescentAttentionProblem {
  c10::SymInt batch, heads, kv_heads;
  c10::SymInt queries, keys;  ///< n, m
  c10::SymInt dim, value_dim;
  CoordinateDescentAttentionRule rule;
  std::vector<double> eps;  ///< as of CoordinateDescentProblem
  at::ScalarType compute;   ///< float64 for float64 inputs, else float32

  std::int64_t n_iters() const { return rule.solver == "exact" ? 0 : rule.n_iters; }
  std::vector<c10::SymInt> row_shape() const { return {batch, heads, queries}; }
  std::vector<c10::SymInt> output_shape() const { return {batch, heads, queries, value_dim}; }
  /// Always float64, as of coordinate_descent.
  std::vector<c10::SymInt> trace_shape() const {
    return {batch, heads, queries, std::max<std::int64_t>(n_iters(), 1)};
  }
};

/// Checks all arguments; the first call of every backend. Throws c10::Error.
CoordinateDescentAttentionProblem coordinate_descent_attention_problem(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& budget, const OptionalTensor& key_mask, const OptionalTensor& mask,
    at::IntArrayRef integers, at::ArrayRef<double> numbers, std::string_view solver);

/// Output and trace from ATen operators, differentiable any number of times.
std::tuple<at::Tensor, at::Tensor> coordinate_descent_attention_composite_forward(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& budget, const OptionalTensor& key_mask, const OptionalTensor& mask,
    at::IntArrayRef integers, at::ArrayRef<double> numbers, std::string_view solver);

/// Gradients of query, key, value and, per query in float64, of budget, from ATen operators.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>
coordinate_descent_attention_composite_backward(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& budget, const OptionalTensor& key_mask, const OptionalTensor& mask,
    const at::Tensor& trace, at::IntArrayRef integers, at::ArrayRef<double> numbers,
    std::string_view solver);

}  // namespace weir::ops
