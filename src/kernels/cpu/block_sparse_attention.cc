// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention on the CPU, once per instruction set. A tile of queries walks over the
// runs of keys that its pattern allows; keys are packed in panels so that logits are products of
// registers.
#include "kernels/block_sparse_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/flush_denormals.h"
#include "kernels/scratch.h"

#ifndef WEIR_BLOCK_SPARSE_ATTENTION_ONCE
#define WEIR_BLOCK_SPARSE_ATTENTION_ONCE
namespace weir::kernels {
// A tile of logits, 64 x 64 floats, stays in L1 beside the queries, the sums and a part of the
// keys.
constexpr std::int64_t kMostTileRows = 64, kTileKeys = 64;
}  // namespace weir::kernels
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/block_sparse_attention.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/attention_pack-inl.h"
#include "kernels/cpu/attention_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {

template <class Value, class T>
HWY_INLINE void ForwardTile(const BlockSparseAttentionForward<Value, T>& args, const TilePlace& at,
                            Tile<T>& tile) {
  const auto& shape = args.in.shape;
  LoadQueries(args.in, at, shape.scale * kLog2E, tile);
  const std::size_t columns = Padded(static_cast<std::size_t>(shape.value_dim));
  std::fill(tile.sums, tile.sums + at.rows * static_cast<std::int64_t>(columns), T(0));
  std::fill(tile.max, tile.max + at.rows, kNothing<T>);
  std::fill(tile.total, tile.total + at.rows, T(0));
  const PackedKeys<T> keys = KeysOf(shape, args.packed, at);
  ForEachRunOfWidth(shape, at, kAttentionPanel<T>, [&](const KeyRun& run) HWY_ATTR {
    Logits(shape, at, keys, run, tile);
    AccumulateSoftmax(at, run, columns, tile);
    AddProduct<T>(keys, run, static_cast<std::size_t>(at.rows), VectorsOf<T>(shape.value_dim),
                  run.padded(), {tile.logits, kTileKeys, 1},
                  {keys.value_rows + run.first * static_cast<std::int64_t>(columns), columns,
                   hn::Lanes(hn::ScalableTag<T>())},
                  {tile.sums, columns});
  });
  StoreOutput(args, at, columns, tile);
}

template <class Value, class T>
HWY_INLINE void Forward(const BlockSparseAttentionForward<Value, T>& args, std::int64_t begin,
                        std::int64_t end, std::byte* workspace) {
  const auto& shape = args.in.shape;
  Tile<T> tile = TakeTile<T>(shape, workspace);
  for (std::int64_t index = begin; index < end; ++index) {
    const std::int64_t head = index / shape.tiles % shape.heads;
    const std::int64_t batch = index / (shape.tiles * shape.heads);
    ForwardTile(args, PlaceOf(shape, batch, head, index % shape.tiles), tile);
  }
}

/// All query tiles of one head over one segment: adds to the sums of its keys and values, writes
/// the gradient of its queries.
template <class Value, class T>
HWY_INLINE void BackwardTile(const BlockSparseAttentionBackward<Value, T>& args,
                             const TilePlace& at, Tile<T>& tile) {
  const auto& shape = args.in.shape;
  const std::size_t columns = Padded(static_cast<std::size_t>(shape.dim)),
                    value_columns = Padded(static_cast<std::size_t>(shape.value_dim)),
                    rows = static_cast<std::size_t>(at.rows),
                    lanes = hn::Lanes(hn::ScalableTag<T>());
  LoadQueries(args.in, at, shape.scale * kLog2E, tile);
  LoadUpstream(args, at, value_columns, tile);
  std::fill(tile.query_sums, tile.query_sums + rows * columns, T(0));
  const PackedKeys<T> keys = KeysOf(shape, args.packed, at);
  const std::int64_t kv = (at.kv_index - args.packed.first) * shape.panels * kAttentionPanel<T>;
  T* key_sums = args.key_sums + (kv + at.segment->key_panel *
                                          kAttentionPanel<T>)*static_cast<std::int64_t>(columns);
  T* value_sums =
      args.value_sums +
      (kv + at.segment->key_panel * kAttentionPanel<T>)*static_cast<std::int64_t>(value_columns);
  ForEachRunOfWidth(shape, at, kAttentionPanel<T>, [&](const KeyRun& run) HWY_ATTR {
    Logits(shape, at, keys, run, tile);
    const Left<T> upstream = {tile.upstream, value_columns, 1};
    MultiplyPanels(rows, shape.value_dim, run, upstream, keys.values, tile.grads);
    GradientOfLogits(at, run, tile);
    const std::size_t count = run.padded();
    const auto first = static_cast<std::size_t>(run.first);
    AddProduct<T>(keys, run, count, VectorsOf<T>(shape.value_dim), rows,
                  {tile.logits, 1, kTileKeys}, {tile.upstream, value_columns, lanes},
                  {value_sums + first * value_columns, value_columns}, tile.finite);
    AddProduct<T>(keys, run, count, VectorsOf<T>(shape.dim), rows, {tile.grads, 1, kTileKeys},
                  {tile.queries, columns, lanes}, {key_sums + first * columns, columns},
                  tile.finite);
    AddProduct<T>(keys, run, rows, VectorsOf<T>(shape.dim), count, {tile.grads, kTileKeys, 1},
                  {keys.key_rows + first * columns, columns, lanes}, {tile.query_sums, columns});
  });
  StoreQueryGradient(args, at, columns, tile);
}

