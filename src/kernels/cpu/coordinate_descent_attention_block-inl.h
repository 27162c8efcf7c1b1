// SPDX-License-Identifier: Apache-2.0
// A block of query rows of one head, its scratch, and the chunks of keys that it meets. Logits
// stand one query per row, all its keys side by side, as the row solvers want them.
#if defined(WEIR_KERNELS_CPU_COORDINATE_DESCENT_ATTENTION_BLOCK_INL_H_) == \
    defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_COORDINATE_DESCENT_ATTENTION_BLOCK_INL_H_
#undef WEIR_KERNELS_CPU_COORDINATE_DESCENT_ATTENTION_BLOCK_INL_H_
#else
#define WEIR_KERNELS_CPU_COORDINATE_DESCENT_ATTENTION_BLOCK_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "kernels/coordinate_descent_attention.h"
#include "kernels/cpu/attention_rows-inl.h"
#include "kernels/cpu/coordinate_descent_attention_lanes-inl.h"
#include "kernels/cpu/coordinate_descent_rows-inl.h"
#include "kernels/cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Queries [first, first + rows) of one batch entry and head.
struct BlockPlace {
  std::int64_t batch = 0, head = 0, kv_head = 0, first = 0, rows = 0;
  const std::uint8_t* kept = nullptr;  // key_mask of the batch entry
  std::int64_t kept_keys = 0;          // up to the last one that it keeps
  const std::uint8_t* mask = nullptr;  // of the batch entry and head
};

/// Scratch of one call, for one block at a time. Rows of logits are apart by a little more than
/// their padded length: a power of two would put them all into the same few lines of L1.
template <class T>
struct BlockScratch {
  T *query_rows, *query_sums;  // [rows, padded dim]; rows carry the scale
  T *upstream_rows, *sums;     // [rows, padded value_dim]
  T *keys, *values, *panel;    // [kBlock, padded dim]: a chunk that needs a copy, or a transpose
  T *logits, *grads;           // [rows, logit_row]
  T *weights, *solver;         // one row
  T* factors;                  // [rows]: 1, or with `normalize` 1 / sum of the weights
  GradientTerm<T>* terms;
  LaneGroup<T> group;  // of short rows
  std::size_t logit_row = 0;
  bool finite = true;  // queries and upstream

  HWY_INLINE T* row(std::int64_t r) const {
    return logits + static_cast<std::size_t>(r) * logit_row;
  }
  HWY_INLINE T* grad_row(std::int64_t r) const {
    return grads + static_cast<std::size_t>(r) * logit_row;
  }
};

template <class T>
HWY_INLINE BlockScratch<T> TakeBlock(const CoordinateDescentAttentionShape& shape, bool backward,
                                     std::byte* workspace) {
  Scratch scratch(workspace);
  const auto rows = static_cast<std::size_t>(shape.block_rows),
             keys = static_cast<std::size_t>(shape.keys);
  const std::size_t dim = PaddedSize(shape.dim), value_dim = PaddedSize(shape.value_dim);
  BlockScratch<T> block;
  block.logit_row = Padded(keys) + kBlock;
  block.query_rows = scratch.take<T>(rows * dim);
  block.query_sums = scratch.take<T>(rows * dim);
  block.upstream_rows = scratch.take<T>(rows * value_dim);
  block.sums = scratch.take<T>(rows * value_dim);
  block.keys = scratch.take<T>(kBlock * dim);
  block.values = scratch.take<T>(kBlock * value_dim);
  block.panel = scratch.take<T>(kBlock * std::max(dim, value_dim));
  block.logits = scratch.take<T>(rows * block.logit_row);
  block.grads = scratch.take<T>(backward ? rows * block.logit_row : 0);
  block.weights = scratch.take<T>(Padded(keys));
  block.solver = scratch.take<T>(ExactScratch(keys));
  block.factors = scratch.take<T>(rows);
  block.terms = scratch.take<GradientTerm<T>>(static_cast<std::size_t>(shape.n_iters));
  if (SuitsLanes(shape.n_iters, shape.keys)) {
    block.group =
        TakeLaneGroup<T>(keys, static_cast<std::size_t>(shape.n_iters), backward, scratch);
  }
  return block;
}

