// SPDX-License-Identifier: Apache-2.0
// What attention does with one tile of queries and a run of keys: logits, the softmax that is
// carried along, and what is stored. Logits are in units of log2, so that weights
// are 2^(logit - max).
#if defined(WEIR_KERNELS_CPU_ATTENTION_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_ATTENTION_TILE_INL_H_
#undef WEIR_KERNELS_CPU_ATTENTION_TILE_INL_H_
#else
#define WEIR_KERNELS_CPU_ATTENTION_TILE_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>

#include "kernels/cpu/attention_pack-inl.h"
#include "kernels/cpu/attention_runs-inl.h"
#include "kernels/cpu/exp2-inl.h"
#include "kernels/cpu/matmul-inl.h"
#include "kernels/cpu/row-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr double kLog2E = 1.442695040888963407360, kLn2 = 0.693147180559945309417;

template <class T>
struct Tile {
  T *queries, *query_sums;                       // [rows, padded dim]
  T *upstream, *sums;                            // [rows, padded value_dim]
  T *logits, *grads;                             // [rows, kTileKeys]
  T *max, *total, *factor, *lse, *delta, *keep;  // [rows]; keep: [kTileKeys]
  bool finite = true;                            // queries and upstream
};

template <class T>
HWY_INLINE Tile<T> TakeTile(const BlockSparseAttentionShape& shape, std::byte* workspace) {
  Scratch scratch(workspace);
  const std::size_t rows = kMostTileRows, dim = Padded(static_cast<std::size_t>(shape.dim)),
                    value_dim = Padded(static_cast<std::size_t>(shape.value_dim));
  Tile<T> tile;
  tile.queries = scratch.take<T>(rows * dim);
  tile.query_sums = scratch.take<T>(rows * dim);
  tile.upstream = scratch.take<T>(rows * value_dim);
  tile.sums = scratch.take<T>(rows * value_dim);
  tile.logits = scratch.take<T>(rows * kTileKeys);
  tile.grads = scratch.take<T>(rows * kTileKeys);
  for (T** numbers : {&tile.max, &tile.total, &tile.factor, &tile.lse, &tile.delta, &tile.keep}) {
    *numbers = scratch.take<T>(std::max<std::size_t>(rows, kTileKeys));
  }
  return tile;
}

template <class T>
HWY_INLINE PackedKeys<T> KeysOf(const BlockSparseAttentionShape& shape, const PackedKeys<T>& packed,
                                const TilePlace& at) {
  return Advance(shape, packed, at.kv_index, at.segment->key_panel);
}

template <class T>
HWY_INLINE std::size_t VectorsOf(std::int64_t count) {
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  return (static_cast<std::size_t>(count) + lanes - 1) / lanes;
}

// ---- logits

/// to = left times the keys (or values) of a run, packed as groups of one per lane.
template <class T>
HWY_INLINE void MultiplyPanels(std::size_t rows, std::int64_t features, const KeyRun& run,
                               const Left<T>& left, const T* panels, T* to) {
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  const auto depth = static_cast<std::size_t>(attention_depth(features));
  const T* at = panels + static_cast<std::size_t>(run.first) * depth;
  Multiply<false, T>(rows, run.padded() / lanes, static_cast<std::size_t>(features), left,
                     {at, lanes, depth * lanes}, {to, kTileKeys});
}

/// Logits at keys [begin, end) that `keep` leaves stay, others become -inf.
template <class T>
HWY_INLINE void MaskRow(std::int64_t begin, std::int64_t end, const KeyRun& run, const T* keep,
                        T* HWY_RESTRICT logits) {
  const hn::ScalableTag<T> d;
  const auto nothing = hn::Set(d, kNothing<T>), half = hn::Set(d, T(0.5));
  const auto low = hn::Set(d, static_cast<T>(begin - run.first)),
             high = hn::Set(d, static_cast<T>(end - run.first));
  for (std::size_t i = 0; i < run.padded(); i += hn::Lanes(d)) {
    const auto column = hn::Iota(d, static_cast<T>(i));
    const auto inside = hn::And(hn::Ge(column, low), hn::Lt(column, high));
    const auto kept = hn::And(inside, hn::Gt(hn::Load(d, keep + i), half));
    hn::Store(hn::IfThenElse(kept, hn::Load(d, logits + i), nothing), d, logits + i);
  }
}

