// SPDX-License-Identifier: Apache-2.0
// router_logits on the CPU, once per instruction set. Both directions take four rows at a time and
// wait for the memory that x is in.
#include "kernels/router_logits.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/flush_denormals.h"
#include "kernels/scratch.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/router_logits.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "kernels/cpu/router_logits_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {

/// Calls tile(batch, row, rows constant) for the rows begin to end, numbered through.
template <class Tile>
HWY_INLINE void ForTiles(const RouterLogitsShape& shape, std::int64_t begin, std::int64_t end,
                         const Tile& tile) {
  constexpr auto kMost = static_cast<std::int64_t>(kTileRows);
  while (begin < end) {
    const std::int64_t batch = begin / shape.rows, row = begin % shape.rows;
    const std::int64_t left = std::min(end - begin, shape.rows - row);
    if (left >= kMost) {
      tile(batch, row, std::integral_constant<std::size_t, kTileRows>());
    } else {
      tile(batch, row, std::integral_constant<std::size_t, 1>());
    }
    begin += left >= kMost ? kMost : 1;
  }
}

template <class Args>
HWY_INLINE auto TileAt(const Args& args, std::int64_t batch, std::int64_t row) {
  const auto& shape = args.shape;
  const std::int64_t group = shape.groups == 1 ? 0 : batch;
  return RowTile{args.x + batch * shape.batch_stride + row * shape.row_stride, shape.row_stride,
                 args.tokens + group * shape.routes * shape.dim, shape.dim};
}

// ---- forward

template <std::size_t kRows, std::size_t kRoutes, bool kLengths, class Value, class T>
HWY_INLINE void ForwardTile(const RouterLogitsForward<Value, T>& args, std::int64_t batch,
                            std::int64_t row, std::int64_t route) {
  const auto& shape = args.shape;
  RowTile<Value, T> tile = TileAt(args, batch, row);
  tile.tokens += route * shape.dim;
  T products[kRows][kTileRoutes], squares[kRows];
  MultiplyRows<kRows, kRoutes, kLengths>(tile, products, squares);
  for (std::size_t i = 0; i < kRows; ++i) {
    const std::int64_t at = row + static_cast<std::int64_t>(i);
    T length = 1;
    if constexpr (kLengths) {
      const T least = static_cast<T>(kLeastLength), whole = std::sqrt(squares[i]);
      length = whole < least ? least : whole;  // NaN stays
      args.lengths[batch * shape.rows + at] = length;
    }
    for (std::size_t r = 0; r < kRoutes; ++r) {
      const std::int64_t line = batch * shape.routes + route + static_cast<std::int64_t>(r);
      args.output[line * shape.rows + at] = products[i][r] / length;
    }
  }
}

template <bool kLengths, class Value, class T>
HWY_INLINE void ForwardAll(const RouterLogitsForward<Value, T>& args, std::int64_t begin,
                           std::int64_t end) {
  const std::int64_t routes = args.shape.routes;
  ForTiles(args.shape, begin, end, [&](std::int64_t batch, std::int64_t row, auto rows) HWY_ATTR {
    std::int64_t route = 0;
    const auto tiles = [&](auto count) HWY_ATTR {
      constexpr auto kCount = static_cast<std::int64_t>(count());
      for (; route + kCount <= routes; route += kCount) {
        ForwardTile<rows(), count(), kLengths>(args, batch, row, route);
      }
    };
    tiles(std::integral_constant<std::size_t, kTileRoutes>());
    if constexpr (kTileRoutes > 2) tiles(std::integral_constant<std::size_t, 2>());
    tiles(std::integral_constant<std::size_t, 1>());
  });
}

template <class Value, class T>
HWY_INLINE void Forward(const RouterLogitsForward<Value, T>& args, std::int64_t begin,
                        std::int64_t end) {
  if (args.lengths != nullptr) {
    ForwardAll<true>(args, begin, end);
  } else {
    ForwardAll<false>(args, begin, end);
  }
}

// ---- backward

/// weights[r][i] = g_ri / |x_i|, own[i] = -sum_r g_ri logit_ri / |x_i|^2
template <std::size_t kRows, class Value, class T>
HWY_INLINE void WeighTile(const RouterLogitsBackward<Value, T>& args, std::int64_t batch,
                          std::int64_t row, T* HWY_RESTRICT weights, T* HWY_RESTRICT own) {
  const auto& shape = args.shape;
  for (std::size_t i = 0; i < kRows; ++i) {
    const std::int64_t at = row + static_cast<std::int64_t>(i);
    const T length = args.lengths == nullptr ? T(1) : args.lengths[batch * shape.rows + at];
    T sum = 0;
    for (std::int64_t r = 0; r < shape.routes; ++r) {
      const std::int64_t index = (batch * shape.routes + r) * shape.rows + at;
      const T weight = args.grad[index] / length;
      weights[r * static_cast<std::int64_t>(kTileRows) + static_cast<std::int64_t>(i)] = weight;
      if (args.lengths != nullptr) sum += weight * args.output[index];
    }
    own[i] = length <= static_cast<T>(kLeastLength) ? T(0) : -sum / length;
  }
}

