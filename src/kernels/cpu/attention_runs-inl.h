// SPDX-License-Identifier: Apache-2.0
// Where a tile of queries stands, and which runs of keys its pattern lets it meet.
#if defined(WEIR_KERNELS_CPU_ATTENTION_RUNS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_ATTENTION_RUNS_INL_H_
#undef WEIR_KERNELS_CPU_ATTENTION_RUNS_INL_H_
#else
#define WEIR_KERNELS_CPU_ATTENTION_RUNS_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstddef>

#include "kernels/block_sparse_attention.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {

/// The tile of queries [row, row + rows) of a segment, of one batch entry and head.
struct TilePlace {
  const AttentionSegment* segment = nullptr;
  std::int64_t batch = 0, head = 0, kv_index = 0, row = 0, rows = 0;
  bool causal = false;

  HWY_INLINE std::int64_t query(std::int64_t r) const {
    return segment->query_first + (row + r) * segment->step;
  }
  /// The keys that query row r sees by causality and window: [low, high].
  HWY_INLINE std::int64_t low(std::int64_t r) const {
    return segment->window > 0 ? segment->offset + row + r - segment->window + 1 : 0;
  }
  HWY_INLINE std::int64_t high(std::int64_t r) const {
    if (causal) return segment->offset + row + r;
    return segment->window > 0 ? segment->offset + row + r + segment->window - 1
                               : segment->keys - 1;
  }
};

/// Keys [begin, end) of a segment, in the panels from key `first` on.
struct KeyRun {
  std::int64_t first = 0, panels = 0, width = 0, begin = 0, end = 0;
  bool bounded = false;  // by low and high of each query

  HWY_INLINE std::size_t padded() const { return static_cast<std::size_t>(panels * width); }
};

HWY_INLINE TilePlace PlaceOf(const BlockSparseAttentionShape& shape, std::int64_t batch,
                             std::int64_t head, std::int64_t tile) {
  const AttentionSegment* segment =
      std::upper_bound(
          shape.segments, shape.segments + shape.segment_count, tile,
          [](std::int64_t value, const AttentionSegment& s) { return value < s.query_tile; }) -
      1;
  const std::int64_t row = (tile - segment->query_tile) * shape.tile_rows;
  const std::int64_t group = shape.heads / shape.kv_heads;
  return {.segment = segment,
          .batch = batch,
          .head = head,
          .kv_index = batch * shape.kv_heads + head / group,
          .row = row,
          .rows = std::min(shape.tile_rows, segment->queries - row),
          .causal = shape.causal};
}

/// Cuts keys [begin, end) into runs of whole panels, at most kTileKeys long.
template <class F>
HWY_INLINE void CutRun(std::int64_t begin, std::int64_t end, std::int64_t width, bool bounded,
                       const F& f) {
  while (begin < end) {
    const std::int64_t first = begin / width * width, stop = std::min(end, first + kTileKeys);
    f(KeyRun{.first = first,
             .panels = (stop - first + width - 1) / width,
             .width = width,
             .begin = begin,
             .end = stop,
             .bounded = bounded});
    begin = stop;
  }
}

/// The same for the active blocks of the tile's block row, neighbours together.
template <class F>
HWY_INLINE void CutActive(const BlockSparseAttentionShape& shape, const TilePlace& at,
                          std::int64_t begin, std::int64_t end, std::int64_t width, bool bounded,
                          const F& f) {
  if (shape.layout_heads == 0) return CutRun(begin, end, width, bounded, f);
  const std::int64_t block = shape.block_size;
  const std::int64_t line =
      (shape.layout_heads == 1 ? 0 : at.head * shape.block_rows) + at.row / block;
  const std::int64_t* column = shape.layout.columns + shape.layout.first[line];
  const std::int64_t* last = shape.layout.columns + shape.layout.first[line + 1];
  column = std::lower_bound(column, last, begin / block);
  while (column != last && *column * block < end) {
    const std::int64_t from = *column;
    std::int64_t to = from + 1;
    for (++column; column != last && *column == to; ++column) ++to;
    CutRun(std::max(begin, from * block), std::min(end, to * block), width, bounded, f);
  }
}

template <class F>
HWY_INLINE void ForEachRunOfWidth(const BlockSparseAttentionShape& shape, const TilePlace& at,
                                  std::int64_t width, const F& f) {
  const std::int64_t prefix = std::min(at.segment->prefix, at.segment->keys);
  CutActive(shape, at, 0, prefix, width, false, f);
  const std::int64_t begin = std::max(prefix, at.low(0)),
                     end = std::min(at.segment->keys, at.high(at.rows - 1) + 1);
  CutActive(shape, at, begin, end, width, true, f);
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_ATTENTION_RUNS_INL_H_
