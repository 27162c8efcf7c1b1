// SPDX-License-Identifier: Apache-2.0
// Attention whose weights are a soft top-k of the keys, not a softmax.
//
//   y_i = coordinate_descent(scale <q_i, k_j>, budget_i) over the keys j that query i sees
//   out_i = sum_j y_ij v_j,  divided by sum_j y_ij with `normalize`
//
// docs/operators/coordinate_descent_attention.md has the algorithm and the cost;
// weir/ops/coordinate_descent.h the weights.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

#include "weir/export.h"
#include "weir/ops/attention_masks.h"

namespace weir::ops {

/// Which keys a query sees, and how its weights are found.
struct CoordinateDescentAttentionOptions {
  bool causal = false;
  std::int64_t nulls = 0;
  std::int64_t n_iters = 20;
  double eps = 0.1;
  std::optional<double> eps_init = std::nullopt;
  double eps_decay = 1.0;
  std::string solver = "iterative";
  bool normalize = false;
  std::optional<double> scale = std::nullopt;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = CoordinateDescentAttentionOptions;
    field("causal", &Self::causal,
          "Only keys up to the query's position; the last query stands at the last key.");
    field(
        "nulls", &Self::nulls,
        "The first keys that every query sees, whatever causal says; positions count after them.");
    field("n_iters", &Self::n_iters, "Iterations of the iterative solver; at least 1.");
    field("eps", &Self::eps, "Entropy of the solution; smaller is closer to a hard top-k.");
    field("eps_init", &Self::eps_init, "Entropy of the first iteration; default: eps.");
    field("eps_decay", &Self::eps_decay, "Factor on the entropy from one iteration to the next.");
    field("solver", &Self::solver,
          "iterative (n_iters steps) or exact (weights sum to the budget).");
    field("normalize", &Self::normalize, "Divide by the sum of the weights.");
    field("scale", &Self::scale, "Factor on the logits; none: 1 / sqrt(dim).");
  }
};

/// `query` (batch, heads, n, dim), `key` (batch, kv_heads, m, dim), `value` (batch, kv_heads, m,
/// value_dim), kv_heads dividing heads -> (batch, heads, n, value_dim) of their dtype. Head h reads
/// key head h / (heads / kv_heads). Computed in float32, in float64 for float64.
///
/// `budget`, about how many keys a query attends to, is any real > 0: one number, or a tensor that
/// broadcasts to (batch, heads, n); the gradient reaches it. With `causal` query i sees keys up to
/// i + m - n, and the masks leave out more. A query that sees no key gives 0.
///
/// Nothing of size n x m is stored: beside its result the forward keeps n_iters numbers per query
/// (one for `exact`), and the backward computes the weights again. Keys and values that a query
/// does not see never reach its result, NaN included. Throws c10::Error on shapes, dtypes or
/// options that do not fit.
///
/// github.com/lucidrains/coordinate-descent-attention, 2023; Qian et al. 2022,
/// arXiv:2211.01267.
WEIR_API at::Tensor coordinate_descent_attention(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& budget, const AttentionMasks& masks = {},
    const CoordinateDescentAttentionOptions& options = {});
WEIR_API at::Tensor coordinate_descent_attention(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value, double budget,
    const AttentionMasks& masks = {}, const CoordinateDescentAttentionOptions& options = {});

/// The same answer from ATen operators, dense, differentiable any number of times: what runs on a
/// device that has no kernel, the tests' oracle in float64 and the benchmarks' baseline.
WEIR_API at::Tensor coordinate_descent_attention_composite(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& budget, const AttentionMasks& masks = {},
    const CoordinateDescentAttentionOptions& options = {});

}  // namespace weir::ops
