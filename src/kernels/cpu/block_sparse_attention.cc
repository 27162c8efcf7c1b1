// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention on the CPU, once per instruction set. A tile of queries walks over the
// runs of keys that its pattern allows; the queries are transposed once per tile, keys and values
// are read where they lie.
#include "kernels/block_sparse_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <type_traits>

#include "kernels/cpu/attention_sizes.h"
#include "kernels/cpu/flush_denormals.h"
#include "kernels/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/block_sparse_attention.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/attention_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {

template <class Value, class T>
HWY_INLINE void ForwardTile(const BlockSparseAttentionForward<Value, T>& args, const TilePlace& at,
                            Tile<T>& tile) {
  const auto& shape = args.in.shape;
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  const std::size_t columns = PaddedSize(shape.value_dim);
  LoadQueries(args.in, at, shape.scale * kLog2E, false, tile);
  SetDropout(shape, at, tile);
  std::fill(tile.sums, tile.sums + at.rows * static_cast<std::int64_t>(columns), T(0));
  std::fill(tile.max, tile.max + kMostTileRows, kNothing<T>);
  std::fill(tile.total, tile.total + kMostTileRows, T(0));
  ForEachRun(shape, at, lanes, [&](const KeyRun& run) HWY_ATTR {
    const RunRows<T> rows = LoadRun(args.in, at, run, false, tile);
    Logits(args.in, at, rows, run, tile);
    run.ForEachRowPart([&](const Part& part) HWY_ATTR { AccumulateSoftmax(part, columns, tile); });
    ApplyDropout(shape, at, run, tile, tile.logits);
    run.ForEachRowPart([&](const Part& part) HWY_ATTR {
      AddProduct<T>(rows.values_finite, part.rows, static_cast<std::size_t>(shape.value_dim),
                    part.keys,
                    {tile.logits + part.key * kMostTileRows + part.row, 1, kMostTileRows},
                    {rows.values + part.key * rows.value_row, rows.value_row, lanes},
                    {tile.sums + part.row * columns, columns});
    });
  });
  StoreOutput(args, at, tile);
}

template <class Value, class T>
HWY_INLINE void Forward(const BlockSparseAttentionForward<Value, T>& args, std::int64_t begin,
                        std::int64_t end, std::byte* workspace) {
  const auto& shape = args.in.shape;
  Tile<T> tile = TakeTile<T>(shape, false, workspace);
  for (std::int64_t index = begin; index < end; ++index) {
    const std::int64_t head = index / shape.tiles % shape.heads;
    const std::int64_t batch = index / (shape.tiles * shape.heads);
    ForwardTile(args, PlaceOf(shape, batch, head, index % shape.tiles), tile);
  }
}

/// Where the gradients of a segment's keys and values are summed up: in place, or in scratch when
/// they must be rounded, rotated back or padded.
template <class T>
struct KeySums {
  T *keys = nullptr, *values = nullptr;
  std::size_t key_row = 0, value_row = 0;
  T* bias = nullptr;  // of this part, [batch, heads, columns, rows]
  bool keys_in_place = false, values_in_place = false;
};

/// The first key and value of a segment in their gradients.
template <class Value, class T>
HWY_INLINE std::int64_t FirstKey(const BlockSparseAttentionBackward<Value, T>& args,
                                 const AttentionSegment& segment, std::int64_t part,
                                 std::int64_t batch, std::int64_t kv_head) {
  const auto& shape = args.in.shape;
  const std::int64_t entry = part * shape.batch + batch + segment.batch;
  return (entry * shape.kv_heads + kv_head) * shape.keys + segment.key_first;
}

template <class Value, class T>
HWY_INLINE KeySums<T> ZeroKeySums(const BlockSparseAttentionBackward<Value, T>& args,
                                  const AttentionSegment& segment, std::int64_t first,
                                  Tile<T>& tile) {
  const auto& shape = args.in.shape;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<T>()));
  KeySums<T> sums = {.keys = tile.key_sums,
                     .values = tile.value_sums,
                     .key_row = PaddedSize(shape.dim),
                     .value_row = PaddedSize(shape.value_dim)};
  if constexpr (std::is_same_v<Value, T>) {
    sums.keys_in_place = shape.dim % lanes == 0 && args.in.key_rotation == nullptr;
    sums.values_in_place = shape.value_dim % lanes == 0;
    if (sums.keys_in_place) {
      sums.keys = args.grad_key + first * shape.dim;
      sums.key_row = static_cast<std::size_t>(segment.step * shape.dim);
    }
    if (sums.values_in_place) {
      sums.values = args.grad_value + first * shape.value_dim;
      sums.value_row = static_cast<std::size_t>(segment.step * shape.value_dim);
    }
  }
  const auto dim = sums.keys_in_place ? static_cast<std::size_t>(shape.dim) : sums.key_row;
  const auto value_dim =
      sums.values_in_place ? static_cast<std::size_t>(shape.value_dim) : sums.value_row;
  for (std::size_t j = 0; j < static_cast<std::size_t>(segment.keys); ++j) {
    std::fill_n(sums.keys + j * sums.key_row, dim, T(0));
    std::fill_n(sums.values + j * sums.value_row, value_dim, T(0));
  }
  return sums;
}

