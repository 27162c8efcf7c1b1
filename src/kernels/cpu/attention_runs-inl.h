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
#include <limits>

#include "kernels/block_sparse_attention.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {

/// The tile of queries [row, row + rows) of a segment, of one batch entry and head.
struct TilePlace {
  const AttentionSegment* segment = nullptr;
  std::int64_t batch = 0, head = 0, kv_head = 0, row = 0, rows = 0;
  // The keys [low, high] that a row sees by causality and window; both ascend.
  std::int64_t low[kMostTileRows], high[kMostTileRows];

  HWY_INLINE std::int64_t query(std::int64_t r) const {
    return segment->query_first + (row + r) * segment->step;
  }
  HWY_INLINE std::int64_t key(std::int64_t j) const {
    return segment->key_first + j * segment->step;
  }
  /// Of row 0; row r stands r behind it.
  HWY_INLINE std::int64_t position() const { return segment->offset + row; }
};

/// Keys [begin, end) of a segment, at most kTileKeys, and the rows of the tile that may see one of
/// them, in whole vectors but for the last row of the tile.
struct KeyRun {
  std::int64_t begin = 0, end = 0;
  std::int64_t row = 0, row_end = 0;
  bool bounded = false;  // by low and high of each row

  HWY_INLINE std::size_t keys() const { return static_cast<std::size_t>(end - begin); }
  HWY_INLINE std::size_t rows() const { return static_cast<std::size_t>(row_end - row); }
};

HWY_INLINE std::int64_t FloorMod(std::int64_t a, std::int64_t b) {
  const std::int64_t rest = a % b;
  return rest < 0 ? rest + b : rest;
}

HWY_INLINE void SetBounds(const BlockSparseAttentionShape& shape, TilePlace& at) {
  const AttentionSegment& segment = *at.segment;
  for (std::int64_t r = 0; r < at.rows; ++r) {
    const std::int64_t position = at.position() + r;
    const std::int64_t start =
        shape.bucket == 1 ? position : position - FloorMod(position, shape.bucket);
    const std::int64_t last = start + shape.bucket - 1 + segment.ahead;
    at.low[r] = start - segment.behind;
    at.high[r] = shape.causal ? std::min(position, last) : last;
  }
}

HWY_INLINE TilePlace PlaceOf(const BlockSparseAttentionShape& shape, std::int64_t batch,
                             std::int64_t head, std::int64_t tile) {
  const AttentionSegment* segment =
      std::upper_bound(
          shape.segments, shape.segments + shape.segment_count, tile,
          [](std::int64_t value, const AttentionSegment& s) { return value < s.query_tile; }) -
      1;
  TilePlace at;
  at.segment = segment;
  at.batch = batch + segment->batch;
  at.head = head;
  at.kv_head = head / (shape.heads / shape.kv_heads);
  at.row = (tile - segment->query_tile) * shape.tile_rows;
  at.rows = std::min(shape.tile_rows, segment->queries - at.row);
  SetBounds(shape, at);
  return at;
}

/// Cuts keys [begin, end) into runs.
template <class F>
HWY_INLINE void CutRun(const TilePlace& at, std::int64_t begin, std::int64_t end, bool bounded,
                       std::int64_t lanes, const F& f) {
  for (; begin < end; begin += kTileKeys) {
    KeyRun run = {.begin = begin,
                  .end = std::min(end, begin + kTileKeys),
                  .row = 0,
                  .row_end = at.rows,
                  .bounded = bounded};
    if (bounded) {
      run.row = std::lower_bound(at.high, at.high + at.rows, run.begin) - at.high;
      run.row = run.row / lanes * lanes;
      run.row_end = std::lower_bound(at.low, at.low + at.rows, run.end) - at.low;
      if (run.row >= run.row_end) continue;
      run.row_end = std::min(at.rows, (run.row_end + lanes - 1) / lanes * lanes);
    }
    f(run);
  }
}

/// The same for the active blocks of the tile's block row, neighbours together.
template <class F>
HWY_INLINE void CutActive(const BlockSparseAttentionShape& shape, const TilePlace& at,
                          std::int64_t begin, std::int64_t end, bool bounded, std::int64_t lanes,
                          const F& f) {
  if (shape.layout_heads == 0) return CutRun(at, begin, end, bounded, lanes, f);
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
    CutRun(at, std::max(begin, from * block), std::min(end, to * block), bounded, lanes, f);
  }
}

template <class F>
HWY_INLINE void ForEachRun(const BlockSparseAttentionShape& shape, const TilePlace& at,
                           std::size_t lanes, const F& f) {
  const auto vector = static_cast<std::int64_t>(lanes);
  const std::int64_t prefix = std::min(at.segment->prefix, at.segment->keys);
  CutActive(shape, at, 0, prefix, false, vector, f);
  const std::int64_t begin = std::max(prefix, at.low[0]),
                     end = std::min(at.segment->keys, at.high[at.rows - 1] + 1);
  CutActive(shape, at, begin, end, true, vector, f);
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_ATTENTION_RUNS_INL_H_