template <class T>
HWY_INLINE void ApplyMask(const BlockSparseAttentionShape& shape, const TilePlace& at,
                          const KeyRun& run, std::int64_t r, T* HWY_RESTRICT logits) {
  const std::uint8_t* line = shape.mask + at.batch * shape.mask_batch + at.head * shape.mask_head +
                             at.query(r) * shape.mask_query;
  for (std::int64_t j = run.begin; j < run.end; ++j) {
    const std::int64_t key = at.segment->key_first + j * at.segment->step;
    if (line[key * shape.mask_key] == 0) logits[j - run.first] = kNothing<T>;
  }
}

template <class T>
HWY_INLINE void ApplyStride(const TilePlace& at, const KeyRun& run, std::int64_t stride,
                            std::int64_t r, T* HWY_RESTRICT logits) {
  const std::int64_t position = at.segment->offset + at.row + r;
  for (std::int64_t j = run.begin; j < run.end; ++j) {
    if ((position - j) % stride != 0) logits[j - run.first] = kNothing<T>;
  }
}

/// Logits of the tile against a run; -inf where the pair is not allowed.
template <class T>
HWY_INLINE void Logits(const BlockSparseAttentionShape& shape, const TilePlace& at,
                       const PackedKeys<T>& keys, const KeyRun& run, Tile<T>& tile) {
  const auto dim = static_cast<std::size_t>(shape.dim);
  MultiplyPanels(static_cast<std::size_t>(at.rows), shape.dim, run,
                 Left<T>{tile.queries, Padded(dim), 1}, keys.keys, tile.logits);
  const std::uint8_t* kept = keys.keep + run.first;
  const bool all_kept = std::memchr(kept, 0, run.padded()) == nullptr;
  for (std::size_t i = 0; i < run.padded(); ++i) tile.keep[i] = static_cast<T>(kept[i]);
  for (std::int64_t r = 0; r < at.rows; ++r) {
    T* row = tile.logits + r * kTileKeys;
    const std::int64_t begin = run.bounded ? std::max(run.begin, at.low(r)) : run.begin;
    const std::int64_t end = run.bounded ? std::min(run.end, at.high(r) + 1) : run.end;
    const bool whole = begin <= run.first && end >= run.first + run.panels * run.width;
    if (!whole || !all_kept) MaskRow(begin, end, run, tile.keep, row);
    if (shape.mask != nullptr) ApplyMask(shape, at, run, r, row);
    if (shape.stride > 1) ApplyStride(at, run, shape.stride, r, row);
  }
}

// ---- softmax

/// 2^t, exactly 0 far below; NaN stays.
template <class D>
HWY_INLINE hn::Vec<D> Weight(D d, hn::Vec<D> t) {
  using T = hn::TFromD<D>;
  const auto value = hn::IfThenElseZero(hn::Ge(t, hn::Set(d, kSmallestExponent<T>)), Exp2(d, t));
  return hn::IfThenElse(hn::IsNaN(t), t, value);
}

/// Logits to weights against the largest logit so far; what was summed up before is scaled down to
/// it.
template <class T>
HWY_INLINE void AccumulateSoftmax(const TilePlace& at, const KeyRun& run, std::size_t columns,
                                  Tile<T>& tile) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  for (std::int64_t r = 0; r < at.rows; ++r) {
    const T* HWY_RESTRICT logits = tile.logits + r * kTileKeys;
    auto max = hn::Set(d, kNothing<T>);
    for (std::size_t i = 0; i < run.padded(); i += lanes)
      max = hn::Max(hn::Load(d, logits + i), max);
    const T largest = std::max(tile.max[r], hn::GetLane(hn::MaxOfLanes(d, max)));
    tile.factor[r] = tile.max[r] - (largest > kNothing<T> ? largest : T(0));
    tile.max[r] = largest;
  }
  for (std::size_t r = 0; r < static_cast<std::size_t>(at.rows); r += lanes) {
    hn::Store(Weight(d, hn::Load(d, tile.factor + r)), d, tile.factor + r);
  }
  for (std::int64_t r = 0; r < at.rows; ++r) {
    T* HWY_RESTRICT logits = tile.logits + r * kTileKeys;
    const auto reference = hn::Set(d, tile.max[r] > kNothing<T> ? tile.max[r] : T(0));
    auto sum = hn::Zero(d);
    for (std::size_t i = 0; i < run.padded(); i += lanes) {
      const auto weight = Weight(d, hn::Sub(hn::Load(d, logits + i), reference));
      hn::Store(weight, d, logits + i);
      sum = hn::Add(sum, weight);
    }
    const T factor = tile.factor[r];
    tile.total[r] = tile.total[r] * factor + hn::GetLane(hn::SumOfLanes(d, sum));
    if (factor == T(1)) continue;
    T* HWY_RESTRICT sums = tile.sums + static_cast<std::size_t>(r) * columns;
    for (std::size_t i = 0; i < columns; i += lanes) {
      hn::Store(hn::Mul(hn::Load(d, sums + i), hn::Set(d, factor)), d, sums + i);
    }
  }
}

