// SPDX-License-Identifier: Apache-2.0
// coordinate_descent_attention on the CPU, once per instruction set. A block of queries computes
// all its logits into scratch, solves them row by row, short ones a group at a time, and multiplies
// the weights with the values.
// The backward computes the logits again and takes the weights from the trace.
#include "kernels/coordinate_descent_attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/flush_denormals.h"
#include "kernels/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/coordinate_descent_attention.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/coordinate_descent_attention_block-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {

template <class Value>
HWY_INLINE RowSolver SolverOf(const CoordinateDescentAttentionOperands<Value>& in,
                              std::int64_t index) {
  return {.eps = in.shape.eps,
          .n_iters = in.shape.n_iters,
          .budget = in.budget[index * in.budget_stride]};
}

/// What the weights of a row are multiplied with.
template <class T>
HWY_INLINE T FactorOf(const CoordinateDescentAttentionShape& shape, const T* weights,
                      std::size_t padded) {
  if (!shape.normalize) return T(1);
  const double total = SumBelowLevel(weights, padded, T(1));  // none is above 1
  return total == 0 ? T(0) : static_cast<T>(1 / total);
}

/// A row that ends without being solved.
template <class T>
HWY_INLINE bool IsIdle(const RowStatistics<T>& row, const RowSolver& solver) {
  return row.valid == 0 || IsPoisoned(row, solver.budget);
}

/// f(row, count) for groups of rows, as many as there are lanes.
template <class T, class F>
HWY_INLINE void ForEachGroup(const CoordinateDescentAttentionShape& shape, const BlockPlace& at,
                             BlockScratch<T>& block, const F& f) {
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(hn::ScalableTag<T>()));
  for (std::int64_t r = 0; r < at.rows; r += lanes) {
    const std::int64_t count = std::min(lanes, at.rows - r);
    block.group.rows.cols = static_cast<std::size_t>(SeenBy(shape, at, r + count - 1));
    for (std::int64_t lane = count; lane < lanes; ++lane) {
      EnterIdleLane(static_cast<std::size_t>(lane), block.group);
    }
    f(r, count);
  }
}

// ---- forward

template <class Value, class T>
HWY_INLINE void SolveRowByRow(const CoordinateDescentAttentionForward<Value>& args,
                              const BlockPlace& at, BlockScratch<T>& block) {
  for (std::int64_t r = 0; r < at.rows; ++r) {
    T* x = block.row(r);
    const std::int64_t index = IndexOf(args.in.shape, at, r);
    const RowStatistics<T> row = HideKeys(args.in.shape, at, r, x);
    const RowSolver solver = SolverOf(args.in, index);
    SolveRow(row, solver, x, block.solver, args.trace + index * solver.trace_size());
    block.factors[r] = FactorOf(args.in.shape, x, Padded(row.span));
  }
}

/// The same for rows that suit lanes.
template <class Value, class T>
HWY_INLINE void SolveInLanes(const CoordinateDescentAttentionForward<Value>& args,
                             const BlockPlace& at, BlockScratch<T>& block) {
  const auto& shape = args.in.shape;
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  LaneGroup<T>& group = block.group;
  ForEachGroup(shape, at, block, [&](std::int64_t first, std::int64_t count) HWY_ATTR {
    bool idle[kMostLanes] = {};
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t index = IndexOf(shape, at, first + i);
      const auto lane = static_cast<std::size_t>(i);
      T* x = block.row(first + i);
      const RowStatistics<T> row = HideKeys(shape, at, first + i, x);
      const RowSolver solver = SolverOf(args.in, index);
      idle[lane] = IsIdle(row, solver);
      if (idle[lane]) {
        SolveRow(row, solver, x, block.solver, args.trace + index * shape.n_iters);
        EnterIdleLane(lane, group);
      } else {
        EnterLane(row, solver, lane, x, group);
      }
    }
    SolveLanes(shape.eps, shape.n_iters, group);
    for (std::int64_t i = 0; i < count; ++i) {
      const auto lane = static_cast<std::size_t>(i);
      T* x = block.row(first + i);
      if (!idle[lane]) {
        LeaveLane(group.rows.x, lane, group.rows.cols, x);
        double* trace = args.trace + IndexOf(shape, at, first + i) * shape.n_iters;
        for (std::int64_t t = 0; t < shape.n_iters; ++t) {
          trace[t] = group.trace[static_cast<std::size_t>(t) * lanes + lane];
        }
      }
      const auto span = static_cast<std::size_t>(SeenBy(shape, at, first + i));
      block.factors[first + i] = FactorOf(shape, x, Padded(span));
    }
  });
}

