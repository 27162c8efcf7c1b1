// SPDX-License-Identifier: Apache-2.0
// Routing from blocks: how a row of n similarities is cut, and how many tokens each block gives.
// Without a block size the row is one block. All shapes are (batch, routes, blocks, ...).
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace weir::nn {

struct RouteBlocks {
  /// A row gives `largest` tokens, rounded up to equal shares of the blocks. `per_entry`, undefined
  /// or int64 (batch), are numbers up to `largest`: entries that give fewer.
  RouteBlocks(std::int64_t n, std::optional<std::int64_t> block_size, std::int64_t largest,
              const at::Tensor& per_entry);

  /// Whether `places` may say n or more.
  bool has_fillers() const { return take_of.defined() || count * size > n; }

  /// (batch, routes, n) -> (batch, routes, count, size); -inf behind the end of the last block.
  at::Tensor cut(const at::Tensor& similarities) const;

  /// `ratio` times what a block gives, at most its size: a number, or (batch, 1, 1). On the device
  /// of `scores`.
  at::Tensor budget(double ratio, const at::Tensor& scores) const;

  /// `scores` (batch, routes, count, size) with 1 in entries that give all their tokens, which is
  /// what they would have without others.
  at::Tensor with_ones(const at::Tensor& scores) const;

  /// Indices in the row (batch, routes, count * take) of those in a block (batch, routes, count,
  /// take); n or more for fillers.
  at::Tensor places(const at::Tensor& index) const;

  std::int64_t n, size, count;
  std::int64_t take;   ///< of each block, at most
  at::Tensor take_of;  ///< int64 (batch, 1, 1); undefined: all entries give `take`
  at::Tensor is_all;   ///< bool (batch, 1, 1): n tokens or more; undefined as `take_of`
};

}  // namespace weir::nn
