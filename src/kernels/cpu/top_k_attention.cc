// SPDX-License-Identifier: Apache-2.0
// top_k_attention on the CPU, once per instruction set. Forward: a tile of queries meets the runs
// of keys that it sees, as in block_sparse_attention, and each query collects its k largest logits;
// then softmax over them and the sum of their values. Backward: per query over its kept keys.
#include "kernels/top_k_attention.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "kernels/cpu/attention_sizes.h"
#include "kernels/cpu/flush_denormals.h"
#include "kernels/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/top_k_attention.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/attention_tile-inl.h"
#include "kernels/cpu/top_k_candidates-inl.h"
#include "kernels/cpu/top_k_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {

// ---- forward

/// The keys of a run, read where they lie if they are of the computed type.
template <class Value, class T>
HWY_INLINE RunRows<T> LoadKeys(const BlockSparseAttentionOperands<Value, T>& in,
                               const TilePlace& at, const KeyRun& run, Tile<T>& tile) {
  const Value* keys = in.key + at.batch * in.key_strides.batch + at.kv_head * in.key_strides.head;
  RunRows<T> rows;
  if constexpr (std::is_same_v<Value, T>) {
    rows.keys = keys + at.key(run.begin) * in.key_strides.position;
    rows.key_row = static_cast<std::size_t>(in.key_strides.position);
  } else {
    CopyRun(in.shape, at, run, keys, in.key_strides.position, in.shape.dim,
            static_cast<const T*>(nullptr), tile.keys);
    rows.keys = tile.keys;
    rows.key_row = PaddedSize(in.shape.dim);
  }
  return rows;
}

/// Logits, up to the factor |scale|, to weights.
template <class T>
HWY_INLINE void Softmax(double scale, std::size_t count, T* HWY_RESTRICT logits) {
  const hn::ScalableTag<T> d;
  const std::size_t lanes = hn::Lanes(d), padded = (count + lanes - 1) / lanes * lanes;
  std::fill(logits + count, logits + padded, kNothing<T>);
  auto most = hn::Set(d, kNothing<T>);
  for (std::size_t i = 0; i < padded; i += lanes) most = hn::Max(hn::Load(d, logits + i), most);
  const auto max = hn::MaxOfLanes(d, most);
  const auto factor = hn::Set(d, static_cast<T>(std::abs(scale) * kLog2E));
  auto sum = hn::Zero(d);
  for (std::size_t i = 0; i < padded; i += lanes) {
    const auto logit = hn::Load(d, logits + i);
    const auto exponent = hn::Mul(hn::Sub(logit, max), factor);
    const auto weight =
        hn::IfThenZeroElse(hn::Eq(logit, hn::Set(d, kNothing<T>)), Weight(d, exponent));
    hn::Store(weight, d, logits + i);
    sum = hn::Add(sum, weight);
  }
  ScaleRow(logits, padded, T(1) / hn::GetLane(hn::SumOfLanes(d, sum)), logits);
}

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
  std::int32_t* indices = args.indices + index * args.k;
  T* weights = args.weights + index * args.k;
  for (std::size_t i = 0; i < count; ++i) indices[i] = static_cast<std::int32_t>(keys[i]);
  std::copy_n(logits, count, weights);
  std::fill(indices + count, indices + args.k, -1);
  std::fill(weights + count, weights + args.k, T(0));
  const Value* values =
      in.value + at.batch * in.value_strides.batch + at.kv_head * in.value_strides.head;
  const auto columns = static_cast<std::size_t>(in.shape.value_dim);
  SumKept<Value>({values, in.value_strides.position, columns}, count, keys, logits, tile.sums);
  StoreRow(tile.sums, columns, args.output + index * in.shape.value_dim);
}

template <class Value, class T>
HWY_INLINE void Forward(const TopKAttentionForward<Value, T>& args, std::int64_t begin,
                        std::int64_t end, std::byte* workspace) {
  const auto& shape = args.in.shape;
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  Scratch scratch(workspace);
  auto all = TakeCandidates<T>(static_cast<std::size_t>(args.k),
                               static_cast<std::size_t>(shape.keys), scratch);
  Tile<T> tile = TakeTile<T>(shape, false, scratch.take<std::byte>(0));
  for (std::int64_t index = begin; index < end; ++index) {
    const std::int64_t head = index / shape.tiles % shape.heads;
    const std::int64_t batch = index / (shape.tiles * shape.heads);
    const TilePlace at = PlaceOf(shape, batch, head, index % shape.tiles);
    const auto rows = static_cast<std::size_t>(at.rows);
    // Equal products stay equal: the scale is left to the softmax, but for its sign.
    LoadQueries(args.in, at, (shape.scale > 0) - (shape.scale < 0), false, tile);
    ForgetCandidates(all);
    ForEachRun(shape, at, lanes, [&](const KeyRun& run) HWY_ATTR {
      Logits(args.in, at, LoadKeys(args.in, at, run, tile), run, tile);
      PackPanel(
          static_cast<std::int64_t>(run.keys()), at.rows,
          [&](std::size_t j) HWY_ATTR { return tile.logits + j * kMostTileRows; }, tile.grads);
      run.ForEachRowPart([&](const Part& part) HWY_ATTR {
        Collect(run, part, tile.grads, (rows + 3) / 4 * 4, rows, all);
      });
    });
    for (std::size_t r = 0; r < rows; ++r) StoreQuery(args, at, r, all, tile);
  }
}

// ---- backward