template <class Value, class T>
HWY_INLINE void ForwardBlock(const CoordinateDescentAttentionForward<Value>& args,
                             const BlockPlace& at, BlockScratch<T>& block) {
  const auto& shape = args.in.shape;
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  const std::size_t row = block.logit_row, columns = PaddedSize(shape.value_dim);
  LoadQueries(args.in, at, block);
  ForEachChunk(shape, at, [&](const Chunk& chunk) HWY_ATTR {
    MultiplyChunk(chunk, LoadKeys(args.in, at, chunk, block.keys), shape.dim, block.query_rows,
                  block, block.logits);
  });
  if (SuitsLanes(shape.n_iters, shape.keys)) {
    SolveInLanes(args, at, block);
  } else {
    SolveRowByRow(args, at, block);
  }
  std::fill_n(block.sums, static_cast<std::size_t>(at.rows) * columns, T(0));
  ForEachChunk(shape, at, [&](const Chunk& chunk) HWY_ATTR {
    const ChunkRows<T> values = LoadKeyValues(args.in, at, chunk, block.values);
    AddProduct<T>(values.finite, chunk.rows, static_cast<std::size_t>(shape.value_dim), chunk.keys,
                  {block.logits + chunk.row * row + chunk.key, row, 1},
                  {values.at, values.row, lanes}, {block.sums + chunk.row * columns, columns});
  });
  for (std::int64_t r = 0; r < at.rows; ++r) {
    T* sums = block.sums + static_cast<std::size_t>(r) * columns;
    if (shape.normalize) ScaleRow(sums, columns, block.factors[r], sums);
    StoreRow(sums, static_cast<std::size_t>(shape.value_dim),
             args.output + IndexOf(shape, at, r) * shape.value_dim);
  }
}

template <class Value>
HWY_INLINE void Forward(const CoordinateDescentAttentionForward<Value>& args, std::int64_t begin,
                        std::int64_t end, std::byte* workspace) {
  using T = typename ComputeOf<Value>::type;
  const auto& shape = args.in.shape;
  BlockScratch<T> block = TakeBlock<T>(shape, false, workspace);
  const std::int64_t blocks = shape.blocks();
  for (std::int64_t index = begin; index < end; ++index) {
    const std::int64_t head = index / blocks % shape.heads, batch = index / (blocks * shape.heads);
    ForwardBlock(args, PlaceOfBlock(shape, batch, head, index % blocks), block);
  }
}

// ---- backward

/// sum_j a_j b_j
template <class T>
HWY_INLINE double Dot(const T* HWY_RESTRICT a, const T* HWY_RESTRICT b, std::size_t padded) {
  const hn::ScalableTag<T> d;
  double total = 0;
  for (std::size_t begin = 0; begin < padded; begin += kChunk) {
    const std::size_t end = std::min(padded, begin + kChunk);
    auto sum = hn::Zero(d);
    for (std::size_t i = begin; i < end; i += hn::Lanes(d)) {
      sum = hn::MulAdd(hn::Load(d, a + i), hn::Load(d, b + i), sum);
    }
    total += static_cast<double>(hn::GetLane(hn::SumOfLanes(d, sum)));
  }
  return total;
}

/// (g_j - mean) factor: through the division by the sum of the weights.
template <class T>
HWY_INLINE void CenterRow(T mean, T factor, std::size_t padded, T* HWY_RESTRICT g) {
  const hn::ScalableTag<T> d;
  for (std::size_t i = 0; i < padded; i += hn::Lanes(d)) {
    const auto centered = hn::Sub(hn::Load(d, g + i), hn::Set(d, mean));
    hn::Store(hn::Mul(centered, hn::Set(d, factor)), d, g + i);
  }
}

