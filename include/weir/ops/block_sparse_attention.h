// SPDX-License-Identifier: Apache-2.0
// Block-sparse attention: softmax attention over the pairs of positions that a pattern allows.
//
//   p = i + m - n, the position of query i among the keys
//   allowed(i, j) = (pattern(i, j)  or  |p - j| < local)  and  (causal: j <= p  or  j < prefix)
//                   and  j is kept by key_mask and mask
//   pattern(i, j) = layout[i / block_size, j / block_size]  and  (p - j) mod stride = 0
//                   and  (|p - j| < window  or  j < prefix)
//   out_i = sum_j softmax_j(scale <q_i, k_j>) v_j over the allowed j;  0 where there is none
//
// Packed sequences (cu_seqlens) and documents (document_ids) do not see each other; i, j, n and m
// then count within one of them.
//
// docs/operators/block_sparse_attention.md has the algorithm and the cost.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

#include "weir/export.h"

namespace weir::ops {

/// Which pairs attend, and how strongly.
struct BlockSparseAttentionOptions {
  std::int64_t block_size = 32;
  bool causal = false;
  std::optional<std::int64_t> window = std::nullopt;
  std::int64_t stride = 1;
  std::int64_t prefix = 0;
  std::int64_t local = 0;
  std::optional<double> scale = std::nullopt;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = BlockSparseAttentionOptions;
    field("block_size", &Self::block_size, "Positions per block of the layout, 1 to 128.");
    field("causal", &Self::causal,
          "Only keys up to the query's position; the last query stands at the last key.");
    field("window", &Self::window,
          "Only keys less than this many positions away, the query's own included; none: all.");
    field("stride", &Self::stride, "Only keys a multiple of this many positions away.");
    field("prefix", &Self::prefix,
          "The first keys that every query may see, whatever causal and window say.");
    field("local", &Self::local,
          "Keys less than this many positions away are seen whatever layout, window and stride "
          "say.");
    field("scale", &Self::scale, "Factor on the logits; none: 1 / sqrt(dim).");
  }
};

/// What may be left out. The first three are bool, true = keep; the others integers.
struct BlockSparseAttentionMasks {
  std::optional<at::Tensor> layout =
      std::nullopt;  ///< (n / b, m / b) rounded up, or (heads, n / b, m / b)
  std::optional<at::Tensor> key_mask = std::nullopt;  ///< (batch, m)
  std::optional<at::Tensor> mask = std::nullopt;      ///< broadcasts to (batch, heads, n, m)
  std::optional<at::Tensor> cu_seqlens =
      std::nullopt;  ///< (sequences + 1): sequence s is queries cu_seqlens[s] ... cu_seqlens[s + 1]
  std::optional<at::Tensor> cu_seqlens_k = std::nullopt;  ///< the same for keys; none: as queries
  std::optional<at::Tensor> document_ids =
      std::nullopt;  ///< (batch, n), n = m: neighbours with equal ids are one document
};

/// `query` (batch, heads, n, dim), `key` (batch, kv_heads, m, dim), `value` (batch, kv_heads, m,
/// value_dim), kv_heads dividing heads -> (batch, heads, n, value_dim) of their dtype. Head h reads
/// key head h / (heads / kv_heads). Computed in float32, in float64 for float64. Nothing of size n
/// x m is stored: the backward recomputes. Keys and values at pairs that are not allowed are never
/// read into a result, NaN included. Throws c10::Error on shapes, dtypes or options that do not
/// fit.
///
/// Child et al. 2019, "Generating Long Sequences with Sparse Transformers", arXiv:1904.10509.
WEIR_API at::Tensor block_sparse_attention(const at::Tensor& query, const at::Tensor& key,
                                           const at::Tensor& value,
                                           const BlockSparseAttentionMasks& masks = {},
                                           const BlockSparseAttentionOptions& options = {});

/// The same with the log-sum-exp of the logits of each query, (batch, heads, n), float64 for
/// float64 else float32; -inf where there is no allowed key. No gradient flows through it.
WEIR_API std::tuple<at::Tensor, at::Tensor> block_sparse_attention_with_lse(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const BlockSparseAttentionMasks& masks = {}, const BlockSparseAttentionOptions& options = {});

/// The same answer from ATen operators, dense, differentiable any number of times: what runs on a
/// device that has no kernel, the tests' oracle in float64 and the benchmarks' baseline.
WEIR_API at::Tensor block_sparse_attention_composite(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const BlockSparseAttentionMasks& masks = {}, const BlockSparseAttentionOptions& options = {});

}  // namespace weir::ops