HWY_INLINE BlockPlace PlaceOfBlock(const CoordinateDescentAttentionShape& shape, std::int64_t batch,
                                   std::int64_t head, std::int64_t block) {
  BlockPlace at = {.batch = batch,
                   .head = head,
                   .kv_head = head / (shape.heads / shape.kv_heads),
                   .first = block * shape.block_rows,
                   .kept_keys = shape.keys};
  at.rows = std::min(shape.block_rows, shape.queries - at.first);
  if (shape.key_mask != nullptr) {
    at.kept = shape.key_mask + batch * shape.keys;
    while (at.kept_keys > 0 && at.kept[at.kept_keys - 1] == 0) --at.kept_keys;
  }
  if (shape.mask != nullptr)
    at.mask = shape.mask + batch * shape.mask_batch + head * shape.mask_head;
  return at;
}

/// Of row r among all queries.
HWY_INLINE std::int64_t IndexOf(const CoordinateDescentAttentionShape& shape, const BlockPlace& at,
                                std::int64_t r) {
  return (at.batch * shape.heads + at.head) * shape.queries + at.first + r;
}

/// Row r sees keys [0, SeenBy), but for those that the masks leave out. Ascends with r.
HWY_INLINE std::int64_t SeenBy(const CoordinateDescentAttentionShape& shape, const BlockPlace& at,
                               std::int64_t r) {
  if (!shape.causal) return at.kept_keys;
  const std::int64_t past = at.first + r + shape.keys - shape.queries + 1;
  return std::clamp<std::int64_t>(std::max(past, shape.nulls), 0, at.kept_keys);
}

/// Keys [key, key + keys), at most kBlock, and rows [row, row + rows): those that see any of them.
struct Chunk {
  std::size_t key = 0, keys = 0, row = 0, rows = 0;
};

template <class F>
HWY_INLINE void ForEachChunk(const CoordinateDescentAttentionShape& shape, const BlockPlace& at,
                             const F& f) {
  const std::int64_t end = SeenBy(shape, at, at.rows - 1);
  std::int64_t row = 0;
  for (std::int64_t key = 0; key < end; key += static_cast<std::int64_t>(kBlock)) {
    while (SeenBy(shape, at, row) <= key) ++row;
    f(Chunk{.key = static_cast<std::size_t>(key),
            .keys = std::min(kBlock, static_cast<std::size_t>(end - key)),
            .row = static_cast<std::size_t>(row),
            .rows = static_cast<std::size_t>(at.rows - row)});
  }
}

/// The keys, or the values, of a chunk.
template <class T>
struct ChunkRows {
  const T* at = nullptr;
  std::size_t row = 0;  // from one to the next
  bool finite = true;
};

/// Where they lie, or copied to `room`; what the mask leaves out becomes 0, so that nothing of it
/// is ever read.
template <class Value, class T>
HWY_INLINE ChunkRows<T> LoadChunk(const BlockPlace& at, const Chunk& chunk, const Value* head,
                                  std::int64_t step, std::int64_t count, T* room) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<T>()));
  const std::uint8_t* kept = at.kept == nullptr ? nullptr : at.kept + chunk.key;
  const Value* from = head + static_cast<std::int64_t>(chunk.key) * step;
  if constexpr (std::is_same_v<Value, T>) {
    const bool whole = count % std::max<std::int64_t>(lanes, 4) == 0;
    if (whole && (kept == nullptr || std::memchr(kept, 0, chunk.keys) == nullptr)) {
      const auto row = static_cast<std::size_t>(step);
      return {from, row, AllFinite(from, chunk.keys, row, static_cast<std::size_t>(count))};
    }
  }
  const std::size_t padded = PaddedSize(count);
  for (std::size_t j = 0; j < chunk.keys; ++j, from += step) {
    if (kept == nullptr || kept[j] != 0) {
      LoadRow(from, static_cast<std::size_t>(count), T(0), room + j * padded);
    } else {
      std::fill_n(room + j * padded, padded, T(0));
    }
  }
  return {room, padded, AllFinite(room, chunk.keys, padded, padded)};
}