/// C += A B for what the tile and a run exchange. A zero in A is a pair that is not allowed: NaN in
/// B must not meet it.
template <class T>
HWY_INLINE void AddProduct(const PackedKeys<T>& keys, const KeyRun& run, std::size_t rows,
                           std::size_t vectors, std::size_t depth, const Left<T>& a,
                           const Right<T>& b, const Product<T>& c, bool finite = true) {
  const std::uint8_t* flags = keys.finite + run.first / run.width;
  if (finite && std::memchr(flags, 0, static_cast<std::size_t>(run.panels)) == nullptr) {
    Multiply<true>(rows, vectors, depth, a, b, c);
  } else {
    MultiplyPresent(rows, vectors, depth, a, b, c);
  }
}

// ---- in and out

/// to[i] = from[i] * factor, `count` padded
template <class T>
HWY_INLINE void ScaleRow(const T* from, std::size_t padded, T factor, T* to) {
  const hn::ScalableTag<T> d;
  for (std::size_t i = 0; i < padded; i += hn::Lanes(d)) {
    hn::Store(hn::Mul(hn::Load(d, from + i), hn::Set(d, factor)), d, to + i);
  }
}

template <class Value, class T>
HWY_INLINE void LoadQueries(const BlockSparseAttentionOperands<Value>& in, const TilePlace& at,
                            double scale, Tile<T>& tile) {
  const auto dim = static_cast<std::size_t>(in.shape.dim);
  const AttentionStrides& strides = in.query_strides;
  tile.finite = true;
  for (std::int64_t r = 0; r < at.rows; ++r) {
    T* row = tile.queries + static_cast<std::size_t>(r) * Padded(dim);
    LoadRow(in.query + at.batch * strides.batch + at.head * strides.head +
                at.query(r) * strides.position,
            dim, T(0), row);
    ScaleRow(row, Padded(dim), static_cast<T>(scale), row);
    tile.finite &= AllFinite(row, Padded(dim));
  }
}

/// The index of query row r in tensors of (batch, heads, queries).
HWY_INLINE std::int64_t IndexOf(const BlockSparseAttentionShape& shape, const TilePlace& at,
                                std::int64_t r) {
  return (at.batch * shape.heads + at.head) * shape.queries + at.query(r);
}

template <class Value, class T>
HWY_INLINE void StoreOutput(const BlockSparseAttentionForward<Value, T>& args, const TilePlace& at,
                            std::size_t columns, Tile<T>& tile) {
  const auto& shape = args.in.shape;
  for (std::int64_t r = 0; r < at.rows; ++r) {
    const std::int64_t index = IndexOf(shape, at, r);
    T* row = tile.sums + static_cast<std::size_t>(r) * columns;
    const T total = tile.total[r];
    ScaleRow(row, columns, total == T(0) ? T(0) : T(1) / total, row);
    StoreRow(row, static_cast<std::size_t>(shape.value_dim), args.output + index * shape.value_dim);
    args.lse[index] = total == T(0) ? kNothing<T>
                                    : static_cast<T>((static_cast<double>(tile.max[r]) +
                                                      std::log2(static_cast<double>(total))) *
                                                     kLn2);
  }
}

