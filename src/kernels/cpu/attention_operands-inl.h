// SPDX-License-Identifier: Apache-2.0
// What attention reads and writes: rows of queries, keys and values, converted, rotated and
// checked. Keys and values of the computed type are read where they lie.
#if defined(WEIR_KERNELS_CPU_ATTENTION_OPERANDS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_ATTENTION_OPERANDS_INL_H_
#undef WEIR_KERNELS_CPU_ATTENTION_OPERANDS_INL_H_
#else
#define WEIR_KERNELS_CPU_ATTENTION_OPERANDS_INL_H_
#endif

#include <hwy/contrib/math/math-inl.h>
#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/block_sparse_attention.h"
#include "kernels/cpu/attention_rows-inl.h"
#include "kernels/cpu/attention_runs-inl.h"
#include "kernels/cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr double kLog2E = 1.442695040888963407360, kLn2 = 0.693147180559945309417;

/// Scratch of one call, for one tile at a time. A panel holds rows transposed, in groups of one row
/// per lane: entry j of group g at (g * depth + j) * lanes.
template <class T>
struct Tile {
  T *query_rows, *query_panel, *query_sums;      // [rows, padded dim]; rows carry the scale
  T *upstream_rows, *upstream_panel, *sums;      // [rows, padded value_dim]
  T *keys, *values;                              // [kTileKeys, padded dim]: a run that needs a copy
  T *logits, *grads;                             // [kTileKeys, kMostTileRows]
  T *max, *total, *factor, *lse, *delta;         // [kMostTileRows]
  std::uint32_t* dropout;                        // [kMostTileRows]
  T *key_sums = nullptr, *value_sums = nullptr;  // [keys of the longest segment, padded dim]
  bool finite = true;                            // queries and upstream
};

template <class T>
HWY_INLINE Tile<T> TakeTile(const BlockSparseAttentionShape& shape, bool backward,
                            std::byte* workspace) {
  Scratch scratch(workspace);
  const std::size_t dim = PaddedSize(shape.dim), value_dim = PaddedSize(shape.value_dim);
  Tile<T> tile;
  for (T** rows : {&tile.query_rows, &tile.query_panel, &tile.query_sums}) {
    *rows = scratch.take<T>(kMostTileRows * dim);
  }
  for (T** rows : {&tile.upstream_rows, &tile.upstream_panel, &tile.sums}) {
    *rows = scratch.take<T>(kMostTileRows * value_dim);
  }
  tile.keys = scratch.take<T>(kTileKeys * dim);
  tile.values = scratch.take<T>(kTileKeys * value_dim);
  tile.logits = scratch.take<T>(kTileKeys * kMostTileRows);
  tile.grads = scratch.take<T>(kTileKeys * kMostTileRows);
  for (T** numbers : {&tile.max, &tile.total, &tile.factor, &tile.lse, &tile.delta}) {
    *numbers = scratch.take<T>(kMostTileRows);
  }
  tile.dropout = scratch.take<std::uint32_t>(kMostTileRows);
  if (!backward) return tile;
  const auto keys = static_cast<std::size_t>(shape.longest_segment);
  tile.key_sums = scratch.take<T>(keys * dim);
  tile.value_sums = scratch.take<T>(keys * value_dim);
  return tile;
}

// ---- rows

/// Features i and i + dim / 2 of a row, times [c -s; s c]; `direction` -1: times its transpose.
template <class T>
HWY_INLINE void Rotate(const T* HWY_RESTRICT table, std::int64_t dim, T direction,
                       T* HWY_RESTRICT row) {
  const std::int64_t half = dim / 2;
  const T* HWY_RESTRICT sine = table + half;
  T* HWY_RESTRICT other = row + half;
  for (std::int64_t i = 0; i < half; ++i) {
    const T a = row[i], b = other[i], c = table[i], s = sine[i] * direction;
    row[i] = a * c - b * s;
    other[i] = b * c + a * s;
  }
}

