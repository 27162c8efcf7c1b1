// SPDX-License-Identifier: Apache-2.0
// Attention that keeps, for every query, the k largest of its logits: Gupta et al. 2021,
// arXiv:2106.06899. docs/operators/top_k_attention.md has the algorithm. The caller owns every byte
// and calls forward or backward over ranges that may be split in any way.
//
// Which keys a query sees is said by a BlockSparseAttentionShape with one segment, no bias,
// rotation, layout or dropout.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/block_sparse_attention.h"

namespace weir::kernels {

/// Kept keys of a query stand in ascending order; places that are left over have index -1 and
/// weight 0.
template <class Value, class T>
struct TopKAttentionForward {
  BlockSparseAttentionOperands<Value, T> in;
  std::int64_t k = 0;               // at most in.shape.keys
  Value* output = nullptr;          // [batch, heads, queries, value_dim]
  std::int32_t* indices = nullptr;  // [batch, heads, queries, k]
  T* weights = nullptr;             // the same
};

template <class Value, class T>
struct TopKAttentionBackward {
  BlockSparseAttentionOperands<Value, T> in;  // of the shape: sizes, scale and key_parts
  std::int64_t k = 0;
  const Value* grad = nullptr;  // [batch, heads, queries, value_dim]
  const std::int32_t* indices = nullptr;
  const T* weights = nullptr;
  Value* grad_query = nullptr;  // [batch, heads, queries, dim]
  T* grad_key = nullptr;        // [key_parts, batch, kv_heads, keys, top_k_attention_row(dim)]
  T* grad_value = nullptr;  // [key_parts, batch, kv_heads, keys, top_k_attention_row(value_dim)]
};

/// Entries of a row of grad_key or grad_value: those of a key or value, up to whole vectors.
std::int64_t top_k_attention_row(std::int64_t count);

/// Scratch of one call of forward, or of backward.
std::size_t top_k_attention_workspace_bytes(const BlockSparseAttentionShape& shape, std::int64_t k,
                                            bool backward);

/// Ranges of batch * heads * tiles.
void top_k_attention_forward(const TopKAttentionForward<float, float>& args, std::int64_t begin,
                             std::int64_t end, std::byte* workspace);
void top_k_attention_forward(const TopKAttentionForward<double, double>& args, std::int64_t begin,
                             std::int64_t end, std::byte* workspace);
void top_k_attention_forward(const TopKAttentionForward<BFloat16, float>& args, std::int64_t begin,
                             std::int64_t end, std::byte* workspace);
void top_k_attention_forward(const TopKAttentionForward<Float16, float>& args, std::int64_t begin,
                             std::int64_t end, std::byte* workspace);

/// Ranges of batch * kv_heads * key_parts: one call owns the key and value gradients of its parts.
void top_k_attention_backward(const TopKAttentionBackward<float, float>& args, std::int64_t begin,
                              std::int64_t end, std::byte* workspace);
void top_k_attention_backward(const TopKAttentionBackward<double, double>& args, std::int64_t begin,
                              std::int64_t end, std::byte* workspace);
void top_k_attention_backward(const TopKAttentionBackward<BFloat16, float>& args,
                              std::int64_t begin, std::int64_t end, std::byte* workspace);
void top_k_attention_backward(const TopKAttentionBackward<Float16, float>& args, std::int64_t begin,
                              std::int64_t end, std::byte* workspace);

}  // namespace weir::kernels
