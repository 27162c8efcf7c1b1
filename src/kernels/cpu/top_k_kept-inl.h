// SPDX-License-Identifier: Apache-2.0
// What the attention operators that keep k keys per query share: a tile of queries that collects
// them, softmax over them, and the backward over them.
#if defined(WEIR_KERNELS_CPU_TOP_K_KEPT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_TOP_K_KEPT_INL_H_
#undef WEIR_KERNELS_CPU_TOP_K_KEPT_INL_H_
#else
#define WEIR_KERNELS_CPU_TOP_K_KEPT_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "kernels/cpu/attention_tile-inl.h"
#include "kernels/cpu/top_k_candidates-inl.h"
#include "kernels/cpu/top_k_rows-inl.h"
#include "kernels/top_k_attention.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class Value, class T>
HWY_INLINE KeptRows<Value> KeyRows(const BlockSparseAttentionOperands<Value, T>& in,
                                   std::int64_t batch, std::int64_t kv_head) {
  return {in.key + batch * in.key_strides.batch + kv_head * in.key_strides.head,
          in.key_strides.position, static_cast<std::size_t>(in.shape.dim)};
}

template <class Value, class T>
HWY_INLINE KeptRows<Value> ValueRows(const BlockSparseAttentionOperands<Value, T>& in,
                                     std::int64_t batch, std::int64_t kv_head) {
  return {in.value + batch * in.value_strides.batch + kv_head * in.value_strides.head,
          in.value_strides.position, static_cast<std::size_t>(in.shape.value_dim)};
}

template <class Value, class T>
HWY_INLINE const Value* QueryRow(const BlockSparseAttentionOperands<Value, T>& in,
                                 std::int64_t batch, std::int64_t head, std::int64_t i) {
  return in.query + batch * in.query_strides.batch + head * in.query_strides.head +
         i * in.query_strides.position;
}

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

