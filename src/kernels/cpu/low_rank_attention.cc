// SPDX-License-Identifier: Apache-2.0
// low_rank_attention on the CPU, once per instruction set. Forward: the routing heads choose, tile
// by tile, as in top_k_attention; then each head of their group attends to what they keep. Backward
// has two passes, as heads may share routing keys and attention keys in different ways: attention
// over the kept keys, which leaves what each head would have the scores be, and the routing heads.
#include "kernels/low_rank_attention.h"

#include <algorithm>
#include <limits>

#include "kernels/cpu/attention_sizes.h"
#include "kernels/cpu/flush_denormals.h"
#include "kernels/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/low_rank_attention.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/coordinate_descent_rows-inl.h"
#include "kernels/cpu/top_k_kept-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {

// ---- scores

/// Routing logits, up to the factor |scale|, to scores, padded. `scratch` is the exact solver's.
template <class T>
HWY_INLINE void ScoreRow(const LowRankAttentionScore& score, double scale, std::size_t count,
                         T* logits, T* scratch) {
  if (!score.descends) return Softmax(scale, count, logits);
  std::fill(logits + count, logits + Padded(count), kNothing<T>);
  for (std::size_t j = 0; j < count; ++j) logits[j] *= static_cast<T>(std::abs(scale));
  RowStatistics<T> row;
  row.span = count;
  Summarise(logits, row);
  double trace = 0;
  SolveRow(row, {.eps = &score.eps, .budget = score.budget}, logits, scratch, &trace);
}

/// Gradients of the scores to those of the routing logits. A score of coordinate descent that is
/// not 1 is exp((r - c) / eps): c moves with the others, so that their sum stays.
template <class T>
HWY_INLINE void GradientOfScores(const LowRankAttentionScore& score, std::size_t count,
                                 const T* HWY_RESTRICT scores, T* HWY_RESTRICT grads) {
  if (!score.descends) return GradientOfSoftmax(count, scores, grads);
  const hn::ScalableTag<T> d;
  const auto zero = hn::Zero(d), one = hn::Set(d, T(1));
  auto mass = zero, weighted = zero;
  for (std::size_t i = 0; i < count; i += hn::Lanes(d)) {
    const auto s = hn::Load(d, scores + i);
    const auto live = hn::IfThenZeroElse(hn::Ge(s, one), s);
    mass = hn::Add(mass, live);
    weighted = hn::MulAdd(live, hn::Load(d, grads + i), weighted);
  }
  const T sum = hn::GetLane(hn::SumOfLanes(d, mass));
  const T mean = sum == T(0) ? T(0) : hn::GetLane(hn::SumOfLanes(d, weighted)) / sum;
  const auto center = hn::Set(d, mean), inverse = hn::Set(d, static_cast<T>(1 / score.eps));
  for (std::size_t i = 0; i < count; i += hn::Lanes(d)) {
    const auto s = hn::Load(d, scores + i);
    const auto grad = hn::Sub(hn::Load(d, grads + i), center);
    const auto of_logit = hn::Mul(hn::Mul(s, inverse), grad);
    hn::Store(hn::IfThenZeroElse(hn::Ge(s, one), of_logit), d, grads + i);
  }
}

// ---- forward

/// Scratch behind the candidates and before the tile.
template <class T>
struct AttendScratch {
  T *query, *sums, *weights, *solver;
};

template <class T>
HWY_INLINE AttendScratch<T> TakeAttend(const BlockSparseAttentionShape& shape, std::int64_t k,
                                       Scratch& scratch) {
  return {.query = scratch.take<T>(PaddedSize(shape.dim)),
          .sums = scratch.take<T>(PaddedSize(shape.value_dim)),
          .weights = scratch.take<T>(PaddedSize(k)),
          .solver = scratch.take<T>(ExactScratch(static_cast<std::size_t>(k)))};
}

/// One head's attention to the kept keys of query i; a query whose scores are NaN is NaN.
template <class Value, class T>
HWY_INLINE void AttendToKept(const LowRankAttentionForward<Value, T>& args, std::int64_t batch,
                             std::int64_t head, std::int64_t i, std::size_t count,
                             const Integer<T>* keys, bool finite, const AttendScratch<T>& at) {
  const auto& shape = args.in.shape;
  const std::int64_t index = (batch * shape.heads + head) * shape.queries + i;
  const std::int64_t kv_head = head / (shape.heads / shape.kv_heads);
  const KeptRows<Value> key_rows = KeyRows(args.in, batch, kv_head),
                        value_rows = ValueRows(args.in, batch, kv_head);
  LoadRow(QueryRow(args.in, batch, head, i), key_rows.count, T(0), at.query);
  ScaleRow(at.query, Padded(key_rows.count), static_cast<T>(shape.scale), at.query);
  DotKept(at.query, key_rows, count, keys, at.weights);
  if (count > 0) Softmax(1.0, count, at.weights);
  if (!finite) std::fill_n(at.weights, count, std::numeric_limits<T>::quiet_NaN());
  StoreKept(at.weights, count, args.k, T(0), args.weights + index * args.k);
  SumKept(value_rows, count, keys, at.weights, at.sums);
  StoreRow(at.sums, value_rows.count, args.output + index * shape.value_dim);
}

