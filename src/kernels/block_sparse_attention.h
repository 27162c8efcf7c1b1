// SPDX-License-Identifier: Apache-2.0
// Attention over tiles of queries and runs of keys, with the softmax carried along and nothing of
// size queries x keys stored: block_sparse_attention and local_attention.
// docs/operators/block_sparse_attention.md has the algorithm. The caller owns every byte and calls
// forward or backward over ranges that may be split in any way.
//
// The sequence may be cut into segments that do not see each other: packed sequences, the residue
// classes of a stride. Within a segment, query row r stands at position `offset + r` of the
// segment's keys 0, 1, ....
//
// Value is float, double, BFloat16 or Float16; the 16-bit types are computed in float.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention_strides.h"
#include "kernels/half.h"

namespace weir::kernels {

/// Logit of a query and the key at its own position with `self_last`: low enough to count only when
/// nothing else is there.
constexpr double kSelfLogit = -5e4;

/// The active blocks of every block row: columns[first[row] ... first[row + 1]), ascending.
struct BlockRows {
  const std::int64_t* first = nullptr;
  const std::int64_t* columns = nullptr;
};

/// Query r of a segment is position query_first + r * step of the sequence; keys likewise.
struct AttentionSegment {
  std::int64_t batch = 0;  // added to the batch entry
  std::int64_t step = 1;
  std::int64_t query_first = 0, queries = 0;
  std::int64_t key_first = 0, keys = 0;
  std::int64_t offset = 0;
  std::int64_t behind = 0, ahead = 0;  // keys [s - behind, s + bucket - 1 + ahead], s the bucket's
  std::int64_t prefix = 0;             // keys that every query sees
  std::int64_t hole = 0;               // keys less than this far away (causal: behind) are left out
  std::int64_t query_tile = 0;         // its first query tile
};

struct BlockSparseAttentionShape {
  std::int64_t batch = 0, heads = 0, kv_heads = 0;
  std::int64_t queries = 0, keys = 0, dim = 0, value_dim = 0;
  bool causal = false;
  bool self_last = false;   // the key at the query's position has a constant, low logit
  std::int64_t bucket = 1;  // segments have step 1 if it is more
  std::int64_t stride = 1;  // within a segment: only keys a multiple of it away
  double scale = 1;
  double dropout = 0;
  std::uint64_t seed = 0;
  const AttentionSegment* segments = nullptr;
  std::int64_t segment_count = 0;
  std::int64_t longest_segment = 0;  // in keys
  std::int64_t tiles = 0;            // of all segments, of one head
  std::int64_t tile_rows = 64;       // queries per tile; divides block_size with a layout
  std::int64_t block_size = 32;      // of the layout, whose segments have step 1
  std::int64_t layout_heads = 0;     // 0: no layout; 1, or heads
  std::int64_t block_rows = 0;
  BlockRows layout;                        // [layout_heads * block_rows]
  const std::uint8_t* key_mask = nullptr;  // [batch, keys], 1 = keep
  const std::uint8_t* mask = nullptr;      // 1 = keep
  std::int64_t mask_batch = 0, mask_head = 0, mask_query = 0, mask_key = 0;  // its strides
  // The bias of query position p and key j is [j - (p - p mod rows - behind)][p mod rows] of
  // [heads, columns, rows].
  std::int64_t bias_rows = 0, bias_columns = 0, bias_behind = 0;
  // Few heads leave threads idle in the backward: their query tiles are cut into parts, which sum
  // up the gradients of all keys apart.
  std::int64_t key_parts = 1;
};

/// T is the type of the computation, double for double and else float.
template <class Value, class T>
struct BlockSparseAttentionOperands {
  BlockSparseAttentionShape shape;
  const Value* query = nullptr;
  const Value* key = nullptr;
  const Value* value = nullptr;
  AttentionStrides query_strides, key_strides, value_strides;
  const T* bias = nullptr;
  const T* query_rotation = nullptr;  // [queries, dim]: dim / 2 cosines, dim / 2 sines
  const T* key_rotation = nullptr;    // [keys, dim]
};

template <class Value, class T>
struct BlockSparseAttentionForward {
  BlockSparseAttentionOperands<Value, T> in;
  Value* output = nullptr;  // [batch, heads, queries, value_dim]
  T* lse = nullptr;         // [batch, heads, queries]
};

template <class Value, class T>
struct BlockSparseAttentionBackward {
  BlockSparseAttentionOperands<Value, T> in;
  const Value* grad = nullptr;    // [batch, heads, queries, value_dim]
  const Value* output = nullptr;  // the same
  const T* lse = nullptr;
  Value* grad_query = nullptr;  // [batch, heads, queries, dim]
  Value* grad_key = nullptr;    // [key_parts, batch, kv_heads, keys, dim]
  Value* grad_value = nullptr;  // [key_parts, batch, kv_heads, keys, value_dim]
  T* grad_bias = nullptr;       // [key_parts, batch, heads, columns, rows], added to
};

/// Queries per tile, for the block size of a layout (0: none).
std::int64_t block_sparse_attention_tile_rows(std::int64_t block_size);

/// Scratch of one call of forward, or of backward.
std::size_t block_sparse_attention_workspace_bytes(const BlockSparseAttentionShape& shape,
                                                   bool backward);

/// Ranges of batch entries * heads * tiles.
void block_sparse_attention_forward(const BlockSparseAttentionForward<float, float>& args,
                                    std::int64_t begin, std::int64_t end, std::byte* workspace);
void block_sparse_attention_forward(const BlockSparseAttentionForward<double, double>& args,
                                    std::int64_t begin, std::int64_t end, std::byte* workspace);
void block_sparse_attention_forward(const BlockSparseAttentionForward<BFloat16, float>& args,
                                    std::int64_t begin, std::int64_t end, std::byte* workspace);
void block_sparse_attention_forward(const BlockSparseAttentionForward<Float16, float>& args,
                                    std::int64_t begin, std::int64_t end, std::byte* workspace);

/// Ranges of batch entries * kv_heads * segments * key_parts: one call owns the key and value
/// gradients of its segments and parts.
void block_sparse_attention_backward(const BlockSparseAttentionBackward<float, float>& args,
                                     std::int64_t begin, std::int64_t end, std::byte* workspace);
void block_sparse_attention_backward(const BlockSparseAttentionBackward<double, double>& args,
                                     std::int64_t begin, std::int64_t end, std::byte* workspace);
void block_sparse_attention_backward(const BlockSparseAttentionBackward<BFloat16, float>& args,
                                     std::int64_t begin, std::int64_t end, std::byte* workspace);
void block_sparse_attention_backward(const BlockSparseAttentionBackward<Float16, float>& args,
                                     std::int64_t begin, std::int64_t end, std::byte* workspace);

}  // namespace weir::kernels