template <class Value, class T>
HWY_INLINE ChunkRows<T> LoadKeys(const CoordinateDescentAttentionOperands<Value>& in,
                                 const BlockPlace& at, const Chunk& chunk, T* room) {
  const AttentionStrides& strides = in.key_strides;
  const Value* head = in.key + at.batch * strides.batch + at.kv_head * strides.head;
  return LoadChunk(at, chunk, head, strides.position, in.shape.dim, room);
}

template <class Value, class T>
HWY_INLINE ChunkRows<T> LoadKeyValues(const CoordinateDescentAttentionOperands<Value>& in,
                                      const BlockPlace& at, const Chunk& chunk, T* room) {
  const AttentionStrides& strides = in.value_strides;
  const Value* head = in.value + at.batch * strides.batch + at.kv_head * strides.head;
  return LoadChunk(at, chunk, head, strides.position, in.shape.value_dim, room);
}

/// to[r, key] = <row r of `rows`, row `key` of the chunk>, over `count` features.
template <class T>
HWY_INLINE void MultiplyChunk(const Chunk& chunk, const ChunkRows<T>& chunk_rows,
                              std::int64_t count, const T* rows, BlockScratch<T>& block, T* to) {
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  const auto depth = static_cast<std::size_t>((count + 3) / 4 * 4);
  const std::size_t padded = PaddedSize(count), row = block.logit_row;
  PackPanel(
      static_cast<std::int64_t>(chunk.keys), count,
      [&](std::size_t j) HWY_ATTR { return chunk_rows.at + j * chunk_rows.row; }, block.panel);
  Multiply<false, T>(chunk.rows, (chunk.keys + lanes - 1) / lanes, static_cast<std::size_t>(count),
                     {rows + chunk.row * padded, padded, 1}, {block.panel, lanes, depth * lanes},
                     {to + chunk.row * row + chunk.key, row});
}

template <class Value, class T>
HWY_INLINE void LoadQueries(const CoordinateDescentAttentionOperands<Value>& in,
                            const BlockPlace& at, BlockScratch<T>& block) {
  const AttentionStrides& strides = in.query_strides;
  const std::size_t padded = PaddedSize(in.shape.dim);
  const Value* from = in.query + at.batch * strides.batch + at.head * strides.head;
  T* row = block.query_rows;
  for (std::int64_t r = 0; r < at.rows; ++r, row += padded) {
    LoadRow(from + (at.first + r) * strides.position, static_cast<std::size_t>(in.shape.dim), T(0),
            row);
    ScaleRow(row, padded, static_cast<T>(in.shape.scale), row);
  }
}

/// x_j = `hidden` where `mask` hides key j from row r.
template <class T>
HWY_INLINE void MaskRow(const CoordinateDescentAttentionShape& shape, const BlockPlace& at,
                        std::int64_t r, std::size_t span, T hidden, T* x) {
  if (at.mask == nullptr) return;
  const std::uint8_t* mask = at.mask + (at.first + r) * shape.mask_query;
  for (std::size_t j = 0; j < span; ++j, mask += shape.mask_key) x[j] = *mask != 0 ? x[j] : hidden;
}

/// Row r of the logits as the solvers want it: -inf where it does not see, and in the padding.
template <class T>
HWY_INLINE RowStatistics<T> HideKeys(const CoordinateDescentAttentionShape& shape,
                                     const BlockPlace& at, std::int64_t r, T* x) {
  RowStatistics<T> row;
  row.span = static_cast<std::size_t>(SeenBy(shape, at, r));
  std::fill(x + row.span, x + Padded(row.span), kNothing<T>);
  for (std::size_t j = 0; at.kept != nullptr && j < row.span; ++j) {
    x[j] = at.kept[j] != 0 ? x[j] : kNothing<T>;
  }
  MaskRow(shape, at, r, row.span, kNothing<T>, x);
  Summarise(x, row);
  return row;
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_COORDINATE_DESCENT_ATTENTION_BLOCK_INL_H_