template <class Value, class T>
HWY_INLINE void AttendRow(const LowRankAttentionForward<Value, T>& args, const TilePlace& place,
                          std::size_t r, Candidates<T>& all, const AttendScratch<T>& at) {
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  const auto& shape = args.route.shape;
  SelectRow(r, all);
  const std::size_t count = all.count[r];
  T* scores = all.logits + r * all.capacity;
  const Integer<T>* keys = all.keys + r * all.capacity;
  if (count > 0) ScoreRow(args.score, shape.scale, count, scores, at.solver);
  const auto row = static_cast<std::int64_t>(r);
  const std::int64_t index = IndexOf(shape, place, row);
  StoreKept(keys, count, args.k, std::int32_t{-1}, args.indices + index * args.k);
  StoreKept(scores, count, args.k, T(0), args.scores + index * args.k);
  const bool finite = AllFinite(scores, 1, 0, (count + lanes - 1) / lanes * lanes);
  const std::int64_t group = args.in.shape.heads / shape.heads;
  for (std::int64_t head = place.head * group; head < (place.head + 1) * group; ++head) {
    AttendToKept(args, place.batch, head, place.query(row), count, keys, finite, at);
  }
}

template <class Value, class T>
HWY_INLINE void Forward(const LowRankAttentionForward<Value, T>& args, std::int64_t begin,
                        std::int64_t end, std::byte* workspace) {
  const auto& shape = args.route.shape;
  Scratch scratch(workspace);
  auto all = TakeCandidates<T>(static_cast<std::size_t>(args.k),
                               static_cast<std::size_t>(shape.keys), scratch);
  const AttendScratch<T> at = TakeAttend<T>(args.in.shape, args.k, scratch);
  Tile<T> tile = TakeTile<T>(shape, false, scratch.take<std::byte>(0));
  for (std::int64_t index = begin; index < end; ++index) {
    const std::int64_t head = index / shape.tiles % shape.heads;
    const std::int64_t batch = index / (shape.tiles * shape.heads);
    const TilePlace place = PlaceOf(shape, batch, head, index % shape.tiles);
    CollectTile(args.route, place, tile, all);
    for (std::int64_t r = 0; r < place.rows; ++r) {
      AttendRow(args, place, static_cast<std::size_t>(r), all, at);
    }
  }
}

// ---- backward

template <class Value, class T>
HWY_INLINE void Backward(const LowRankAttentionBackward<Value, T>& args, std::int64_t begin,
                         std::int64_t end, std::byte* workspace) {
  const std::int64_t k = args.attention.k, heads = args.attention.in.shape.heads,
                     queries = args.attention.in.shape.queries,
                     route_heads = args.route.shape.heads;
  const auto indices_of = [&](std::int64_t batch, std::int64_t head, std::int64_t i) {
    const std::int64_t route_head = head / (heads / route_heads);
    return args.attention.indices + ((batch * route_heads + route_head) * queries + i) * k;
  };
  BackwardOverKept(args.attention, begin, end, workspace, indices_of,
                   [&](std::int64_t index, std::size_t kept, const QueryScratch<T>& at) HWY_ATTR {
                     T* HWY_RESTRICT to = args.grad_scores + index * k;
                     for (std::size_t j = 0; j < kept; ++j) to[j] = at.weights[j] * at.grads[j];
                   });
}