template <class Value, class T>
HWY_INLINE void StoreKeySums(const BlockSparseAttentionBackward<Value, T>& args,
                             const AttentionSegment& segment, std::int64_t first,
                             const KeySums<T>& sums) {
  const auto& shape = args.in.shape;
  for (std::int64_t j = 0; j < segment.keys; ++j) {
    const std::int64_t key = first + j * segment.step;
    if (!sums.keys_in_place) {
      T* row = sums.keys + static_cast<std::size_t>(j) * sums.key_row;
      if (args.in.key_rotation != nullptr) {
        Rotate(args.in.key_rotation + (segment.key_first + j * segment.step) * shape.dim, shape.dim,
               T(-1), row);
      }
      StoreRow(row, static_cast<std::size_t>(shape.dim), args.grad_key + key * shape.dim);
    }
    if (!sums.values_in_place) {
      StoreRow(sums.values + static_cast<std::size_t>(j) * sums.value_row,
               static_cast<std::size_t>(shape.value_dim), args.grad_value + key * shape.value_dim);
    }
  }
}

template <class Value, class T>
HWY_INLINE void AddBiasGradient(const BlockSparseAttentionBackward<Value, T>& args,
                                const TilePlace& at, const KeyRun& run, const KeySums<T>& sums,
                                const Tile<T>& tile) {
  if (sums.bias == nullptr) return;
  const auto& shape = args.in.shape;
  T* bias = sums.bias + (at.batch * shape.heads + at.head) * shape.bias_rows * shape.bias_columns;
  ForEachBias(shape, at, run,
              [&](std::int64_t j, std::int64_t r, std::int64_t count, std::int64_t index) {
                const T* HWY_RESTRICT from = RowOf(run, j, tile.grads) + r;
                T* HWY_RESTRICT to = bias + index;
                for (std::int64_t i = 0; i < count; ++i) to[i] += from[i];
              });
}

/// Adds to the gradients of the keys and values that a tile sees, and writes that of its queries.
template <class Value, class T>
HWY_INLINE void BackwardTile(const BlockSparseAttentionBackward<Value, T>& args,
                             const TilePlace& at, const KeySums<T>& sums, Tile<T>& tile) {
  const auto& shape = args.in.shape;
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  const auto dim = static_cast<std::size_t>(shape.dim),
             value_dim = static_cast<std::size_t>(shape.value_dim);
  LoadQueries(args.in, at, shape.scale * kLog2E, true, tile);
  LoadUpstream(args, at, tile);
  SetDropout(shape, at, tile);
  std::fill(tile.query_sums, tile.query_sums + static_cast<std::size_t>(at.rows) * Padded(dim),
            T(0));
  ForEachRun(shape, at, lanes, [&](const KeyRun& run) HWY_ATTR {
    const RunRows<T> rows = LoadRun(args.in, at, run, true, tile);
    Logits(args.in, at, rows, run, tile);
    MultiplyPanel(run, rows.values, rows.value_row, shape.value_dim, tile.upstream_panel,
                  tile.grads);
    ApplyDropout(shape, at, run, tile, tile.grads);
    GradientOfLogits(shape, at, run, tile);
    ApplyDropout(shape, at, run, tile, tile.logits);
    AddBiasGradient(args, at, run, sums, tile);
    const auto first = static_cast<std::size_t>(run.begin);
    run.ForEachKeyPart([&](const Part& part) HWY_ATTR {
      const std::size_t entry = part.key * kMostTileRows + part.row, key = first + part.key;
      AddProduct<T>(tile.finite, part.keys, value_dim, part.rows,
                    {tile.logits + entry, kMostTileRows, 1},
                    {tile.upstream_rows + part.row * Padded(value_dim), Padded(value_dim), lanes},
                    {sums.values + key * sums.value_row, sums.value_row});
      AddProduct<T>(tile.finite, part.keys, dim, part.rows, {tile.grads + entry, kMostTileRows, 1},
                    {tile.query_rows + part.row * Padded(dim), Padded(dim), lanes},
                    {sums.keys + key * sums.key_row, sums.key_row});
    });
    run.ForEachRowPart([&](const Part& part) HWY_ATTR {
      AddProduct<T>(rows.keys_finite, part.rows, dim, part.keys,
                    {tile.grads + part.key * kMostTileRows + part.row, 1, kMostTileRows},
                    {rows.keys + part.key * rows.key_row, rows.key_row, lanes},
                    {tile.query_sums + part.row * Padded(dim), Padded(dim)});
    });
  });
  StoreQueryGradient(args, at, tile);
}