template <class Value, class T>
HWY_INLINE void LoadUpstream(const CoordinateDescentAttentionBackward<Value, T>& args,
                             const BlockPlace& at, BlockScratch<T>& block) {
  const auto& shape = args.in.shape;
  const std::size_t dim = PaddedSize(shape.dim), columns = PaddedSize(shape.value_dim);
  const auto rows = static_cast<std::size_t>(at.rows);
  for (std::size_t r = 0; r < rows; ++r) {
    const std::int64_t index = IndexOf(shape, at, static_cast<std::int64_t>(r));
    LoadRow(args.grad + index * shape.value_dim, static_cast<std::size_t>(shape.value_dim), T(0),
            block.upstream_rows + r * columns);
  }
  block.finite = AllFinite(block.query_rows, rows, dim, dim) &&
                 AllFinite(block.upstream_rows, rows, columns, columns);
}

/// The weights of row x to block.weights, and g to the gradient of the weights as they were before
/// the division by their sum. Returns what the weights were multiplied with.
template <class T>
HWY_INLINE T WeightsAgain(const CoordinateDescentAttentionShape& shape, const BlockPlace& at,
                          std::int64_t r, const RowStatistics<T>& row, const RowSolver& solver,
                          const double* trace, const T* x, T* g, BlockScratch<T>& block) {
  const std::size_t padded = Padded(row.span);
  std::fill(g + row.span, g + padded, T(0));
  MaskRow(shape, at, r, row.span, T(0), g);
  WeightsOfRow(row, solver, trace, x, block.weights);
  const T factor = FactorOf(shape, block.weights, padded);
  if (shape.normalize) {
    const auto mean = static_cast<T>(Dot(block.weights, g, padded) * static_cast<double>(factor));
    CenterRow(mean, factor, padded, g);
  }
  return factor;
}

/// Rows of logits to the weights that met the values, of grads (of these) to grads of the logits.
template <class Value, class T>
HWY_INLINE void DifferentiateRowByRow(const CoordinateDescentAttentionBackward<Value, T>& args,
                                      const BlockPlace& at, BlockScratch<T>& block) {
  const auto& shape = args.in.shape;
  for (std::int64_t r = 0; r < at.rows; ++r) {
    T *x = block.row(r), *g = block.grad_row(r);
    const std::int64_t index = IndexOf(shape, at, r);
    const RowSolver solver = SolverOf(args.in, index);
    const double* trace = args.trace + index * solver.trace_size();
    const RowStatistics<T> row = HideKeys(shape, at, r, x);
    const T factor = WeightsAgain(shape, at, r, row, solver, trace, x, g, block);
    args.grad_budget[index] = GradientOfRow(row, solver, trace, x, g, block.solver, block.terms);
    ScaleRow(block.weights, Padded(row.span), factor, x);
  }
}

/// The same for rows that suit lanes.
template <class Value, class T>
HWY_INLINE void DifferentiateInLanes(const CoordinateDescentAttentionBackward<Value, T>& args,
                                     const BlockPlace& at, BlockScratch<T>& block) {
  const auto& shape = args.in.shape;
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  LaneGroup<T>& group = block.group;
  ForEachGroup(shape, at, block, [&](std::int64_t first, std::int64_t count) HWY_ATTR {
    const std::size_t padded = Padded(group.rows.cols);
    bool idle[kMostLanes] = {};
    std::fill_n(group.trace, static_cast<std::size_t>(shape.n_iters) * lanes, 0.0);
    std::fill_n(group.grads, padded * lanes, T(0));
    for (std::int64_t i = 0; i < count; ++i) {
      const std::int64_t r = first + i, index = IndexOf(shape, at, r);
      const auto lane = static_cast<std::size_t>(i);
      T *x = block.row(r), *g = block.grad_row(r);
      const RowSolver solver = SolverOf(args.in, index);
      const double* trace = args.trace + index * shape.n_iters;
      const RowStatistics<T> row = HideKeys(shape, at, r, x);
      const T factor = WeightsAgain(shape, at, r, row, solver, trace, x, g, block);
      idle[lane] = IsIdle(row, solver);
      if (idle[lane]) {
        args.grad_budget[index] =
            GradientOfRow(row, solver, trace, x, g, block.solver, block.terms);
        EnterIdleLane(lane, group);
      } else {
        EnterLane(row, solver, lane, x, group);
        std::fill(g + row.span, g + padded, T(0));
        PutPieces(g, lane, group.rows.cols, group.grads);
        for (std::int64_t t = 0; t < shape.n_iters; ++t) {
          group.trace[static_cast<std::size_t>(t) * lanes + lane] = trace[t];
        }
      }
      ScaleRow(block.weights, Padded(row.span), factor, x);
    }
    HWY_ALIGN double grad_budget[kMostLanes];
    DifferentiateLanes(shape.eps, shape.n_iters, group, grad_budget);
    for (std::int64_t i = 0; i < count; ++i) {
      const auto lane = static_cast<std::size_t>(i);
      if (idle[lane]) continue;
      const std::int64_t index = IndexOf(shape, at, first + i);
      LeaveLane(group.grads, lane, group.rows.cols, block.grad_row(first + i));
      args.grad_budget[index] =
          SolverOf(args.in, index).budget_is_clamped() ? 0 : grad_budget[lane];
    }
  });
}

