// SPDX-License-Identifier: Apache-2.0
// top_k_attention on the CPU, once per instruction set. Forward: a tile of queries meets the runs
// of keys that it sees, as in block_sparse_attention, and each query collects its k largest logits;
// then softmax over them and the sum of their values. Backward: per query over its kept keys.
#include "kernels/top_k_attention.h"

#include <algorithm>

#include "kernels/cpu/attention_sizes.h"
#include "kernels/cpu/flush_denormals.h"
#include "kernels/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/top_k_attention.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/top_k_kept-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {

// ---- forward

template <class Value, class T>
HWY_INLINE void StoreQuery(const TopKAttentionForward<Value, T>& args, const TilePlace& at,
                           std::size_t r, Candidates<T>& all, Tile<T>& tile) {
  const auto& in = args.in;
  SelectRow(r, all);
  const std::size_t count = all.count[r];
  T* logits = all.logits + r * all.capacity;
  const Integer<T>* keys = all.keys + r * all.capacity;
  if (count > 0) Softmax(in.shape.scale, count, logits);
  const std::int64_t index = IndexOf(in.shape, at, static_cast<std::int64_t>(r));
  StoreKept(keys, count, args.k, std::int32_t{-1}, args.indices + index * args.k);
  StoreKept(logits, count, args.k, T(0), args.weights + index * args.k);
  const KeptRows<Value> values = ValueRows(in, at.batch, at.kv_head);
  SumKept(values, count, keys, logits, tile.sums);
  StoreRow(tile.sums, values.count, args.output + index * in.shape.value_dim);
}

template <class Value, class T>
HWY_INLINE void Forward(const TopKAttentionForward<Value, T>& args, std::int64_t begin,
                        std::int64_t end, std::byte* workspace) {
  const auto& shape = args.in.shape;
  Scratch scratch(workspace);
  auto all = TakeCandidates<T>(static_cast<std::size_t>(args.k),
                               static_cast<std::size_t>(shape.keys), scratch);
  Tile<T> tile = TakeTile<T>(shape, false, scratch.take<std::byte>(0));
  for (std::int64_t index = begin; index < end; ++index) {
    const std::int64_t head = index / shape.tiles % shape.heads;
    const std::int64_t batch = index / (shape.tiles * shape.heads);
    const TilePlace at = PlaceOf(shape, batch, head, index % shape.tiles);
    CollectTile(args.in, at, tile, all);
    for (std::int64_t r = 0; r < at.rows; ++r) {
      StoreQuery(args, at, static_cast<std::size_t>(r), all, tile);
    }
  }
}

// ---- backward

template <class Value, class T>
HWY_INLINE void Backward(const TopKAttentionBackward<Value, T>& args, std::int64_t begin,
                         std::int64_t end, std::byte* workspace) {
  const auto& shape = args.in.shape;
  BackwardOverKept(
      args, begin, end, workspace,
      [&](std::int64_t batch, std::int64_t head, std::int64_t i) {
        return args.indices + ((batch * shape.heads + head) * shape.queries + i) * args.k;
      },
      [](std::int64_t, std::size_t, const QueryScratch<T>&) {});
}

#define WEIR_INSTANTIATE(Name, Value, T)                                               \
  void Forward##Name(const TopKAttentionForward<Value, T>& args, std::int64_t begin,   \
                     std::int64_t end, std::byte* workspace) {                         \
    Forward(args, begin, end, workspace);                                              \
  }                                                                                    \
  void Backward##Name(const TopKAttentionBackward<Value, T>& args, std::int64_t begin, \
                      std::int64_t end, std::byte* workspace) {                        \
    Backward(args, begin, end, workspace);                                             \
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

std::int64_t top_k_attention_row(std::int64_t count) {
  constexpr auto kLanes = static_cast<std::int64_t>(kMostLanes);
  return (count + kLanes - 1) / kLanes * kLanes;
}

std::size_t top_k_attention_workspace_bytes(const BlockSparseAttentionShape& shape, std::int64_t k,
                                            bool backward) {
  const auto kept = static_cast<std::size_t>(k), keys = static_cast<std::size_t>(shape.keys);
  if (backward) {  // as TakeQuery
    const std::size_t widths = 2 * Padded(static_cast<std::size_t>(shape.dim)) +
                               Padded(static_cast<std::size_t>(shape.value_dim));
    return Scratch::bytes<double>(widths + 2 * Padded(kept) + kBlock);
  }
  // As TakeCandidates, for the widest type, and TakeTile behind it.
  const std::size_t rows = 2 * kMostTileRows + 1;
  return Scratch::bytes<double>(rows * CandidateCapacity(kept, keys) + 2 * kBlock) +
         block_sparse_attention_workspace_bytes(shape, false);
}

#define WEIR_DISPATCH(Name, Value, T)                                                            \
  HWY_EXPORT(Forward##Name);                                                                     \
  HWY_EXPORT(Backward##Name);                                                                    \
  void top_k_attention_forward(const TopKAttentionForward<Value, T>& args, std::int64_t begin,   \
                               std::int64_t end, std::byte* workspace) {                         \
    const FlushDenormals guard;                                                                  \
    HWY_DYNAMIC_DISPATCH(Forward##Name)(args, begin, end, workspace);                            \
  }                                                                                              \
  void top_k_attention_backward(const TopKAttentionBackward<Value, T>& args, std::int64_t begin, \
                                std::int64_t end, std::byte* workspace) {                        \
    const FlushDenormals guard;                                                                  \
    HWY_DYNAMIC_DISPATCH(Backward##Name)(args, begin, end, workspace);                           \
  }
WEIR_DISPATCH(Float, float, float)
WEIR_DISPATCH(Double, double, double)
WEIR_DISPATCH(BFloat16, BFloat16, float)
WEIR_DISPATCH(Float16, Float16, float)
#undef WEIR_DISPATCH

}  // namespace weir::kernels
#endif  // HWY_ONCE
