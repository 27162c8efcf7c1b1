// SPDX-License-Identifier: Apache-2.0
// What block_sparse_attention and local_attention share: one private operator,
// _block_sparse_attention, whose rule is general enough for both, the checked problem, and the
// composite. The tensors that take no gradient and the numbers of the rule travel as lists.
#pragma once

#include <ATen/core/List.h>
#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "weir/ops/block_sparse_attention.h"

namespace weir::ops {

using OptionalTensor = std::optional<at::Tensor>;

/// As a distance: none.
constexpr std::int64_t kUnlimited = std::int64_t{1} << 60;

/// What a call has besides query, key, value and bias.
struct AttentionTensors : BlockSparseAttentionMasks {
  OptionalTensor query_rotation = std::nullopt;  ///< (n, dim): dim / 2 cosines, dim / 2 sines
  OptionalTensor key_rotation = std::nullopt;    ///< (m, dim)
  OptionalTensor dropout_seed = std::nullopt;    ///< int64, one number

  c10::List<OptionalTensor> list() const;
  static AttentionTensors of(const c10::List<OptionalTensor>& list);
};

/// Which pairs attend. Query i stands at position p = i + offset among the keys, and
/// s = p - p mod bucket.
struct AttentionRule {
  std::int64_t block_size = 32;
  bool causal = false;
  std::int64_t behind = kUnlimited;  ///< j >= s - behind
  std::int64_t ahead = kUnlimited;   ///< j <= s + bucket - 1 + ahead
  std::int64_t bucket = 1;
  std::int64_t stride = 1;           ///< p - j is a multiple of it
  std::int64_t prefix = 0;           ///< or j < prefix
  std::int64_t local = 0;            ///< or |p - j| < local, and causality
  std::int64_t offset = kUnlimited;  ///< kUnlimited: m - n, the last query stands at the last key
  bool self_last = false;  ///< j = p has the logit kSelfLogit of kernels/block_sparse_attention.h
  std::int64_t bias_behind = 0;  ///< a bias is that of keys from p - p mod bias rows - bias_behind
  double scale = 1;
  double dropout = 0;

  std::vector<std::int64_t> integers() const;
  std::vector<double> numbers() const;
  static AttentionRule of(at::IntArrayRef integers, at::ArrayRef<double> numbers);
};

/// The arguments of one call, checked and normalised.
struct BlockSparseAttentionProblem {
  c10::SymInt batch, heads, kv_heads;
  c10::SymInt queries, keys;  ///< n, m
  c10::SymInt dim, value_dim;
  AttentionRule rule;
  AttentionTensors tensors;
  OptionalTensor bias;                  ///< (heads, rows, columns)
  at::ScalarType compute = at::kFloat;  ///< float64 for float64 inputs, else float32

  bool packed() const { return tensors.cu_seqlens || tensors.document_ids; }
  std::vector<c10::SymInt> lse_shape() const { return {batch, heads, queries}; }
  std::vector<c10::SymInt> output_shape() const { return {batch, heads, queries, value_dim}; }
};

/// Checks of operands that operators do under their own names, such as "local_attention".
void check_attention_operand(const char* op, const char* name, const char* shape,
                             const at::Tensor& tensor, const at::Tensor& query);
void check_attention_operands(const char* op, const at::Tensor& query, const at::Tensor& key,
                              const at::Tensor& value);
void check_attention_mask(const char* op, const char* name, const at::Tensor& mask,
                          const at::Tensor& query);
void check_key_mask(const char* op, const OptionalTensor& key_mask, const at::Tensor& query,
                    const at::Tensor& key);

/// `mask`, if there is one: bool, broadcasts to (batch, heads, n, m).
void check_pair_mask(const char* op, const OptionalTensor& mask, const at::Tensor& query,
                     const at::Tensor& key);

/// `scale`, or 1 / sqrt(dim). What `query` should look like is checked behind the dispatcher.
double attention_scale(const at::Tensor& query, std::optional<double> scale);

/// Checks all arguments; the first call of every backend. Throws c10::Error.
BlockSparseAttentionProblem block_sparse_attention_problem(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const OptionalTensor& bias, const c10::List<OptionalTensor>& tensors, at::IntArrayRef integers,
    at::ArrayRef<double> numbers);

/// The private operator: output (batch, heads, n, value_dim), differentiable in query, key, value
/// and bias, and log-sum-exp (batch, heads, n).
std::tuple<at::Tensor, at::Tensor> attend(const at::Tensor& query, const at::Tensor& key,
                                          const at::Tensor& value, const OptionalTensor& bias,
                                          const AttentionTensors& tensors,
                                          const AttentionRule& rule);

/// The same from ATen operators, differentiable any number of times.
std::tuple<at::Tensor, at::Tensor> attend_composite(const at::Tensor& query, const at::Tensor& key,
                                                    const at::Tensor& value,
                                                    const OptionalTensor& bias,
                                                    const c10::List<OptionalTensor>& tensors,
                                                    at::IntArrayRef integers,
                                                    at::ArrayRef<double> numbers);

/// Gradients of query, key, value and bias (empty without one) from ATen operators.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> attend_composite_backward(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const OptionalTensor& bias, const at::Tensor& output, const at::Tensor& lse,
    const c10::List<OptionalTensor>& tensors, at::IntArrayRef integers,
    at::ArrayRef<double> numbers);

}  // namespace weir::ops