/// Adds to the gradients of the keys and values that a block sees, and writes that of its queries.
template <class Value, class T>
HWY_INLINE void BackwardBlock(const CoordinateDescentAttentionBackward<Value, T>& args,
                              const BlockPlace& at, const Product<T>& grad_keys,
                              const Product<T>& grad_values, BlockScratch<T>& block) {
  const auto& shape = args.in.shape;
  const std::size_t lanes = hn::Lanes(hn::ScalableTag<T>());
  const std::size_t row = block.logit_row;
  const std::size_t dim = PaddedSize(shape.dim), columns = PaddedSize(shape.value_dim);
  LoadQueries(args.in, at, block);
  LoadUpstream(args, at, block);
  ForEachChunk(shape, at, [&](const Chunk& chunk) HWY_ATTR {
    MultiplyChunk(chunk, LoadKeys(args.in, at, chunk, block.keys), shape.dim, block.query_rows,
                  block, block.logits);
    MultiplyChunk(chunk, LoadKeyValues(args.in, at, chunk, block.values), shape.value_dim,
                  block.upstream_rows, block, block.grads);
  });
  if (SuitsLanes(shape.n_iters, shape.keys)) {
    DifferentiateInLanes(args, at, block);
  } else {
    DifferentiateRowByRow(args, at, block);
  }
  std::fill_n(block.query_sums, static_cast<std::size_t>(at.rows) * dim, T(0));
  ForEachChunk(shape, at, [&](const Chunk& chunk) HWY_ATTR {
    const std::size_t entry = chunk.row * row + chunk.key;
    const ChunkRows<T> keys = LoadKeys(args.in, at, chunk, block.keys);
    AddProduct<T>(keys.finite, chunk.rows, static_cast<std::size_t>(shape.dim), chunk.keys,
                  {block.grads + entry, row, 1}, {keys.at, keys.row, lanes},
                  {block.query_sums + chunk.row * dim, dim});
    AddProduct<T>(block.finite, chunk.keys, static_cast<std::size_t>(shape.dim), chunk.rows,
                  {block.grads + entry, 1, row}, {block.query_rows + chunk.row * dim, dim, lanes},
                  {grad_keys.at + chunk.key * grad_keys.row, grad_keys.row});
    AddProduct<T>(block.finite, chunk.keys, static_cast<std::size_t>(shape.value_dim), chunk.rows,
                  {block.logits + entry, 1, row},
                  {block.upstream_rows + chunk.row * columns, columns, lanes},
                  {grad_values.at + chunk.key * grad_values.row, grad_values.row});
  });
  for (std::int64_t r = 0; r < at.rows; ++r) {
    T* sums = block.query_sums + static_cast<std::size_t>(r) * dim;
    ScaleRow(sums, dim, static_cast<T>(shape.scale), sums);
    StoreRow(sums, static_cast<std::size_t>(shape.dim),
             args.grad_query + IndexOf(shape, at, r) * shape.dim);
  }
}

/// Whole vectors on every instruction set.
HWY_INLINE std::size_t GradientRow(std::int64_t count) {
  return (static_cast<std::size_t>(count) + kMostLanes - 1) / kMostLanes * kMostLanes;
}

