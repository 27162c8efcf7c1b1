// SPDX-License-Identifier: Apache-2.0
// The softmax of attention for one tile of queries and a run of keys. Logits stand one key per row,
// one query per lane, in units of log2, so that weights are 2^(logit - max) and neither the maximum
// nor the sum over keys crosses lanes.
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

#include "kernels/cpu/attention_operands-inl.h"
#include "kernels/cpu/exp2-inl.h"
#include "kernels/cpu/matmul-inl.h"
#include "kernels/dropout.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr double kSelfLogit = -5e4;  // natural; counts only when nothing else is there

/// Row of key j in `logits` or `grads`.
template <class T>
HWY_INLINE T* RowOf(const KeyRun& run, std::int64_t j, T* tile) {
  return tile + (j - run.begin) * kMostTileRows;
}

/// to[j, r] = <key j, row r of the panel>, or of values.
template <class T>
HWY_INLINE void MultiplyPanel(const KeyRun& run, const T* rows, std::size_t step,
                              std::int64_t features, const T* panel, T* to) {
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  const auto depth = static_cast<std::size_t>((features + 3) / 4 * 4);
  Multiply<false, T>(run.keys(), (run.rows() + lanes - 1) / lanes,
                     static_cast<std::size_t>(features), {rows, step, 1},
                     {panel + static_cast<std::size_t>(run.row) * depth, lanes, depth * lanes},
                     {to + run.row, kMostTileRows});
}

// ---- which pairs

/// Rows [from, to) stay except [hole, hole_end); others become -inf.
template <class T>
HWY_INLINE void MaskRow(const KeyRun& run, std::int64_t from, std::int64_t to, std::int64_t hole,
                        std::int64_t hole_end, T* HWY_RESTRICT logits) {
  const hn::ScalableTag<T> d;
  const auto set = [&](std::int64_t row) HWY_ATTR {  // clamped, so that T holds it
    return hn::Set(d, static_cast<T>(std::clamp<std::int64_t>(row, 0, kMostTileRows)));
  };
  const auto low = set(from), high = set(to), hole_low = set(hole), hole_high = set(hole_end);
  for (std::int64_t r = run.row; r < run.row_end; r += static_cast<std::int64_t>(hn::Lanes(d))) {
    const auto row = hn::Iota(d, static_cast<T>(r));
    const auto inside = hn::And(hn::Ge(row, low), hn::Lt(row, high));
    const auto in_hole = hn::And(hn::Ge(row, hole_low), hn::Lt(row, hole_high));
    const auto logit = hn::Load(d, logits + r);
    hn::Store(hn::IfThenElse(hn::AndNot(in_hole, inside), logit, hn::Set(d, kNothing<T>)), d,
              logits + r);
  }
}

template <class T>
HWY_INLINE void MaskKeys(const BlockSparseAttentionShape& shape, const TilePlace& at,
                         const KeyRun& run, Tile<T>& tile) {
  const std::int64_t hole = at.segment->hole;
  std::int64_t from = run.row, to = run.row;
  for (std::int64_t j = run.begin; j < run.end; ++j) {
    T* logits = RowOf(run, j, tile.logits);
    if (!Kept(shape, at, j)) {
      MaskRow(run, 0, 0, 0, 0, logits);
      continue;
    }
    if (run.bounded) {
      while (from < run.row_end && at.high[from] < j) ++from;
      while (to < run.row_end && at.low[to] <= j) ++to;
    } else {
      to = run.row_end;
    }
    const std::int64_t self = j - at.position();  // the row at the key's position
    const bool whole = from == run.row && to == run.row_end && hole == 0;
    if (!whole) MaskRow(run, from, to, shape.causal ? self : self - hole + 1, self + hole, logits);
  }
}

