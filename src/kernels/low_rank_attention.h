// SPDX-License-Identifier: Apache-2.0
// Attention over keys that routing heads choose: docs/operators/low_rank_attention.md. The choice
// is that of top_k_attention among the routing queries and keys; the heads of a group attend to the
// keys of their routing head. The caller owns every byte and calls each function over ranges that
// may be split in any way.
//
// Which keys a query sees is said by the shape of the routing operands; of the other shape only
// sizes and scale are read.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/top_k_attention.h"

namespace weir::kernels {

/// How the routing logits of kept keys become scores: softmax, or the exact solution of coordinate
/// descent.
struct LowRankAttentionScore {
  bool descends = false;
  double eps = 0.1, budget = 1;
};

template <class Value, class T>
struct LowRankAttentionForward {
  BlockSparseAttentionOperands<Value, T> route;  // no values: nothing reads them
  BlockSparseAttentionOperands<Value, T> in;
  std::int64_t k = 0;  // at most the number of keys
  LowRankAttentionScore score;
  Value* output = nullptr;          // [batch, heads, queries, value_dim]
  std::int32_t* indices = nullptr;  // [batch, route_heads, queries, k]
  T* scores = nullptr;              // the same
  T* weights = nullptr;             // [batch, heads, queries, k]
};

template <class Value, class T>
struct LowRankAttentionBackward {
  TopKAttentionBackward<Value, T> attention;  // its indices are those of the routing heads
  BlockSparseAttentionOperands<Value, T> route;
  LowRankAttentionScore score;
  const T* scores = nullptr;          // [batch, route_heads, queries, k]
  T* grad_scores = nullptr;           // [batch, heads, queries, k]: what each head contributes
  Value* grad_route_query = nullptr;  // [batch, route_heads, queries, route_dim]
  T* grad_route_key = nullptr;        // as grad_key, of the routing shape
};

/// Scratch of one call of forward; that of the backward is top_k_attention's for either shape.
std::size_t low_rank_attention_workspace_bytes(const BlockSparseAttentionShape& route,
                                               const BlockSparseAttentionShape& shape,
                                               std::int64_t k);

/// Ranges of batch * route_heads * tiles.
void low_rank_attention_forward(const LowRankAttentionForward<float, float>& args,
                                std::int64_t begin, std::int64_t end, std::byte* workspace);
void low_rank_attention_forward(const LowRankAttentionForward<double, double>& args,
                                std::int64_t begin, std::int64_t end, std::byte* workspace);
void low_rank_attention_forward(const LowRankAttentionForward<BFloat16, float>& args,
                                std::int64_t begin, std::int64_t end, std::byte* workspace);
void low_rank_attention_forward(const LowRankAttentionForward<Float16, float>& args,
                                std::int64_t begin, std::int64_t end, std::byte* workspace);

/// The first pass, which leaves grad_scores: ranges of batch * kv_heads * key_parts.
void low_rank_attention_backward(const LowRankAttentionBackward<float, float>& args,
                                 std::int64_t begin, std::int64_t end, std::byte* workspace);
void low_rank_attention_backward(const LowRankAttentionBackward<double, double>& args,
                                 std::int64_t begin, std::int64_t end, std::byte* workspace);
void low_rank_attention_backward(const LowRankAttentionBackward<BFloat16, float>& args,
                                 std::int64_t begin, std::int64_t end, std::byte* workspace);
void low_rank_attention_backward(const LowRankAttentionBackward<Float16, float>& args,
                                 std::int64_t begin, std::int64_t end, std::byte* workspace);

/// The second pass, that of the routing heads: ranges of batch * kv_heads * key_parts of their
/// shape.
void low_rank_attention_route_backward(const LowRankAttentionBackward<float, float>& args,
                                       std::int64_t begin, std::int64_t end, std::byte* workspace);
void low_rank_attention_route_backward(const LowRankAttentionBackward<double, double>& args,
                                       std::int64_t begin, std::int64_t end, std::byte* workspace);
void low_rank_attention_route_backward(const LowRankAttentionBackward<BFloat16, float>& args,
                                       std::int64_t begin, std::int64_t end, std::byte* workspace);
void low_rank_attention_route_backward(const LowRankAttentionBackward<Float16, float>& args,
                                       std::int64_t begin, std::int64_t end, std::byte* workspace);

}  // namespace weir::kernels