template <class Value, class T>
HWY_INLINE void Backward(const CoordinateDescentAttentionBackward<Value, T>& args,
                         std::int64_t begin, std::int64_t end, std::byte* workspace) {
  const auto& shape = args.in.shape;
  BlockScratch<T> block = TakeBlock<T>(shape, true, workspace);
  const std::int64_t group = shape.heads / shape.kv_heads, blocks = shape.blocks();
  const std::size_t key_row = GradientRow(shape.dim), value_row = GradientRow(shape.value_dim);
  for (std::int64_t index = begin; index < end; ++index) {
    const std::int64_t part = index % shape.key_parts, pair = index / shape.key_parts;
    const std::int64_t kv_head = pair % shape.kv_heads, batch = pair / shape.kv_heads;
    const auto first = static_cast<std::size_t>(
        ((part * shape.batch + batch) * shape.kv_heads + kv_head) * shape.keys);
    const Product<T> grad_keys = {args.grad_key + first * key_row, key_row},
                     grad_values = {args.grad_value + first * value_row, value_row};
    // Dealt in turn: with causality, later blocks are longer.
    for (std::int64_t b = part; b < group * blocks; b += shape.key_parts) {
      const BlockPlace at = PlaceOfBlock(shape, batch, kv_head * group + b / blocks, b % blocks);
      BackwardBlock(args, at, grad_keys, grad_values, block);
    }
  }
}

#define WEIR_INSTANTIATE(Name, Value, T)                                                       \
  void Forward##Name(const CoordinateDescentAttentionForward<Value>& args, std::int64_t begin, \
                     std::int64_t end, std::byte* workspace) {                                 \
    Forward(args, begin, end, workspace);                                                      \
  }                                                                                            \
  void Backward##Name(const CoordinateDescentAttentionBackward<Value, T>& args,                \
                      std::int64_t begin, std::int64_t end, std::byte* workspace) {            \
    Backward(args, begin, end, workspace);                                                     \
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

std::int64_t coordinate_descent_attention_block_rows(std::int64_t queries, std::int64_t keys,
                                                     std::int64_t bytes) {
  constexpr std::int64_t kFewest = 16, kMost = 64, kBytes = 512 * 1024;
  const std::int64_t fitting = kBytes / (std::max<std::int64_t>(1, keys) * bytes);
  return std::clamp<std::int64_t>(std::min(queries, std::max(fitting, kFewest)), 1, kMost);
}

std::size_t coordinate_descent_attention_workspace_bytes(
    const CoordinateDescentAttentionShape& shape, bool backward) {
  const auto rows = static_cast<std::size_t>(shape.block_rows);
  const std::size_t keys = Padded(static_cast<std::size_t>(shape.keys)) + kBlock;
  const std::size_t width = Padded(static_cast<std::size_t>(shape.dim)) +
                            Padded(static_cast<std::size_t>(shape.value_dim));
  const std::size_t terms = 8 * static_cast<std::size_t>(shape.n_iters);
  // As TakeBlock: rows of logits, two rows for the solvers, operands, a chunk and its transpose;
  // for short rows two transposed groups, a row, a trace and its terms.
  const bool in_lanes = HWY_STATIC_DISPATCH(SuitsLanes)(shape.n_iters, shape.keys);
  const std::size_t group =
      in_lanes ? (2 * keys + 4 * static_cast<std::size_t>(shape.n_iters)) * kMostLanes + keys : 0;
  return Scratch::bytes<double>(((backward ? 2 : 1) * rows + 2) * keys +
                                2 * (rows + kBlock) * width + rows + terms + group + 4096);
}

#define WEIR_DISPATCH(Name, Value, T)                                                             \
  HWY_EXPORT(Forward##Name);                                                                      \
  HWY_EXPORT(Backward##Name);                                                                     \
  void coordinate_descent_attention_forward(const CoordinateDescentAttentionForward<Value>& args, \
                                            std::int64_t begin, std::int64_t end,                 \
                                            std::byte* workspace) {                               \
    const FlushDenormals guard;                                                                   \
    HWY_DYNAMIC_DISPATCH(Forward##Name)(args, begin, end, workspace);                             \
  }                                                                                               \
  void coordinate_descent_attention_backward(                                                     \
      const CoordinateDescentAttentionBackward<Value, T>& args, std::int64_t begin,               \
      std::int64_t end, std::byte* workspace) {                                                   \
    const FlushDenormals guard;                                                                   \
    HWY_DYNAMIC_DISPATCH(Backward##Name)(args, begin, end, workspace);                            \
  }
WEIR_DISPATCH(Float, float, float)
WEIR_DISPATCH(Double, double, double)
WEIR_DISPATCH(BFloat16, BFloat16, float)
WEIR_DISPATCH(Float16, Float16, float)
#undef WEIR_DISPATCH

}  // namespace weir::kernels
#endif  // HWY_ONCE