/// `mask`, and a stride within the segment.
template <class T>
HWY_INLINE void MaskPairs(const BlockSparseAttentionShape& shape, const TilePlace& at,
                          const KeyRun& run, Tile<T>& tile) {
  if (shape.mask == nullptr && shape.stride == 1) return;
  const std::uint8_t* mask = shape.mask + at.batch * shape.mask_batch + at.head * shape.mask_head;
  for (std::int64_t r = run.row; r < run.row_end; ++r) {
    for (std::int64_t j = run.begin; j < run.end; ++j) {
      const bool kept = shape.mask == nullptr ||
                        mask[at.query(r) * shape.mask_query + at.key(j) * shape.mask_key] != 0;
      if (!kept || (at.position() + r - j) % shape.stride != 0) {
        RowOf(run, j, tile.logits)[r] = kNothing<T>;
      }
    }
  }
}

/// Calls f(j, r, count, index): rows [r, r + count) at key j have the bias at index, index + 1, ...
template <class F>
HWY_INLINE void ForEachBias(const BlockSparseAttentionShape& shape, const TilePlace& at,
                            const KeyRun& run, const F& f) {
  for (std::int64_t r = run.row, count = 0; r < run.row_end; r += count) {
    const std::int64_t position = at.position() + r, row = FloorMod(position, shape.bias_rows);
    count = std::min(run.row_end - r, shape.bias_rows - row);
    const std::int64_t first = position - row - shape.bias_behind;
    const std::int64_t begin = std::max(run.begin, first),
                       end = std::min(run.end, first + shape.bias_columns);
    for (std::int64_t j = begin; j < end; ++j) f(j, r, count, (j - first) * shape.bias_rows + row);
  }
}

/// The row whose query stands at key j, if the run has it; else -1.
HWY_INLINE std::int64_t SelfRow(const TilePlace& at, const KeyRun& run, std::int64_t j) {
  const std::int64_t r = j - at.position();
  return r >= run.row && r < run.row_end ? r : -1;
}