template <class Value, class T>
HWY_INLINE void Backward(const BlockSparseAttentionBackward<Value, T>& args, std::int64_t begin,
                         std::int64_t end, std::byte* workspace) {
  const auto& shape = args.in.shape;
  Tile<T> tile = TakeTile<T>(shape, true, workspace);
  const std::int64_t group = shape.heads / shape.kv_heads;
  for (std::int64_t index = begin; index < end; ++index) {
    const std::int64_t part = index % shape.key_parts, pair = index / shape.key_parts;
    const AttentionSegment& segment = shape.segments[pair % shape.segment_count];
    const std::int64_t kv_head = pair / shape.segment_count % shape.kv_heads;
    const std::int64_t batch = pair / (shape.segment_count * shape.kv_heads);
    const std::int64_t tiles = (segment.queries + shape.tile_rows - 1) / shape.tile_rows;
    const std::int64_t begin_tile = tiles * part / shape.key_parts,
                       end_tile = tiles * (part + 1) / shape.key_parts;
    const std::int64_t first = FirstKey(args, segment, part, batch, kv_head);
    KeySums<T> sums = ZeroKeySums(args, segment, first, tile);
    if (args.grad_bias != nullptr) {
      sums.bias =
          args.grad_bias + part * shape.batch * shape.heads * shape.bias_rows * shape.bias_columns;
    }
    for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      for (std::int64_t t = begin_tile; t < end_tile; ++t) {
        BackwardTile(args, PlaceOf(shape, batch, head, segment.query_tile + t), sums, tile);
      }
    }
    StoreKeySums(args, segment, first, sums);
  }
}

#define WEIR_INSTANTIATE(Name, Value, T)                                                      \
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

std::int64_t block_sparse_attention_tile_rows(std::int64_t block_size) {
  if (block_size == 0) return kMostTileRows;
  std::int64_t rows = block_size;  // the largest divisor that fits
  while (rows > kMostTileRows || block_size % rows != 0) --rows;
  return rows;
}

std::size_t block_sparse_attention_workspace_bytes(const BlockSparseAttentionShape& shape,
                                                   bool backward) {
  const std::size_t width = Padded(static_cast<std::size_t>(shape.dim)) +
                            Padded(static_cast<std::size_t>(shape.value_dim));
  // As TakeTile. Pages of the sums that are not needed are not touched.
  const std::size_t rows = 3 * kMostTileRows + kTileKeys,
                    keys = backward ? static_cast<std::size_t>(shape.longest_segment) : 0;
  return Scratch::bytes<double>((rows + keys) * width + kMostTileRows * (2 * kTileKeys + 8) + 1024);
}

#define WEIR_DISPATCH(Name, Value, T)                                                      \
  HWY_EXPORT(Forward##Name);                                                               \
  HWY_EXPORT(Backward##Name);                                                              \
  void block_sparse_attention_forward(const BlockSparseAttentionForward<Value, T>& args,   \
                                      std::int64_t begin, std::int64_t end,                \
                                      std::byte* workspace) {                              \
    const FlushDenormals guard;                                                            \
    HWY_DYNAMIC_DISPATCH(Forward##Name)(args, begin, end, workspace);                      \
  }                                                                                        \
  void block_sparse_attention_backward(const BlockSparseAttentionBackward<Value, T>& args, \
                                       std::int64_t begin, std::int64_t end,               \
                                       std::byte* workspace) {                             \
    const FlushDenormals guard;                                                            \
    HWY_DYNAMIC_DISPATCH(Backward##Name)(args, begin, end, workspace);                     \
  }
WEIR_DISPATCH(Float, float, float)
WEIR_DISPATCH(Double, double, double)
WEIR_DISPATCH(BFloat16, BFloat16, float)
WEIR_DISPATCH(Float16, Float16, float)
#undef WEIR_DISPATCH

}  // namespace weir::kernels
#endif  // HWY_ONCE