template <class Value, class T>
HWY_INLINE void Backward(const BlockSparseAttentionBackward<Value, T>& args, std::int64_t begin,
                         std::int64_t end, std::byte* workspace) {
  const auto& shape = args.in.shape;
  Tile<T> tile = TakeTile<T>(shape, workspace);
  const std::int64_t group = shape.heads / shape.kv_heads;
  for (std::int64_t index = begin; index < end; ++index) {
    const AttentionSegment& segment = shape.segments[index % shape.segment_count];
    const std::int64_t kv_head = index / shape.segment_count % shape.kv_heads;
    const std::int64_t batch = index / (shape.segment_count * shape.kv_heads);
    const std::int64_t tiles = (segment.queries + shape.tile_rows - 1) / shape.tile_rows;
    for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      for (std::int64_t t = 0; t < tiles; ++t) {
        BackwardTile(args, PlaceOf(shape, batch, head, segment.query_tile + t), tile);
      }
    }
    StoreKeyGradients(args, batch, kv_head, segment, tile);
  }
}

#define WEIR_INSTANTIATE(Name, Value, T)                                                      \
  void Pack##Name(const BlockSparseAttentionOperands<Value>& in, std::int64_t begin,          \
                  std::int64_t end, const PackedKeys<T>& to, std::byte* workspace) {          \
    Pack(in, begin, end, to, workspace);                                                      \
  }                                                                                           \
  void Forward##Name(const BlockSparseAttentionForward<Value, T>& args, std::int64_t begin,   \
                     std::int64_t end, std::byte* workspace) {                                \
    Forward(args, begin, end, workspace);                                                     \
  }                                                                                           \
  void Backward##Name(const BlockSparseAttentionBackward<Value, T>& args, std::int64_t begin, \
                      std::int64_t end, std::byte* workspace) {                               \
    Backward(args, begin, end, workspace);                                                    \
  }
WEIR_INSTANTIATE(Float, float, float)
WEIR_INSTANTIATE(Double, double, double)
WEIR_INSTANTIATE(BFloat16, BFloat16, float)
WEIR_INSTANTIATE(Float16, Float16, float)
#undef WEIR_INSTANTIATE

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace weir::kernels {

std::int64_t block_sparse_attention_tile_rows(std::int64_t block_size, std::int64_t window) {
  // A tile meets rows + window - 1 keys; more rows than the window are mostly masked away.
  if (block_size == 0)
    return window > 0 && window <= kMostTileRows ? kMostTileRows / 2 : kMostTileRows;
  std::int64_t rows = block_size;  // the largest divisor that fits
  while (rows > kMostTileRows || block_size % rows != 0) --rows;
  return rows;
}

std::size_t block_sparse_attention_workspace_bytes(const BlockSparseAttentionShape& shape) {
  const std::size_t dim = Padded(static_cast<std::size_t>(shape.dim)),
                    value_dim = Padded(static_cast<std::size_t>(shape.value_dim));
  // Queries, their gradient, sums, upstream; two tiles of logits; six numbers per row; a row
  // that is packed.
  return Scratch::bytes<double>(kMostTileRows * (2 * dim + 2 * value_dim + 2 * kTileKeys + 8) +
                                16 * (dim + value_dim) + 1024);
}

#define WEIR_DISPATCH(Name, Value, T)                                                             \
  HWY_EXPORT(Pack##Name);                                                                         \
  HWY_EXPORT(Forward##Name);                                                                      \
  HWY_EXPORT(Backward##Name);                                                                     \
  void block_sparse_attention_pack(const BlockSparseAttentionOperands<Value>& in,                 \
                                   std::int64_t begin, std::int64_t end, const PackedKeys<T>& to, \
                                   std::byte* workspace) {                                        \
    HWY_DYNAMIC_DISPATCH(Pack##Name)(in, begin, end, to, workspace);                              \
  }                                                                                               \
  void block_sparse_attention_forward(const BlockSparseAttentionForward<Value, T>& args,          \
                                      std::int64_t begin, std::int64_t end,                       \
                                      std::byte* workspace) {                                     \
    const FlushDenormals guard;                                                                   \
    HWY_DYNAMIC_DISPATCH(Forward##Name)(args, begin, end, workspace);                             \
  }                                                                                               \
  void block_sparse_attention_backward(const BlockSparseAttentionBackward<Value, T>& args,        \
                                       std::int64_t begin, std::int64_t end,                      \
                                       std::byte* workspace) {                                    \
    const FlushDenormals guard;                                                                   \
    HWY_DYNAMIC_DISPATCH(Backward##Name)(args, begin, end, workspace);                            \
  }
WEIR_DISPATCH(Float, float, float)
WEIR_DISPATCH(Double, double, double)
WEIR_DISPATCH(BFloat16, BFloat16, float)
WEIR_DISPATCH(Float16, Float16, float)
#undef WEIR_DISPATCH

}  // namespace weir::kernels
#endif  // HWY_ONCE