/// The upstream gradient, its product with the output, and the log-sum-exp in units of log2.
template <class Value, class T>
HWY_INLINE void LoadUpstream(const BlockSparseAttentionBackward<Value, T>& args,
                             const TilePlace& at, std::size_t columns, Tile<T>& tile) {
  const hn::ScalableTag<T> d;
  const auto& shape = args.in.shape;
  const auto value_dim = static_cast<std::size_t>(shape.value_dim);
  for (std::int64_t r = 0; r < at.rows; ++r) {
    const std::int64_t index = IndexOf(shape, at, r);
    T* upstream = tile.upstream + static_cast<std::size_t>(r) * columns;
    LoadRow(args.grad + index * shape.value_dim, value_dim, T(0), upstream);
    LoadRow(args.output + index * shape.value_dim, value_dim, T(0), tile.sums);
    tile.finite &= AllFinite(upstream, columns);
    auto delta = hn::Zero(d);
    for (std::size_t i = 0; i < columns; i += hn::Lanes(d)) {
      delta = hn::MulAdd(hn::Load(d, upstream + i), hn::Load(d, tile.sums + i), delta);
    }
    tile.delta[r] = hn::GetLane(hn::SumOfLanes(d, delta));
    const T lse = args.lse[index];
    tile.lse[r] = lse > kNothing<T> || lse != lse ? static_cast<T>(lse * kLog2E) : T(0);
  }
}

/// Logits to weights p, and grads (of the weights) to p (grad - delta): the gradient of the logits.
template <class T>
HWY_INLINE void GradientOfLogits(const TilePlace& at, const KeyRun& run, Tile<T>& tile) {
  const hn::ScalableTag<T> d;
  const auto nothing = hn::Set(d, kNothing<T>);
  for (std::int64_t r = 0; r < at.rows; ++r) {
    T* HWY_RESTRICT logits = tile.logits + r * kTileKeys;
    T* HWY_RESTRICT grads = tile.grads + r * kTileKeys;
    const auto lse = hn::Set(d, tile.lse[r]), delta = hn::Set(d, tile.delta[r]);
    for (std::size_t i = 0; i < run.padded(); i += hn::Lanes(d)) {
      const auto logit = hn::Load(d, logits + i);
      const auto away = hn::Eq(logit, nothing);
      const auto weight = hn::IfThenZeroElse(away, Weight(d, hn::Sub(logit, lse)));
      const auto grad = hn::Mul(weight, hn::Sub(hn::Load(d, grads + i), delta));
      hn::Store(weight, d, logits + i);
      hn::Store(hn::IfThenZeroElse(away, grad), d, grads + i);
    }
  }
}

template <class Value, class T>
HWY_INLINE void StoreQueryGradient(const BlockSparseAttentionBackward<Value, T>& args,
                                   const TilePlace& at, std::size_t columns, Tile<T>& tile) {
  const auto& shape = args.in.shape;
  for (std::int64_t r = 0; r < at.rows; ++r) {
    T* row = tile.query_sums + static_cast<std::size_t>(r) * columns;
    ScaleRow(row, columns, static_cast<T>(shape.scale), row);
    StoreRow(row, static_cast<std::size_t>(shape.dim),
             args.grad_query + IndexOf(shape, at, r) * shape.dim);
  }
}

/// The queries carried scale * log2(e): their sums are ln(2) too large by its inverse.
template <class Value, class T>
HWY_INLINE void StoreKeyGradients(const BlockSparseAttentionBackward<Value, T>& args,
                                  std::int64_t batch, std::int64_t kv_head,
                                  const AttentionSegment& segment, Tile<T>& tile) {
  const auto& shape = args.in.shape;
  const auto dim = static_cast<std::size_t>(shape.dim),
             value_dim = static_cast<std::size_t>(shape.value_dim);
  const std::int64_t kv_index = batch * shape.kv_heads + kv_head;
  const auto first = static_cast<std::size_t>(
      ((kv_index - args.packed.first) * shape.panels + segment.key_panel) * kAttentionPanel<T>);
  for (std::int64_t j = 0; j < segment.keys; ++j) {
    const std::int64_t key = kv_index * shape.keys + segment.key_first + j * segment.step;
    const std::size_t row = first + static_cast<std::size_t>(j);
    ScaleRow(args.key_sums + row * Padded(dim), Padded(dim), static_cast<T>(kLn2), tile.queries);
    StoreRow(tile.queries, dim, args.grad_key + key * shape.dim);
    StoreRow(args.value_sums + row * Padded(value_dim), value_dim,
             args.grad_value + key * shape.value_dim);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_ATTENTION_TILE_INL_H_
