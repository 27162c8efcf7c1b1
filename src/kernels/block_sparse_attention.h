// SPDX-License-Identifier: Apache-2.0
// Block-sparse attention over tiles of queries and runs of keys, with the softmax carried along and
// nothing of size queries x keys stored. docs/operators/block_sparse_attention.md has the
// algorithm. The caller owns every byte and calls, each over ranges that may be split in any way:
// pack, then forward or backward.
//
// The sequence may be cut into segments that do not see each other: the residue classes of a
// stride. Within a segment, query row r stands at position `offset + r` of the segment's keys 0, 1,
// ....
//
// Value is float, double, BFloat16 or Float16; the 16-bit types are computed in float.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/half.h"

namespace weir::kernels {

/// The active blocks of every block row: columns[first[row] ... first[row + 1]), ascending.
struct BlockRows {
  const std::int64_t* first = nullptr;
  const std::int64_t* columns = nullptr;
};

/// Strides in elements of (batch, heads, positions); the last axis is contiguous.
struct AttentionStrides {
  std::int64_t batch = 0, head = 0, position = 0;
};

/// Query r of a segment is position query_first + r * step of the sequence; keys likewise.
struct AttentionSegment {
  std::int64_t step = 1;
  std::int64_t query_first = 0, queries = 0;
  std::int64_t key_first = 0, keys = 0;
  std::int64_t offset = 0;
  std::int64_t window = 0;      // keys less than this far away; 0: all
  std::int64_t prefix = 0;      // keys that every query sees
  std::int64_t key_panel = 0;   // its first packed panel
  std::int64_t query_tile = 0;  // its first query tile
};

struct BlockSparseAttentionShape {
  std::int64_t batch = 0, heads = 0, kv_heads = 0;
  std::int64_t queries = 0, keys = 0, dim = 0, value_dim = 0;
  bool causal = false;
  std::int64_t stride = 1;  // within a segment: only keys a multiple of it away
  double scale = 1;
  const AttentionSegment* segments = nullptr;
  std::int64_t segment_count = 0;
  std::int64_t panels = 0, tiles = 0;  // of all segments: of one key/value head, of one head
  std::int64_t tile_rows = 64;    // queries per tile; divides block_size when there is a layout
  std::int64_t block_size = 32;   // of the layout, which needs a single segment
  std::int64_t layout_heads = 0;  // 0: no layout; 1, or heads
  std::int64_t block_rows = 0;
  BlockRows layout;                        // [layout_heads * block_rows]
  const std::uint8_t* key_mask = nullptr;  // [batch, keys], 1 = keep
  const std::uint8_t* mask = nullptr;      // 1 = keep
  std::int64_t mask_batch = 0, mask_head = 0, mask_query = 0, mask_key = 0;  // its strides
};

template <class Value>
struct BlockSparseAttentionOperands {
  BlockSparseAttentionShape shape;
  const Value* query = nullptr;
  const Value* key = nullptr;
  const Value* value = nullptr;
  AttentionStrides query_strides, key_strides, value_strides;
};

/// Keys per packed panel: 64 bytes of float or double.
template <class T>
constexpr std::int64_t kAttentionPanel = 64 / static_cast<std::int64_t>(sizeof(T));

/// Rows of a packed panel: the features, rounded up to what a transposition takes at a time.
constexpr std::int64_t attention_depth(std::int64_t features) { return (features + 3) / 4 * 4; }

/// Keys and values in compute type T, for some (batch, kv_head). NaN and infinity at masked keys
/// are dropped here.
template <class T>
struct PackedKeys {
  std::int64_t first = 0;   // what lies here is that of (batch, kv_head) pairs from this one on
  T* keys = nullptr;        // panels of [depth of dim, panel]
  T* key_rows = nullptr;    // [panels * panel, padded dim]; only for backward
  T* values = nullptr;      // panels of [depth of value_dim, panel]; only for backward
  T* value_rows = nullptr;  // [panels * panel, padded value_dim]; only for forward
  std::uint8_t* keep = nullptr;    // [panels * panel]: inside the segment, and kept by key_mask
  std::uint8_t* finite = nullptr;  // [panels]
};

/// Packs panels [begin, end) of all batch * kv_heads * panels.
void block_sparse_attention_pack(const BlockSparseAttentionOperands<float>& in, std::int64_t begin,
                                 std::int64_t end, const PackedKeys<float>& to,
                                 std::byte* workspace);
void block_sparse_attention_pack(const BlockSparseAttentionOperands<double>& in, std::int64_t begin,
                                 std::int64_t end, const PackedKeys<double>& to,
                                 std::byte* workspace);
void block_sparse_attention_pack(const BlockSparseAttentionOperands<BFloat16>& in,
                                 std::int64_t begin, std::int64_t end, const PackedKeys<float>& to,
                                 std::byte* workspace);
void block_sparse_attention_pack(const BlockSparseAttentionOperands<Float16>& in,
                                 std::int64_t begin, std::int64_t end, const PackedKeys<float>& to,
                                 std::byte* workspace);

template <class Value, class T>
struct BlockSparseAttentionForward {
  BlockSparseAttentionOperands<Value> in;
  PackedKeys<T> packed;
  Value* output = nullptr;  // [batch, heads, queries, value_dim]
  T* lse = nullptr;         // [batch, heads, queries]
};

template <class Value, class T>
struct BlockSparseAttentionBackward {
  BlockSparseAttentionOperands<Value> in;
  PackedKeys<T> packed;
  const Value* grad = nullptr;    // [batch, heads, queries, value_dim]
  const Value* output = nullptr;  // the same
  const T* lse = nullptr;
  T* key_sums = nullptr;        // zeros: [pairs, panels * panel, padded dim], from packed.first
  T* value_sums = nullptr;      // zeros: the same with padded value_dim
  Value* grad_query = nullptr;  // [batch, heads, queries, dim]
  Value* grad_key = nullptr;    // [batch, kv_heads, keys, dim]
  Value* grad_value = nullptr;  // [batch, kv_heads, keys, value_dim]
};

/// Queries per tile, for the block size of a layout (0: none) and a window (0: none).
std::int64_t block_sparse_attention_tile_rows(std::int64_t block_size, std::int64_t window);

/// Scratch of one call of pack, forward or backward.
std::size_t block_sparse_attention_workspace_bytes(const BlockSparseAttentionShape& shape);

/// Ranges of batch * heads * tiles.
void block_sparse_attention_forward(const BlockSparseAttentionForward<float, float>& args,
                                    std::int64_t begin, std::int64_t end, std::byte* workspace);
void block_sparse_attention_forward(const BlockSparseAttentionForward<double, double>& args,
                                    std::int64_t begin, std::int64_t end, std::byte* workspace);
void block_sparse_attention_forward(const BlockSparseAttentionForward<BFloat16, float>& args,
                                    std::int64_t begin, std::int64_t end, std::byte* workspace);
void block_sparse_attention_forward(const BlockSparseAttentionForward<Float16, float>& args,
                                    std::int64_t begin, std::int64_t end, std::byte* workspace);

/// Ranges of batch * kv_heads * segments: one call owns the key and value gradients of its
/// segments.
void block_sparse_attention_backward(const BlockSparseAttentionBackward<float, float>& args,
                                     std::int64_t begin, std::int64_t end, std::byte* workspace);
void block_sparse_attention_backward(const BlockSparseAttentionBackward<double, double>& args,
                                     std::int64_t begin, std::int64_t end, std::byte* workspace);
void block_sparse_attention_backward(const BlockSparseAttentionBackward<BFloat16, float>& args,
                                     std::int64_t begin, std::int64_t end, std::byte* workspace);
void block_sparse_attention_backward(const BlockSparseAttentionBackward<Float16, float>& args,
                                     std::int64_t begin, std::int64_t end, std::byte* workspace);

}  // namespace weir::kernels