/// The queries times `factor` as a panel; for the backward, which multiplies with their rows too,
/// those as well.
template <class Value, class T>
HWY_INLINE void LoadQueries(const BlockSparseAttentionOperands<Value, T>& in, const TilePlace& at,
                            double factor, bool rows_too, Tile<T>& tile) {
  const auto& shape = in.shape;
  const std::size_t padded = PaddedSize(shape.dim);
  const Value* from =
      in.query + at.batch * in.query_strides.batch + at.head * in.query_strides.head;
  const auto load = [&](std::size_t r) HWY_ATTR {
    const std::int64_t query = at.query(static_cast<std::int64_t>(r));
    T* row = rows_too ? tile.query_rows + r * padded : tile.query_rows;
    T* scaled = rows_too ? tile.query_sums : row;
    LoadRow(from + query * in.query_strides.position, static_cast<std::size_t>(shape.dim), T(0),
            row);
    if (in.query_rotation != nullptr) {
      Rotate(in.query_rotation + query * shape.dim, shape.dim, T(1), row);
    }
    ScaleRow(row, padded, static_cast<T>(factor), scaled);
    if (rows_too) ScaleRow(row, padded, static_cast<T>(shape.scale), row);
    return scaled;
  };
  PackPanel(at.rows, shape.dim, load, tile.query_panel);
  tile.finite =
      !rows_too || AllFinite(tile.query_rows, static_cast<std::size_t>(at.rows), padded, padded);
}

// ---- keys and values of a run

template <class T>
struct RunRows {
  const T *keys = nullptr, *values = nullptr;
  std::size_t key_row = 0, value_row = 0;  // from one to the next
  bool keys_finite = true, values_finite = true;
};

HWY_INLINE bool Kept(const BlockSparseAttentionShape& shape, const TilePlace& at, std::int64_t j) {
  return shape.key_mask == nullptr || shape.key_mask[at.batch * shape.keys + at.key(j)] != 0;
}

HWY_INLINE bool AllKept(const BlockSparseAttentionShape& shape, const TilePlace& at,
                        const KeyRun& run) {
  if (shape.key_mask == nullptr) return true;
  bool all = true;
  for (std::int64_t j = run.begin; j < run.end; ++j) all &= Kept(shape, at, j);
  return all;
}

/// Copies a run; keys that key_mask leaves out become 0, so that nothing of them is ever read.
template <class Value, class T>
HWY_INLINE bool CopyRun(const BlockSparseAttentionShape& shape, const TilePlace& at,
                        const KeyRun& run, const Value* from, std::int64_t step, std::int64_t count,
                        const T* rotation, T* to) {
  const std::size_t padded = PaddedSize(count);
  T* row = to;
  for (std::int64_t j = run.begin; j < run.end; ++j, row += padded) {
    if (!Kept(shape, at, j)) {
      std::fill(row, row + padded, T(0));
      continue;
    }
    LoadRow(from + at.key(j) * step, static_cast<std::size_t>(count), T(0), row);
    if (rotation != nullptr) Rotate(rotation + at.key(j) * count, count, T(1), row);
  }
  return AllFinite(to, run.keys(), padded, padded);
}

template <class Value, class T>
HWY_INLINE RunRows<T> LoadRun(const BlockSparseAttentionOperands<Value, T>& in, const TilePlace& at,
                              const KeyRun& run, bool backward, Tile<T>& tile) {
  const auto& shape = in.shape;
  const Value* keys = in.key + at.batch * in.key_strides.batch + at.kv_head * in.key_strides.head;
  const Value* values =
      in.value + at.batch * in.value_strides.batch + at.kv_head * in.value_strides.head;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<T>()));
  if constexpr (std::is_same_v<Value, T>) {
    if (in.key_rotation == nullptr && shape.dim % lanes == 0 && shape.value_dim % lanes == 0 &&
        AllKept(shape, at, run)) {
      RunRows<T> rows = {
          .keys = keys + at.key(run.begin) * in.key_strides.position,
          .values = values + at.key(run.begin) * in.value_strides.position,
          .key_row = static_cast<std::size_t>(at.segment->step * in.key_strides.position),
          .value_row = static_cast<std::size_t>(at.segment->step * in.value_strides.position)};
      // The forward never multiplies a weight with a key.
      rows.keys_finite = !backward || AllFinite(rows.keys, run.keys(), rows.key_row,
                                                static_cast<std::size_t>(shape.dim));
      rows.values_finite = AllFinite(rows.values, run.keys(), rows.value_row,
                                     static_cast<std::size_t>(shape.value_dim));
      return rows;
    }
  }
  RunRows<T> rows = {.keys = tile.keys,
                     .values = tile.values,
                     .key_row = PaddedSize(shape.dim),
                     .value_row = PaddedSize(shape.value_dim)};
  rows.keys_finite =
      CopyRun(shape, at, run, keys, in.key_strides.position, shape.dim, in.key_rotation, tile.keys);
  rows.values_finite = CopyRun(shape, at, run, values, in.value_strides.position, shape.value_dim,
                               static_cast<const T*>(nullptr), tile.values);
  return rows;
}

