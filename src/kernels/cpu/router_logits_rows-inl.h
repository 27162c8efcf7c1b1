// SPDX-License-Identifier: Apache-2.0
// Tiles of router_logits: a few rows of x in step, so that routing tokens are loaded once for all
// of them. A row's sums do not depend on which tile it is in.
#if defined(WEIR_KERNELS_CPU_ROUTER_LOGITS_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef WEIR_KERNELS_CPU_ROUTER_LOGITS_ROWS_INL_H_
#undef WEIR_KERNELS_CPU_ROUTER_LOGITS_ROWS_INL_H_
#else
#define WEIR_KERNELS_CPU_ROUTER_LOGITS_ROWS_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/vector_access-inl.h"

HWY_BEFORE_NAMESPACE();
namespace weir::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr std::size_t kTileRows = 4, kTileRoutes = HWY_TARGET <= HWY_AVX3 ? 4 : 2;

/// Rows of x, `stride` apart, and routing tokens, `dim` apart.
template <class Value, class T>
struct RowTile {
  const Value* x;
  std::int64_t stride;
  const T* tokens;
  std::int64_t dim;
};

// ---- forward

template <std::size_t kRows, std::size_t kRoutes, class D>
struct TileSums {
  hn::Vec<D> product[kRows][kRoutes], square[kRows];
};

template <std::size_t kRows, std::size_t kRoutes, bool kLengths, class D, class Value, class T,
          class Access>
HWY_INLINE void AddColumn(D d, const RowTile<Value, T>& tile, std::int64_t column,
                          const Access& access, TileSums<kRows, kRoutes, D>& sums) {
  hn::Vec<D> token[kRoutes];
#pragma GCC unroll 4
  for (std::size_t r = 0; r < kRoutes; ++r) {
    token[r] = access.Load(d, tile.tokens + static_cast<std::int64_t>(r) * tile.dim + column);
  }
#pragma GCC unroll 4
  for (std::size_t i = 0; i < kRows; ++i) {
    const auto v = access.Load(d, tile.x + static_cast<std::int64_t>(i) * tile.stride + column);
#pragma GCC unroll 4
    for (std::size_t r = 0; r < kRoutes; ++r) {
      sums.product[i][r] = hn::MulAdd(token[r], v, sums.product[i][r]);
    }
    if constexpr (kLengths) sums.square[i] = hn::MulAdd(v, v, sums.square[i]);
  }
}

/// products[i][r] = <t_r, x_i>, squares[i] = <x_i, x_i>
template <std::size_t kRows, std::size_t kRoutes, bool kLengths, class Value, class T>
HWY_INLINE void MultiplyRows(const RowTile<Value, T>& tile, T (*HWY_RESTRICT products)[kTileRoutes],
                             T* HWY_RESTRICT squares) {
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  TileSums<kRows, kRoutes, hn::ScalableTag<T>> sums;
#pragma GCC unroll 4
  for (std::size_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (std::size_t r = 0; r < kRoutes; ++r) sums.product[i][r] = hn::Zero(d);
    sums.square[i] = hn::Zero(d);
  }
  std::int64_t column = 0;
  for (; column + lanes <= tile.dim; column += lanes) {
    AddColumn<kRows, kRoutes, kLengths>(d, tile, column, WholeVectors(), sums);
  }
  if (column < tile.dim) {
    const TailVector tail = {static_cast<std::size_t>(tile.dim - column)};
    AddColumn<kRows, kRoutes, kLengths>(d, tile, column, tail, sums);
  }
#pragma GCC unroll 4
  for (std::size_t i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (std::size_t r = 0; r < kRoutes; ++r) {
      products[i][r] = hn::GetLane(hn::SumOfLanes(d, sums.product[i][r]));
    }
    if constexpr (kLengths) squares[i] = hn::GetLane(hn::SumOfLanes(d, sums.square[i]));
  }
}

// ---- backward

/// What a tile adds to the gradients. `weights` are [routes][kTileRows]: the gradient of a logit,
/// over the length of its token; `own` is the factor of x_i in its own gradient.
template <class Value, class T>
struct TileGradient {
  const T* weights;
  const T* own;
  std::int64_t routes;
  Value* x;   // rows `dim` apart, or null
  T* tokens;  // rows `token_stride` apart, or null
  std::int64_t token_stride;
};

template <std::size_t kRows, bool kOwn, class D, class Value, class T, class Access>
HWY_INLINE void GradientOfColumn(D d, const RowTile<Value, T>& tile,
                                 const TileGradient<Value, T>& to, std::int64_t column,
                                 const Access& access) {
  hn::Vec<D> row[kRows], grad[kRows];
  const bool reads = kOwn || to.tokens != nullptr;
#pragma GCC unroll 4
  for (std::size_t i = 0; i < kRows; ++i) {
    const auto offset = static_cast<std::int64_t>(i) * tile.stride + column;
    row[i] = reads ? access.Load(d, tile.x + offset) : hn::Zero(d);
    grad[i] = kOwn ? hn::Mul(hn::Set(d, to.own[i]), row[i]) : hn::Zero(d);
  }
  for (std::int64_t r = 0; r < to.routes; ++r) {
    const T* weights = to.weights + r * static_cast<std::int64_t>(kTileRows);
    if (to.tokens != nullptr) {
      T* sum = to.tokens + r * to.token_stride + column;
      auto total = hn::LoadU(d, sum);
#pragma GCC unroll 4
      for (std::size_t i = 0; i < kRows; ++i) {
        total = hn::MulAdd(hn::Set(d, weights[i]), row[i], total);
      }
      hn::StoreU(total, d, sum);
    }
    if (to.x != nullptr) {
      const auto token = access.Load(d, tile.tokens + r * tile.dim + column);
#pragma GCC unroll 4
      for (std::size_t i = 0; i < kRows; ++i) {
        grad[i] = hn::MulAdd(hn::Set(d, weights[i]), token, grad[i]);
      }
    }
  }
  if (to.x == nullptr) return;
#pragma GCC unroll 4
  for (std::size_t i = 0; i < kRows; ++i) {
    access.Store(d, grad[i], to.x + static_cast<std::int64_t>(i) * tile.dim + column);
  }
}

template <std::size_t kRows, bool kOwn, class Value, class T>
HWY_INLINE void GradientOfRows(const RowTile<Value, T>& tile, const TileGradient<Value, T>& to) {
  const hn::ScalableTag<T> d;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(d));
  std::int64_t column = 0;
  for (; column + lanes <= tile.dim; column += lanes) {
    GradientOfColumn<kRows, kOwn>(d, tile, to, column, WholeVectors());
  }
  if (column < tile.dim) {
    const TailVector tail = {static_cast<std::size_t>(tile.dim - column)};
    GradientOfColumn<kRows, kOwn>(d, tile, to, column, tail);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace weir::kernels
HWY_AFTER_NAMESPACE();

#endif  // WEIR_KERNELS_CPU_ROUTER_LOGITS_ROWS_INL_H_
