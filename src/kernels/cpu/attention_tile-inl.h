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
#include <cstdint>
#include <cstring>

#include "kernels/cpu/attention_operands-inl.h"
#include "kernels/cpu/attention_rows-inl.h"
#include "kernels/cpu/exp2-inl.h"
#include "kernels/cpu/matmul-inl.h"
#include "kernels/dropout.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

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
  run.ForEachRowPart([&](const Part& part) HWY_ATTR {
    Multiply<false, T>(part.keys, (part.rows + lanes - 1) / lanes,
                       static_cast<std::size_t>(features), {rows + part.key * step, step, 1},
                       {panel + part.row * depth, lanes, depth * lanes},
                       {to + part.key * kMostTileRows + part.row, kMostTileRows});
  });
}

// ---- which pairs

/// Bits [from, to) of 64, both clamped to it.
HWY_INLINE std::uint64_t Bits(std::int64_t from, std::int64_t to) {
  const auto below = [](std::int64_t row) {
    return row >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << std::max<std::int64_t>(row, 0)) - 1;
  };
  return below(to) & ~below(from);
}

/// Rows whose bit is set stay; others become -inf.
template <class T>
HWY_INLINE void MaskRow(const Part& part, std::uint64_t visible, T* HWY_RESTRICT logits) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d);
  const std::uint64_t all = Bits(0, static_cast<std::int64_t>(lanes));
  for (std::size_t r = part.row; r < part.row + part.rows; r += lanes) {
    const std::uint64_t here = visible >> r;
    if ((here & all) == all) continue;
    alignas(8) std::uint8_t bits[8];
    std::memcpy(bits, &here, 8);
    const auto kept = hn::LoadMaskBits(d, bits);
    hn::Store(hn::IfThenElse(kept, hn::Load(d, logits + r), hn::Set(d, kNothing<T>)), d,
              logits + r);
  }
}

template <class T>
HWY_INLINE void MaskKeys(const BlockSparseAttentionShape& shape, const TilePlace& at,
                         const KeyRun& run, Tile<T>& tile) {
  const std::int64_t hole = at.segment->hole;
  std::int64_t from = 0, to = run.bounded ? 0 : at.rows;
  run.ForEachKeyPart([&](const Part& part) HWY_ATTR {
    for (std::size_t i = part.key; i < part.key + part.keys; ++i) {
      const std::int64_t j = run.begin + static_cast<std::int64_t>(i);
      while (run.bounded && from < at.rows && at.high[from] < j) ++from;
      while (run.bounded && to < at.rows && at.low[to] <= j) ++to;
      std::uint64_t visible = Kept(shape, at, j) ? Bits(from, to) : 0;
      if (hole > 0) {
        const std::int64_t self = j - at.position();  // the row at the key's position
        visible &= ~Bits(shape.causal ? self : self - hole + 1, self + hole);
      }
      MaskRow(part, visible, tile.logits + i * kMostTileRows);
    }
  });
}

/// `mask`, and a stride within the segment.
template <class T>
HWY_INLINE void MaskPairs(const BlockSparseAttentionShape& shape, const TilePlace& at,
                          const KeyRun& run, Tile<T>& tile) {
  if (shape.mask == nullptr && shape.stride == 1) return;
  const std::uint8_t* mask = shape.mask + at.batch * shape.mask_batch + at.head * shape.mask_head;
  run.ForEachRowPart([&](const Part& part) {
    const std::int64_t key = run.begin + static_cast<std::int64_t>(part.key);
    const auto end = static_cast<std::int64_t>(part.row + part.rows);
    for (std::int64_t r = static_cast<std::int64_t>(part.row); r < end; ++r) {
      for (std::int64_t j = key; j < key + static_cast<std::int64_t>(part.keys); ++j) {
        const bool kept = shape.mask == nullptr ||
                          mask[at.query(r) * shape.mask_query + at.key(j) * shape.mask_key] != 0;
        if (!kept || (at.position() + r - j) % shape.stride != 0) {
          RowOf(run, j, tile.logits)[r] = kNothing<T>;
        }
      }
    }
  });
}

/// Calls f(j, r, count, index): rows [r, r + count) at key j have the bias at index, index + 1, ...
template <class F>
HWY_INLINE void ForEachBias(const BlockSparseAttentionShape& shape, const TilePlace& at,
                            const KeyRun& run, const F& f) {
  run.ForEachRowPart([&](const Part& part) {
    const auto stop = static_cast<std::int64_t>(part.row + part.rows);
    const std::int64_t key = run.begin + static_cast<std::int64_t>(part.key);
    for (std::int64_t r = static_cast<std::int64_t>(part.row), count = 0; r < stop; r += count) {
      const std::int64_t position = at.position() + r, row = FloorMod(position, shape.bias_rows);
      count = std::min(stop - r, shape.bias_rows - row);
      const std::int64_t first = position - row - shape.bias_behind;
      const std::int64_t begin = std::max(key, first),
                         end = std::min(key + static_cast<std::int64_t>(part.keys),
                                        first + shape.bias_columns);
      for (std::int64_t j = begin; j < end; ++j) {
        f(j, r, count, (j - first) * shape.bias_rows + row);
      }
    }
  });
}

/// The row whose query stands at key j, if the tile has it; else -1.
HWY_INLINE std::int64_t SelfRow(const TilePlace& at, std::int64_t j) {
  const std::int64_t r = j - at.position();
  return r >= 0 && r < at.rows ? r : -1;
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
    const std::int64_t r = SelfRow(at, j);
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
HWY_INLINE void AccumulateSoftmax(const Part& part, std::size_t columns, Tile<T>& tile) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d), keys = part.keys, end = part.row + part.rows;
  const auto nothing = hn::Set(d, kNothing<T>);
  for (std::size_t r = part.row; r < end; r += lanes) {
    T* HWY_RESTRICT logits = tile.logits + part.key * kMostTileRows + r;
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
  for (std::size_t r = part.row; r < end; ++r) {
    const T factor = tile.factor[r];
    if (factor != T(1)) ScaleRow(tile.sums + r * columns, columns, factor, tile.sums + r * columns);
  }
}

/// Logits to weights p, and grads (of the weights) to p (grad - delta): the gradient of the logits.
template <class T>
HWY_INLINE void GradientOfLogits(const BlockSparseAttentionShape& shape, const TilePlace& at,
                                 const KeyRun& run, Tile<T>& tile) {
  const hn::ScalableTag<T> d;
  const auto nothing = hn::Set(d, kNothing<T>);
  run.ForEachRowPart([&](const Part& part) HWY_ATTR {
    for (std::size_t r = part.row; r < part.row + part.rows; r += hn::Lanes(d)) {
      const auto lse = hn::Load(d, tile.lse + r), delta = hn::Load(d, tile.delta + r);
      for (std::size_t j = part.key; j < part.key + part.keys; ++j) {
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
  });
  for (std::int64_t j = run.begin; shape.self_last && j < run.end; ++j) {
    const std::int64_t r = SelfRow(at, j);
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
  run.ForEachKeyPart([&](const Part& part) HWY_ATTR {
    for (std::size_t i = part.key; i < part.key + part.keys; ++i) {
      T* HWY_RESTRICT row = to + i * kMostTileRows;
      const std::int64_t key = at.key(run.begin + static_cast<std::int64_t>(i));
      for (std::size_t r = part.row; r < part.row + part.rows; ++r) {
        row[r] = dropout_bits(tile.dropout[r], key) < threshold ? T(0) : row[r] * factor;
      }
    }
  });
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_ATTENTION_TILE_INL_H_