template <bool kOwn, class Value, class T>
HWY_INLINE void BackwardPart(const RouterLogitsBackward<Value, T>& args, std::int64_t begin,
                             std::int64_t end, T* sums, T* weights, T* own) {
  const auto& shape = args.shape;
  ForTiles(shape, begin, end, [&](std::int64_t batch, std::int64_t row, auto rows) HWY_ATTR {
    WeighTile<rows()>(args, batch, row, weights, own);
    Value* grad_x = args.grad_x;
    if (grad_x != nullptr) grad_x += (batch * shape.rows + row) * shape.dim;
    const TileGradient<Value, T> to = {weights, own,  shape.routes,
                                       grad_x,  sums, router_logits_row(shape.dim)};
    GradientOfRows<rows(), kOwn>(TileAt(args, batch, row), to);
  });
}

template <class Value, class T>
HWY_INLINE void Backward(const RouterLogitsBackward<Value, T>& args, std::int64_t begin,
                         std::int64_t end, std::byte* workspace) {
  const auto& shape = args.shape;
  Scratch scratch(workspace);
  T* weights = scratch.take<T>(static_cast<std::size_t>(shape.routes) * kTileRows);
  T* own = scratch.take<T>(kTileRows);
  const std::int64_t rows = shape.group_rows();
  const std::int64_t part_rows = (rows + shape.parts - 1) / shape.parts;
  const std::int64_t part_size = shape.routes * router_logits_row(shape.dim);
  for (std::int64_t index = begin; index < end; ++index) {
    const std::int64_t first = std::min(rows, index % shape.parts * part_rows);
    const std::int64_t last = std::min(rows, first + part_rows);
    const std::int64_t before = index / shape.parts * rows;
    T* sums = args.grad_tokens == nullptr ? nullptr : args.grad_tokens + index * part_size;
    if (sums != nullptr) std::fill_n(sums, part_size, T(0));
    if (args.lengths != nullptr && args.grad_x != nullptr) {
      BackwardPart<true>(args, before + first, before + last, sums, weights, own);
    } else {
      BackwardPart<false>(args, before + first, before + last, sums, weights, own);
    }
  }
}

#define WEIR_INSTANTIATE(Name, Value, T)                                              \
  void Forward##Name(const RouterLogitsForward<Value, T>& args, std::int64_t begin,   \
                     std::int64_t end) {                                              \
    Forward(args, begin, end);                                                        \
  }                                                                                   \
  void Backward##Name(const RouterLogitsBackward<Value, T>& args, std::int64_t begin, \
                      std::int64_t end, std::byte* workspace) {                       \
    Backward(args, begin, end, workspace);                                            \
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

std::int64_t router_logits_row(std::int64_t dim) {
  constexpr auto kLanes = static_cast<std::int64_t>(kMostLanes);
  return (dim + kLanes - 1) / kLanes * kLanes;
}

std::size_t router_logits_workspace_bytes(const RouterLogitsShape& shape) {
  constexpr std::size_t kRows = 4;  // of a tile
  return Scratch::bytes<double>(static_cast<std::size_t>(shape.routes) * kRows) +
         Scratch::bytes<double>(kRows);
}

#define WEIR_DISPATCH(Name, Value, T)                                                         \
  HWY_EXPORT(Forward##Name);                                                                  \
  HWY_EXPORT(Backward##Name);                                                                 \
  void router_logits_forward(const RouterLogitsForward<Value, T>& args, std::int64_t begin,   \
                             std::int64_t end) {                                              \
    const FlushDenormals guard;                                                               \
    HWY_DYNAMIC_DISPATCH(Forward##Name)(args, begin, end);                                    \
  }                                                                                           \
  void router_logits_backward(const RouterLogitsBackward<Value, T>& args, std::int64_t begin, \
                              std::int64_t end, std::byte* workspace) {                       \
    const FlushDenormals guard;                                                               \
    HWY_DYNAMIC_DISPATCH(Backward##Name)(args, begin, end, workspace);                        \
  }
WEIR_DISPATCH(Float, float, float)
WEIR_DISPATCH(Double, double, double)
WEIR_DISPATCH(BFloat16, BFloat16, float)
WEIR_DISPATCH(Float16, Float16, float)
#undef WEIR_DISPATCH

}  // namespace weir::kernels
#endif  // HWY_ONCE
