// SPDX-License-Identifier: Apache-2.0
// Keys and values of attention in the order in which its products read them.
#if defined(WEIR_KERNELS_CPU_ATTENTION_PACK_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_ATTENTION_PACK_INL_H_
#undef WEIR_KERNELS_CPU_ATTENTION_PACK_INL_H_
#else
#define WEIR_KERNELS_CPU_ATTENTION_PACK_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "kernels/block_sparse_attention.h"
#include "kernels/cpu/row-inl.h"
#include "kernels/cpu/transpose-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Whether no entry of a row in scratch is NaN or infinite.
template <class T>
HWY_INLINE bool AllFinite(const T* HWY_RESTRICT row, std::size_t padded) {
  const hn::ScalableTag<T> d;
  auto sum = hn::Zero(d);  // of x * 0, which is 0 or NaN
  for (std::size_t i = 0; i < padded; i += hn::Lanes(d)) {
    sum = hn::MulAdd(hn::Load(d, row + i), hn::Zero(d), sum);
  }
  return hn::AllFalse(d, hn::IsNaN(sum));
}

/// Where the packed keys of one (batch, kv_head) and segment begin.
template <class T>
HWY_INLINE PackedKeys<T> Advance(const BlockSparseAttentionShape& shape, PackedKeys<T> packed,
                                 std::int64_t kv_index, std::int64_t panel) {
  constexpr std::int64_t kWidth = kAttentionPanel<T>;
  const std::int64_t at = (kv_index - packed.first) * shape.panels + panel;
  const auto padded = [](std::int64_t count) {
    return static_cast<std::int64_t>(Padded(static_cast<std::size_t>(count)));
  };
  packed.keys += at * kWidth * attention_depth(shape.dim);
  if (packed.values != nullptr) packed.values += at * kWidth * attention_depth(shape.value_dim);
  if (packed.key_rows != nullptr) packed.key_rows += at * kWidth * padded(shape.dim);
  if (packed.value_rows != nullptr) packed.value_rows += at * kWidth * padded(shape.value_dim);
  packed.keep += at * kWidth;
  packed.finite += at;
  return packed;
}

/// The keys, or the values, of one panel: as rows, as groups of one key per lane, or both. Returns
/// whether all are finite.
template <class Value, class T, class Keep>
HWY_INLINE bool PackSide(const Value* from, std::int64_t step, std::size_t count, const Keep& keep,
                         T* HWY_RESTRICT row, T* panel, T* rows) {
  constexpr std::size_t kWidth = kAttentionPanel<T>;
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  const auto depth = static_cast<std::size_t>(attention_depth(static_cast<std::int64_t>(count)));
  bool finite = true;
  for (std::size_t lane = 0; lane < kWidth; ++lane) {
    T* to = rows == nullptr ? row : rows + lane * Padded(count);
    if (keep[lane] != 0) {
      LoadRow(from + static_cast<std::int64_t>(lane) * step, count, T(0), to);
      finite &= AllFinite(to, Padded(count));
    } else {
      std::fill(to, to + Padded(count), T(0));
    }
    if (panel != nullptr) PutPieces(to, lane % lanes, depth, panel + lane / lanes * lanes * depth);
  }
  for (std::size_t group = 0; panel != nullptr && group < kWidth; group += lanes) {
    TransposePieces(panel + group * depth, depth);
  }
  return finite;
}

template <class Value, class T>
HWY_INLINE void PackPanel(const BlockSparseAttentionOperands<Value>& in, std::int64_t kv_index,
                          const AttentionSegment& segment, std::int64_t panel,
                          const PackedKeys<T>& to, T* HWY_RESTRICT row) {
  constexpr std::int64_t kWidth = kAttentionPanel<T>;
  const auto& shape = in.shape;
  const std::int64_t batch = kv_index / shape.kv_heads, head = kv_index % shape.kv_heads;
  const std::int64_t local = (panel - segment.key_panel) * kWidth;
  const std::int64_t first = segment.key_first + local * segment.step;
  for (std::int64_t lane = 0; lane < kWidth; ++lane) {
    const std::int64_t key = first + lane * segment.step;
    to.keep[lane] = local + lane < segment.keys &&
                    (shape.key_mask == nullptr || shape.key_mask[batch * shape.keys + key] != 0);
  }
  const auto start = [&](const Value* from, const AttentionStrides& strides) {
    return from + batch * strides.batch + head * strides.head + first * strides.position;
  };
  const bool keys_finite =
      PackSide(start(in.key, in.key_strides), segment.step * in.key_strides.position,
               static_cast<std::size_t>(shape.dim), to.keep, row, to.keys, to.key_rows);
  const bool values_finite =
      PackSide(start(in.value, in.value_strides), segment.step * in.value_strides.position,
               static_cast<std::size_t>(shape.value_dim), to.keep, row, to.values, to.value_rows);
  *to.finite = keys_finite && values_finite;
}

/// Panels [begin, end) of all batch * kv_heads * panels.
template <class Value, class T>
HWY_INLINE void Pack(const BlockSparseAttentionOperands<Value>& in, std::int64_t begin,
                     std::int64_t end, const PackedKeys<T>& to, std::byte* workspace) {
  const auto& shape = in.shape;
  const auto longest = static_cast<std::size_t>(std::max(shape.dim, shape.value_dim));
  T* row = Scratch(workspace).take<T>(Padded(longest));
  for (std::int64_t index = begin; index < end; ++index) {
    const std::int64_t kv_index = index / shape.panels, panel = index % shape.panels;
    const AttentionSegment* segment = std::upper_bound(
        shape.segments, shape.segments + shape.segment_count, panel,
        [](std::int64_t value, const AttentionSegment& s) { return value < s.key_panel; });
    PackPanel(in, kv_index, *(segment - 1), panel, Advance(shape, to, kv_index, panel), row);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_ATTENTION_PACK_INL_H_