/// Leaves the candidates of a tile, by logits up to the factor |scale|; SelectRow cuts a row down
/// to k.
template <class Value, class T>
HWY_INLINE void CollectTile(const BlockSparseAttentionOperands<Value, T>& in, const TilePlace& at,
                            Tile<T>& tile, Candidates<T>& all) {
  const auto& shape = in.shape;
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  const auto rows = static_cast<std::size_t>(at.rows);
  // Equal products stay equal: the scale is left to what follows, but for its sign.
  LoadQueries(in, at, (shape.scale > 0) - (shape.scale < 0), false, tile);
  ForgetCandidates(all);
  ForEachRun(shape, at, lanes, [&](const KeyRun& run) HWY_ATTR {
    Logits(in, at, LoadKeys(in, at, run, tile), run, tile);
    PackPanel(
        static_cast<std::int64_t>(run.keys()), at.rows,
        [&](std::size_t j) HWY_ATTR { return tile.logits + j * kMostTileRows; }, tile.grads);
    run.ForEachRowPart([&](const Part& part) HWY_ATTR {
      Collect(run, part, tile.grads, (rows + 3) / 4 * 4, rows, all);
    });
  });
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

/// What is kept of a query goes to a row of k places, `nothing` to those that are left over.
template <class From, class To>
HWY_INLINE void StoreKept(const From* from, std::size_t count, std::int64_t k, To nothing, To* to) {
  for (std::size_t i = 0; i < count; ++i) to[i] = static_cast<To>(from[i]);
  std::fill(to + count, to + k, nothing);
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

HWY_INLINE std::size_t CountKept(const std::int32_t* indices, std::int64_t k) {
  return static_cast<std::size_t>(std::find(indices, indices + k, std::int32_t{-1}) - indices);
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

/// Where the gradients of the keys or values of a head add up.
template <class T>
struct HeadSums {
  T* rows = nullptr;
  std::size_t step = 0;
};

/// From the gradients at.grads of factor <query, key>, those of the kept keys, added up, and of the
/// query.
template <class Value, class T>
HWY_INLINE void GradientOfProducts(double factor, const Value* query, const KeptRows<Value>& keys,
                                   std::size_t kept, const std::int32_t* indices,
                                   const HeadSums<T>& to, const QueryScratch<T>& at,
                                   Value* grad_query) {
  const T scale = static_cast<T>(factor);
  LoadRow(query, keys.count, T(0), at.query);
  ScaleRow(at.query, Padded(keys.count), scale, at.query);
  AddKept(at.query, keys.count, kept, indices, at.grads, to.rows, to.step);
  SumKept(keys, kept, indices, at.grads, at.sums);
  ScaleRow(at.sums, Padded(keys.count), scale, at.sums);
  StoreRow(at.sums, keys.count, grad_query);
}

/// One call owns the sums of some (part, batch, kv head): start(batch, kv_head, first), where
/// `first` is the first of their rows, then query(batch, head, i) for all queries of the part.
template <class Start, class Query>
HWY_INLINE void ForEachQueryOfKeys(const BlockSparseAttentionShape& shape, std::int64_t begin,
                                   std::int64_t end, const Start& start, const Query& query) {
  const std::int64_t group = shape.heads / shape.kv_heads;
  for (std::int64_t index = begin; index < end; ++index) {
    const std::int64_t part = index % shape.key_parts, pair = index / shape.key_parts;
    const std::int64_t batch = pair / shape.kv_heads, kv_head = pair % shape.kv_heads;
    start(batch, kv_head, ((part * shape.batch + batch) * shape.kv_heads + kv_head) * shape.keys);
    for (std::int64_t head = kv_head * group; head < (kv_head + 1) * group; ++head) {
      for (std::int64_t i = shape.queries * part / shape.key_parts;
           i < shape.queries * (part + 1) / shape.key_parts; ++i) {
        query(batch, head, i);
      }
    }
  }
}

/// Attention over the kept keys, backward. `indices_of(batch, head, i)` is the place of a query's
/// indices; `products(index, kept, at)` sees at.weights and their gradients <grad, value>,
/// at.grads.
template <class Value, class T, class IndicesOf, class Products>
HWY_INLINE void BackwardOverKept(const TopKAttentionBackward<Value, T>& args, std::int64_t begin,
                                 std::int64_t end, std::byte* workspace,
                                 const IndicesOf& indices_of, const Products& products) {
  const auto& in = args.in;
  const auto& shape = in.shape;
  const QueryScratch<T> at = TakeQuery<T>(shape, args.k, workspace);
  HeadSums<T> key_sums = {nullptr, static_cast<std::size_t>(top_k_attention_row(shape.dim))},
              value_sums = {nullptr,
                            static_cast<std::size_t>(top_k_attention_row(shape.value_dim))};
  KeptRows<Value> keys, values;
  const auto start = [&](std::int64_t batch, std::int64_t kv_head, std::int64_t first) HWY_ATTR {
    const auto row = static_cast<std::size_t>(first), rows = static_cast<std::size_t>(shape.keys);
    key_sums.rows = args.grad_key + row * key_sums.step;
    value_sums.rows = args.grad_value + row * value_sums.step;
    std::fill_n(key_sums.rows, rows * key_sums.step, T(0));
    std::fill_n(value_sums.rows, rows * value_sums.step, T(0));
    keys = KeyRows(in, batch, kv_head), values = ValueRows(in, batch, kv_head);
  };
  ForEachQueryOfKeys(
      shape, begin, end, start,
      [&](std::int64_t batch, std::int64_t head, std::int64_t i) HWY_ATTR {
        const std::int64_t index = (batch * shape.heads + head) * shape.queries + i;
        const std::int32_t* indices = indices_of(batch, head, i);
        const std::size_t kept = CountKept(indices, args.k);
        LoadRow(args.weights + index * args.k, kept, T(0), at.weights);
        LoadRow(args.grad + index * shape.value_dim, values.count, T(0), at.upstream);
        DotKept(at.upstream, values, kept, indices, at.grads);
        std::fill(at.grads + kept, at.grads + Padded(kept), T(0));
        products(index, kept, at);
        GradientOfSoftmax(kept, at.weights, at.grads);
        AddKept(at.upstream, values.count, kept, indices, at.weights, value_sums.rows,
                value_sums.step);
        GradientOfProducts(shape.scale, QueryRow(in, batch, head, i), keys, kept, indices, key_sums,
                           at, args.grad_query + index * shape.dim);
      });
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_TOP_K_KEPT_INL_H_
