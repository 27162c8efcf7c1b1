// SPDX-License-Identifier: Apache-2.0
// Attention whose weights are coordinate_descent of a row of logits:
//
//   y_i = coordinate_descent(scale <q_i, k_j>, budget_i) over the keys j that query i sees
//   out_i = sum_j y_ij v_j, divided by sum_j y_ij with `normalize`
//
// A block of query rows is worked on in scratch, so that nothing of size queries x keys is stored.
// docs/operators/coordinate_descent_attention.md has the algorithm. The caller owns every byte and
// calls forward or backward over ranges that may be split in any way.
//
// Value is float, double, BFloat16 or Float16; the 16-bit types are computed in float.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention_strides.h"
#include "kernels/half.h"

namespace weir::kernels {

struct CoordinateDescentAttentionShape {
  std::int64_t batch = 0, heads = 0, kv_heads = 0;
  std::int64_t queries = 0, keys = 0, dim = 0, value_dim = 0;
  bool causal = false;     // query i sees keys up to i + keys - queries,
  std::int64_t nulls = 0;  // and the first `nulls`
  bool normalize = false;
  double scale = 1;
  const double* eps = nullptr;             // iterative: [n_iters + 1]; exact: [1]
  std::int64_t n_iters = 0;                // 0: the exact solver
  const std::uint8_t* key_mask = nullptr;  // [batch, keys], 1 = keep
  const std::uint8_t* mask = nullptr;      // 1 = keep
  std::int64_t mask_batch = 0, mask_head = 0, mask_query = 0, mask_key = 0;  // its strides
  std::int64_t block_rows = 64;                                              // queries per block
  // Few heads leave threads idle in the backward: their blocks are dealt to parts, which sum up the
  // gradients of all keys apart.
  std::int64_t key_parts = 1;

  std::int64_t blocks() const { return (queries + block_rows - 1) / block_rows; }
};

/// T is the type of the computation, double for double and else float.
template <class Value>
struct CoordinateDescentAttentionOperands {
  CoordinateDescentAttentionShape shape;
  const Value* query = nullptr;
  const Value* key = nullptr;
  const Value* value = nullptr;
  AttentionStrides query_strides, key_strides, value_strides;
  const double* budget = nullptr;  // [batch, heads, queries], or one value for all
  std::int64_t budget_stride = 0;  // 1, or 0
};

template <class Value>
struct CoordinateDescentAttentionForward {
  CoordinateDescentAttentionOperands<Value> in;
  Value* output = nullptr;  // [batch, heads, queries, value_dim]
  double* trace = nullptr;  // [batch, heads, queries, max(n_iters, 1)]
};

template <class Value, class T>
struct CoordinateDescentAttentionBackward {
  CoordinateDescentAttentionOperands<Value> in;
  const Value* grad = nullptr;  // [batch, heads, queries, value_dim]
  const double* trace = nullptr;
  Value* grad_query = nullptr;  // [batch, heads, queries, dim]
  // Added to; rows of whole vectors: dim and value_dim rounded up to kMostLanes.
  T* grad_key = nullptr;          // [key_parts, batch, kv_heads, keys, dim]
  T* grad_value = nullptr;        // [key_parts, batch, kv_heads, keys, value_dim]
  double* grad_budget = nullptr;  // [batch, heads, queries]
};

/// Queries per block, so that their rows of `keys` numbers of `bytes` each stay in L2.
std::int64_t coordinate_descent_attention_block_rows(std::int64_t queries, std::int64_t keys,
                                                     std::int64_t bytes);

/// Scratch of one call of forward, or of backward.
std::size_t coordinate_descent_attention_workspace_bytes(
    const CoordinateDescentAttentionShape& shape, bool backward);

/// Ranges of batch entries * heads * blocks.
void coordinate_descent_attention_forward(const CoordinateDescentAttentionForward<float>& args,
                                          std::int64_t begin, std::int64_t end,
                                          std::byte* workspace);
void coordinate_descent_attention_forward(const CoordinateDescentAttentionForward<double>& args,
                                          std::int64_t begin, std::int64_t end,
                                          std::byte* workspace);
void coordinate_descent_attention_forward(const CoordinateDescentAttentionForward<BFloat16>& args,
                                          std::int64_t begin, std::int64_t end,
                                          std::byte* workspace);
void coordinate_descent_attention_forward(const CoordinateDescentAttentionForward<Float16>& args,
                                          std::int64_t begin, std::int64_t end,
                                          std::byte* workspace);

/// Ranges of batch entries * kv_heads * key_parts: one call owns the key and value gradients of its
/// parts.
void coordinate_descent_attention_backward(
    const CoordinateDescentAttentionBackward<float, float>& args, std::int64_t begin,
    std::int64_t end, std::byte* workspace);
void coordinate_descent_attention_backward(
    const CoordinateDescentAttentionBackward<double, double>& args, std::int64_t begin,
    std::int64_t end, std::byte* workspace);
void coordinate_descent_attention_backward(
    const CoordinateDescentAttentionBackward<BFloat16, float>& args, std::int64_t begin,
    std::int64_t end, std::byte* workspace);
void coordinate_descent_attention_backward(
    const CoordinateDescentAttentionBackward<Float16, float>& args, std::int64_t begin,
    std::int64_t end, std::byte* workspace);

}  // namespace weir::kernels