// ---- results

/// The index of query row r in tensors of (batch, heads, queries).
HWY_INLINE std::int64_t IndexOf(const BlockSparseAttentionShape& shape, const TilePlace& at,
                                std::int64_t r) {
  return (at.batch * shape.heads + at.head) * shape.queries + at.query(r);
}

template <class Value, class T>
HWY_INLINE void StoreOutput(const BlockSparseAttentionForward<Value, T>& args, const TilePlace& at,
                            Tile<T>& tile) {
  const hn::ScalableTag<T> d;
  const auto& shape = args.in.shape;
  const std::size_t columns = PaddedSize(shape.value_dim), lanes = hn::Lanes(d);
  for (std::size_t r = 0; r < static_cast<std::size_t>(at.rows); r += lanes) {
    const auto log = hn::Log(d, hn::Load(d, tile.total + r));
    const auto max = hn::Load(d, tile.max + r);
    hn::Store(hn::MulAdd(max, hn::Set(d, static_cast<T>(kLn2)), log), d, tile.lse + r);
  }
  for (std::int64_t r = 0; r < at.rows; ++r) {
    const std::int64_t index = IndexOf(shape, at, r);
    T* row = tile.sums + static_cast<std::size_t>(r) * columns;
    const T total = tile.total[r];
    ScaleRow(row, columns, total == T(0) ? T(0) : T(1) / total, row);
    StoreRow(row, static_cast<std::size_t>(shape.value_dim), args.output + index * shape.value_dim);
    args.lse[index] = total == T(0) ? kNothing<T> : tile.lse[r];
  }
}

/// The upstream gradient, its product with the output, and the log-sum-exp in units of log2.
template <class Value, class T>
HWY_INLINE void LoadUpstream(const BlockSparseAttentionBackward<Value, T>& args,
                             const TilePlace& at, Tile<T>& tile) {
  const hn::ScalableTag<T> d;
  const auto& shape = args.in.shape;
  const std::size_t columns = PaddedSize(shape.value_dim);
  const auto value_dim = static_cast<std::size_t>(shape.value_dim);
  for (std::int64_t r = 0; r < at.rows; ++r) {
    const std::int64_t index = IndexOf(shape, at, r);
    T* upstream = tile.upstream_rows + static_cast<std::size_t>(r) * columns;
    LoadRow(args.grad + index * shape.value_dim, value_dim, T(0), upstream);
    LoadRow(args.output + index * shape.value_dim, value_dim, T(0), tile.sums);

    auto delta = hn::Zero(d);
    for (std::size_t i = 0; i < columns; i += hn::Lanes(d)) {
      delta = hn::MulAdd(hn::Load(d, upstream + i), hn::Load(d, tile.sums + i), delta);
    }
    tile.delta[r] = hn::GetLane(hn::SumOfLanes(d, delta));
    const T lse = args.lse[index];
    tile.lse[r] = lse > kNothing<T> || lse != lse ? static_cast<T>(lse * kLog2E) : T(0);
  }
  PackPanel(
      at.rows, shape.value_dim,
      [&](std::size_t r) HWY_ATTR { return tile.upstream_rows + r * columns; },
      tile.upstream_panel);
  tile.finite = tile.finite &&
                AllFinite(tile.upstream_rows, static_cast<std::size_t>(at.rows), columns, columns);
}

template <class Value, class T>
HWY_INLINE void StoreQueryGradient(const BlockSparseAttentionBackward<Value, T>& args,
                                   const TilePlace& at, Tile<T>& tile) {
  const auto& shape = args.in.shape;
  const std::size_t padded = PaddedSize(shape.dim);
  for (std::int64_t r = 0; r < at.rows; ++r) {
    T* row = tile.query_sums + static_cast<std::size_t>(r) * padded;
    ScaleRow(row, padded, static_cast<T>(shape.scale), row);
    if (args.in.query_rotation != nullptr) {
      Rotate(args.in.query_rotation + at.query(r) * shape.dim, shape.dim, T(-1), row);
    }
    StoreRow(row, static_cast<std::size_t>(shape.dim),
             args.grad_query + IndexOf(shape, at, r) * shape.dim);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_ATTENTION_OPERANDS_INL_H_
