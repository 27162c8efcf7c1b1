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
#include "kernels/cpu/attention_sizes.h"

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

/// Keys [key, key + keys) of a run, counted from its beginning, and rows [row, row + rows) of a
/// tile.
struct Part {
  std::size_t key = 0, keys = 0, row = 0, rows = 0;
};

constexpr std::int64_t kPartKeys = 16;

/// Keys [begin, end) of a segment, at most kTileKeys. Where the tile and the run meet, cut into
/// vectors of rows and kPartKeys keys, is covered twice: by parts with rows of their own, and by
/// parts with keys of their own. What lies outside is not computed.
struct KeyRun {
  std::int64_t begin = 0, end = 0;
  bool bounded = false;  // by low and high of each row
  Part by_rows[kMostTileRows], by_keys[kTileKeys / kPartKeys];
  std::size_t row_parts = 0, key_parts = 0;

  HWY_INLINE std::size_t keys() const { return static_cast<std::size_t>(end - begin); }

  template <class F>
  HWY_INLINE void ForEachRowPart(const F& f) const {
    for (std::size_t i = 0; i < row_parts; ++i) f(by_rows[i]);
  }
  template <class F>
  HWY_INLINE void ForEachKeyPart(const F& f) const {
    for (std::size_t i = 0; i < key_parts; ++i) f(by_keys[i]);
  }
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

/// Vectors of rows that meet the same keys make one part.
HWY_INLINE void CutByRows(const TilePlace& at, std::int64_t lanes, KeyRun& run) {
  for (std::int64_t row = 0; row < at.rows; row += lanes) {
    const std::int64_t last = std::min(row + lanes, at.rows) - 1;
    const std::int64_t low = run.bounded ? std::max(run.begin, at.low[row]) : run.begin;
    const std::int64_t high = run.bounded ? std::min(run.end - 1, at.high[last]) : run.end - 1;
    if (low > high) continue;
    const auto key = static_cast<std::size_t>((low - run.begin) / kPartKeys * kPartKeys);
    const std::int64_t stop = (high - run.begin) / kPartKeys * kPartKeys + kPartKeys;
    const std::size_t keys = std::min(static_cast<std::size_t>(stop), run.keys()) - key;
    const auto rows = static_cast<std::size_t>(last + 1 - row);
    Part* before = run.row_parts == 0 ? nullptr : &run.by_rows[run.row_parts - 1];
    if (before != nullptr && before->key == key && before->keys == keys) {
      before->rows += rows;
    } else {
      run.by_rows[run.row_parts++] = {key, keys, static_cast<std::size_t>(row), rows};
    }
  }
}

/// The same area: rows that see some keys stand together, since low and high ascend.
HWY_INLINE void CutByKeys(KeyRun& run) {
  for (std::size_t key = 0; key < run.keys(); key += kPartKeys) {
    Part part = {key, std::min<std::size_t>(kPartKeys, run.keys() - key), 0, 0};
    run.ForEachRowPart([&](const Part& p) {
      if (key < p.key || key >= p.key + p.keys) return;
      if (part.rows == 0) part.row = p.row;
      part.rows = p.row + p.rows - part.row;
    });
    if (part.rows == 0) continue;
    Part* before = run.key_parts == 0 ? nullptr : &run.by_keys[run.key_parts - 1];
    if (before != nullptr && before->row == part.row && before->rows == part.rows) {
      before->keys += part.keys;
    } else {
      run.by_keys[run.key_parts++] = part;
    }
  }
}

/// Cuts keys [begin, end) into runs.
template <class F>
HWY_INLINE void CutRun(const TilePlace& at, std::int64_t begin, std::int64_t end, bool bounded,
                       std::int64_t lanes, const F& f) {
  for (; begin < end; begin += kTileKeys) {
    KeyRun run;
    run.begin = begin, run.end = std::min(end, begin + kTileKeys), run.bounded = bounded;
    CutByRows(at, lanes, run);
    if (run.row_parts == 0) continue;
    CutByKeys(run);
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
  // Parts of runs then begin where those of other tiles do.
  const std::int64_t low = at.low[0] > 0 ? at.low[0] / kPartKeys * kPartKeys : 0;
  const std::int64_t begin = std::max(prefix, low),
                     end = std::min(at.segment->keys, at.high[at.rows - 1] + 1);
  CutActive(shape, at, begin, end, true, vector, f);
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_ATTENTION_RUNS_INL_H_