/// Scratch of one query, rows padded.
template <class T>
struct QueryScratch {
  T *query, *upstream, *sums, *weights, *grads;
};

template <class T>
HWY_INLINE QueryScratch<T> TakeQuery(const BlockSparseAttentionShape& shape, std::int64_t k,
                                     std::byte* workspace) {
  Scratch scratch(workspace);
  return {.query = scratch.take<T>(PaddedSize(shape.dim)),
          .upstream = scratch.take<T>(PaddedSize(shape.value_dim)),
          .sums = scratch.take<T>(PaddedSize(shape.dim)),
          .weights = scratch.take<T>(PaddedSize(k)),
          .grads = scratch.take<T>(PaddedSize(k))};
}

/// Gradients of the weights to those of the logits: w (grad - sum of w grad).
template <class T>
HWY_INLINE void GradientOfSoftmax(std::size_t count, const T* HWY_RESTRICT weights,
                                  T* HWY_RESTRICT grads) {
  const hn::ScalableTag<T> d;
  auto sum = hn::Zero(d);
  for (std::size_t i = 0; i < count; i += hn::Lanes(d)) {
    sum = hn::MulAdd(hn::Load(d, weights + i), hn::Load(d, grads + i), sum);
  }
  const auto mean = hn::SumOfLanes(d, sum);
  for (std::size_t i = 0; i < count; i += hn::Lanes(d)) {
    const auto grad = hn::Sub(hn::Load(d, grads + i), mean);
    hn::Store(hn::Mul(hn::Load(d, weights + i), grad), d, grads + i);
  }
}

/// Where one call adds up the gradients of the keys and values of a head.
template <class T>
struct HeadSums {
  T *keys = nullptr, *values = nullptr;
  std::size_t key_row = 0, value_row = 0;
};

template <class Value, class T>
HWY_INLINE void BackwardQuery(const TopKAttentionBackward<Value, T>& args, std::int64_t index,
                              const Value* query, const KeptRows<Value>& keys,
                              const KeptRows<Value>& values, const HeadSums<T>& to,
                              const QueryScratch<T>& at) {
  const std::int32_t* indices = args.indices + index * args.k;
  const auto kept =
      static_cast<std::size_t>(std::find(indices, indices + args.k, std::int32_t{-1}) - indices);
  LoadRow(args.weights + index * args.k, kept, T(0), at.weights);
  LoadRow(args.grad + index * args.in.shape.value_dim, values.count, T(0), at.upstream);
  LoadRow(query, keys.count, T(0), at.query);
  const T scale = static_cast<T>(args.in.shape.scale);
  ScaleRow(at.query, Padded(keys.count), scale, at.query);
  for (std::size_t j = 0; j < kept; ++j) {
    at.grads[j] = Dot(at.upstream, values.at + indices[j] * values.step, values.count);
  }
  std::fill(at.grads + kept, at.grads + Padded(kept), T(0));
  GradientOfSoftmax(kept, at.weights, at.grads);
  AddKept(at.query, keys.count, kept, indices, at.grads, to.keys, to.key_row);
  AddKept(at.upstream, values.count, kept, indices, at.weights, to.values, to.value_row);
  SumKept(keys, kept, indices, at.grads, at.sums);
  ScaleRow(at.sums, Padded(keys.count), scale, at.sums);
  StoreRow(at.sums, keys.count, args.grad_query + index * args.in.shape.dim);
}

template <class Value, class T>
HWY_INLINE void Backward(const TopKAttentionBackward<Value, T>& args, std::int64_t begin,
                         std::int64_t end, std::byte* workspace) {
  const auto& in = args.in;
  const auto& shape = in.shape;
  const QueryScratch<T> scratch = TakeQuery<T>(shape, args.k, workspace);
  const std::int64_t group = shape.heads / shape.kv_heads;
  const std::int64_t key_row = top_k_attention_row(shape.dim),
                     value_row = top_k_attention_row(shape.value_dim);
  for (std::int64_t index = begin; index < end; ++index) {
    const std::int64_t part = index % shape.key_parts, pair = index / shape.key_parts;
    const std::int64_t batch = pair / shape.kv_heads, kv_head = pair % shape.kv_heads;
    const std::int64_t first =
        ((part * shape.batch + batch) * shape.kv_heads + kv_head) * shape.keys;
    const HeadSums<T> sums = {args.grad_key + first * key_row, args.grad_value + first * value_row,
                              static_cast<std::size_t>(key_row),
                              static_cast<std::size_t>(value_row)};
    std::fill_n(sums.keys, shape.keys * key_row, T(0));
    std::fill_n(sums.values, shape.keys * value_row, T(0));
    const KeptRows<Value> keys = {
        in.key + batch * in.key_strides.batch + kv_head * in.key_strides.head,
        in.key_strides.position, static_cast<std::size_t>(shape.dim)};
    const KeptRows<Value> values = {
        in.value + batch * in.value_strides.batch + kv_head * in.value_strides.head,
        in.value_strides.position, static_cast<std::size_t>(shape.value_dim)};
    for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      const Value* queries =
          in.query + batch * in.query_strides.batch + head * in.query_strides.head;
      for (std::int64_t i = shape.queries * part / shape.key_parts;
           i < shape.queries * (part + 1) / shape.key_parts; ++i) {
        BackwardQuery(args, (batch * shape.heads + head) * shape.queries + i,
                      queries + i * in.query_strides.position, keys, values, sums, scratch);
      }
    }
  }
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