template <class Value, class T>
HWY_INLINE void RouteBackward(const LowRankAttentionBackward<Value, T>& args, std::int64_t begin,
                              std::int64_t end, std::byte* workspace) {
  const auto& route = args.route;
  const auto& shape = route.shape;
  const std::int64_t k = args.attention.k, heads = args.attention.in.shape.heads;
  const QueryScratch<T> at = TakeQuery<T>(shape, k, workspace);
  HeadSums<T> sums = {nullptr, static_cast<std::size_t>(top_k_attention_row(shape.dim))};
  KeptRows<Value> keys;
  const auto start = [&](std::int64_t batch, std::int64_t kv_head, std::int64_t first) HWY_ATTR {
    sums.rows = args.grad_route_key + static_cast<std::size_t>(first) * sums.step;
    std::fill_n(sums.rows, static_cast<std::size_t>(shape.keys) * sums.step, T(0));
    keys = KeyRows(route, batch, kv_head);
  };
  const auto query = [&](std::int64_t batch, std::int64_t head, std::int64_t i) HWY_ATTR {
    const std::int64_t index = (batch * shape.heads + head) * shape.queries + i;
    const std::int32_t* indices = args.attention.indices + index * k;
    const std::size_t kept = CountKept(indices, k);
    LoadRow(args.scores + index * k, kept, T(0), at.weights);
    std::fill_n(at.grads, Padded(kept), T(0));
    const std::int64_t group = heads / shape.heads;
    for (std::int64_t h = head * group; h < (head + 1) * group; ++h) {
      const T* HWY_RESTRICT grads =
          args.grad_scores + ((batch * heads + h) * shape.queries + i) * k;
      for (std::size_t j = 0; j < kept; ++j) at.grads[j] += grads[j];
    }
    GradientOfScores(args.score, kept, at.weights, at.grads);
    GradientOfProducts(shape.scale, QueryRow(route, batch, head, i), keys, kept, indices, sums, at,
                       args.grad_route_query + index * shape.dim);
  };
  ForEachQueryOfKeys(shape, begin, end, start, query);
}

#define WEIR_INSTANTIATE(Name, Value, T)                                                       \
  void Forward##Name(const LowRankAttentionForward<Value, T>& args, std::int64_t begin,        \
                     std::int64_t end, std::byte* workspace) {                                 \
    Forward(args, begin, end, workspace);                                                      \
  }                                                                                            \
  void Backward##Name(const LowRankAttentionBackward<Value, T>& args, std::int64_t begin,      \
                      std::int64_t end, std::byte* workspace) {                                \
    Backward(args, begin, end, workspace);                                                     \
  }                                                                                            \
  void RouteBackward##Name(const LowRankAttentionBackward<Value, T>& args, std::int64_t begin, \
                           std::int64_t end, std::byte* workspace) {                           \
    RouteBackward(args, begin, end, workspace);                                                \
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

std::size_t low_rank_attention_workspace_bytes(const BlockSparseAttentionShape& route,
                                               const BlockSparseAttentionShape& shape,
                                               std::int64_t k) {
  const auto kept = static_cast<std::size_t>(k);
  const std::size_t rows = Padded(static_cast<std::size_t>(shape.dim)) +
                           Padded(static_cast<std::size_t>(shape.value_dim)) + Padded(kept) +
                           HWY_NAMESPACE::ExactScratch(kept);  // as TakeAttend
  return top_k_attention_workspace_bytes(route, k, false) +
         Scratch::bytes<double>(rows + 4 * kBlock);
}

#define WEIR_DISPATCH(Name, Value, T)                                                            \
  HWY_EXPORT(Forward##Name);                                                                     \
  HWY_EXPORT(Backward##Name);                                                                    \
  HWY_EXPORT(RouteBackward##Name);                                                               \
  void low_rank_attention_forward(const LowRankAttentionForward<Value, T>& args,                 \
                                  std::int64_t begin, std::int64_t end, std::byte* workspace) {  \
    const FlushDenormals guard;                                                                  \
    HWY_DYNAMIC_DISPATCH(Forward##Name)(args, begin, end, workspace);                            \
  }                                                                                              \
  void low_rank_attention_backward(const LowRankAttentionBackward<Value, T>& args,               \
                                   std::int64_t begin, std::int64_t end, std::byte* workspace) { \
    const FlushDenormals guard;                                                                  \
    HWY_DYNAMIC_DISPATCH(Backward##Name)(args, begin, end, workspace);                           \
  }                                                                                              \
  void low_rank_attention_route_backward(const LowRankAttentionBackward<Value, T>& args,         \
                                         std::int64_t begin, std::int64_t end,                   \
                                         std::byte* workspace) {                                 \
    const FlushDenormals guard;                                                                  \
    HWY_DYNAMIC_DISPATCH(RouteBackward##Name)(args, begin, end, workspace);                      \
  }
WEIR_DISPATCH(Float, float, float)
WEIR_DISPATCH(Double, double, double)
WEIR_DISPATCH(BFloat16, BFloat16, float)
WEIR_DISPATCH(Float16, Float16, float)
#undef WEIR_DISPATCH

}  // namespace weir::kernels
#endif  // HWY_ONCE