/// Logits of the tile against a run; -inf where the pair is not allowed.
template <class Value, class T>
HWY_INLINE void Logits(const BlockSparseAttentionOperands<Value, T>& in, const TilePlace& at,
                       const RunRows<T>& rows, const KeyRun& run, Tile<T>& tile) {
  const auto& shape = in.shape;
  MultiplyPanel(run, rows.keys, rows.key_row, shape.dim, tile.query_panel, tile.logits);
  if (in.bias != nullptr) {
    const T* bias = in.bias + at.head * shape.bias_rows * shape.bias_columns;
    ForEachBias(shape, at, run,
                [&](std::int64_t j, std::int64_t r, std::int64_t count, std::int64_t index) {
                  T* HWY_RESTRICT to = RowOf(run, j, tile.logits) + r;
                  const T* HWY_RESTRICT from = bias + index;
                  for (std::int64_t i = 0; i < count; ++i) to[i] += from[i] * T(kLog2E);
                });
  }
  for (std::int64_t j = run.begin; shape.self_last && j < run.end; ++j) {
    const std::int64_t r = SelfRow(at, run, j);
    if (r >= 0) RowOf(run, j, tile.logits)[r] = static_cast<T>(kSelfLogit * kLog2E);
  }
  MaskKeys(shape, at, run, tile);
  MaskPairs(shape, at, run, tile);
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
HWY_INLINE void AccumulateSoftmax(const KeyRun& run, std::size_t columns, Tile<T>& tile) {
  const hn::ScalableTag<T> d;
  const std::size_t keys = run.keys(), lanes = hn::Lanes(d);
  const auto nothing = hn::Set(d, kNothing<T>);
  const auto row = static_cast<std::size_t>(run.row), end = static_cast<std::size_t>(run.row_end);
  for (std::size_t r = row; r < end; r += lanes) {
    T* HWY_RESTRICT logits = tile.logits + r;
    const auto before = hn::Load(d, tile.max + r);
    auto max = before;
    for (std::size_t j = 0; j < keys; ++j) {
      max = hn::Max(hn::Load(d, logits + j * kMostTileRows), max);  // this way round drops NaN
    }
    const auto reference = hn::IfThenZeroElse(hn::Eq(max, nothing), max);
    const auto factor = Weight(d, hn::Sub(before, reference));
    auto sum = hn::Mul(hn::Load(d, tile.total + r), factor);
    for (std::size_t j = 0; j < keys; ++j) {
      T* HWY_RESTRICT at = logits + j * kMostTileRows;
      const auto weight = Weight(d, hn::Sub(hn::Load(d, at), reference));
      hn::Store(weight, d, at);
      sum = hn::Add(sum, weight);
    }
    hn::Store(max, d, tile.max + r);
    hn::Store(factor, d, tile.factor + r);
    hn::Store(sum, d, tile.total + r);
  }
  for (std::size_t r = row; r < end; ++r) {
    const T factor = tile.factor[r];
    if (factor != T(1)) ScaleRow(tile.sums + r * columns, columns, factor, tile.sums + r * columns);
  }
}

/// C += A B for what the tile and a run exchange. Unless all is finite, a zero in A is a pair that
/// is not allowed: NaN in B must not meet it.
template <class T>
HWY_INLINE void AddProduct(bool finite, std::size_t rows, std::size_t columns, std::size_t depth,
                           const Left<T>& a, const Right<T>& b, const Product<T>& c) {
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  const std::size_t vectors = (columns + lanes - 1) / lanes;
  if (finite) {
    Multiply<true>(rows, vectors, depth, a, b, c);
  } else {
    MultiplyPresent(rows, vectors, depth, a, b, c);
  }
}

/// Logits to weights p, and grads (of the weights) to p (grad - delta): the gradient of the logits.
template <class T>
HWY_INLINE void GradientOfLogits(const BlockSparseAttentionShape& shape, const TilePlace& at,
                                 const KeyRun& run, Tile<T>& tile) {
  const hn::ScalableTag<T> d;
  const auto nothing = hn::Set(d, kNothing<T>);
  const std::size_t keys = run.keys();
  for (std::int64_t r = run.row; r < run.row_end; r += static_cast<std::int64_t>(hn::Lanes(d))) {
    const auto lse = hn::Load(d, tile.lse + r), delta = hn::Load(d, tile.delta + r);
    for (std::size_t j = 0; j < keys; ++j) {
      T* HWY_RESTRICT logits = tile.logits + j * kMostTileRows + r;
      T* HWY_RESTRICT grads = tile.grads + j * kMostTileRows + r;
      const auto logit = hn::Load(d, logits);
      const auto away = hn::Eq(logit, nothing);
      const auto weight = hn::IfThenZeroElse(away, Weight(d, hn::Sub(logit, lse)));
      const auto grad = hn::Mul(weight, hn::Sub(hn::Load(d, grads), delta));
      hn::Store(weight, d, logits);
      hn::Store(hn::IfThenZeroElse(away, grad), d, grads);
    }
  }
  for (std::int64_t j = run.begin; shape.self_last && j < run.end; ++j) {
    const std::int64_t r = SelfRow(at, run, j);
    if (r >= 0) RowOf(run, j, tile.grads)[r] = T(0);
  }
}

// ---- dropout

template <class T>
HWY_INLINE void SetDropout(const BlockSparseAttentionShape& shape, const TilePlace& at,
                           Tile<T>& tile) {
  if (shape.dropout == 0) return;
  const std::uint32_t head = dropout_head(shape.seed, at.batch * shape.heads + at.head);
  for (std::int64_t r = 0; r < at.rows; ++r) tile.dropout[r] = dropout_row(head, at.query(r));
}

/// Drops entries of a run's weights or their gradients, and scales the others up.
template <class T>
HWY_INLINE void ApplyDropout(const BlockSparseAttentionShape& shape, const TilePlace& at,
                             const KeyRun& run, const Tile<T>& tile, T* to) {
  if (shape.dropout == 0) return;
  const std::uint32_t threshold = dropout_threshold(shape.dropout);
  const T factor = static_cast<T>(1 / (1 - shape.dropout));
  for (std::int64_t j = run.begin; j < run.end; ++j) {
    T* HWY_RESTRICT row = RowOf(run, j, to);
    for (std::int64_t r = run.row; r < run.row_end; ++r) {
      row[r] = dropout_bits(tile.dropout[r], at.key(j)) < threshold ? T(0) : row[r] * factor;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_ATTENTION_TILE_INL_H_
