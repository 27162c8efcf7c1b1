// SPDX-License-Identifier: Apache-2.0
// Blocks are views of the similarities; only a tail makes them be padded, and never the tokens.
#include "nn/route_blocks.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <limits>

namespace weir::nn {

RouteBlocks::RouteBlocks(std::int64_t n_, std::optional<std::int64_t> block_size,
                         std::int64_t largest, const at::Tensor& per_entry)
    : n(n_), size(std::min(n, block_size.value_or(n))), count((n + size - 1) / size) {
  // Who gives all gives whole blocks: equal shares would be less where the last block is short.
  take = largest >= n ? size : (largest + count - 1) / count;
  if (!per_entry.defined()) return;
  const at::Tensor share = (per_entry + (count - 1)).div(count, "floor");
  is_all = (per_entry >= n).view({-1, 1, 1});
  take_of = at::where(is_all, size, share.view({-1, 1, 1}));
}

at::Tensor RouteBlocks::cut(const at::Tensor& similarities) const {
  const std::int64_t padding = count * size - n;
  if (padding == 0) return similarities.unflatten(2, {count, size});
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  return at::constant_pad_nd(similarities, {0, padding}, -kInfinity).unflatten(2, {count, size});
}

at::Tensor RouteBlocks::budget(double ratio, const at::Tensor& scores) const {
  const auto most = static_cast<double>(size);
  if (!take_of.defined()) {
    return at::scalar_tensor(std::min(static_cast<double>(take) * ratio, most),
                             scores.options().dtype(at::kDouble));
  }
  // Entries that give nothing need a budget all the same.
  return (take_of.to(at::kDouble) * ratio).clamp(1e-20, most);
}

at::Tensor RouteBlocks::with_ones(const at::Tensor& scores) const {
  return is_all.defined() ? scores.masked_fill(is_all.unsqueeze(-1), 1) : scores;
}

at::Tensor RouteBlocks::places(const at::Tensor& index) const {
  at::Tensor result = index + at::arange(count, index.options()).unsqueeze(1) * size;
  if (take_of.defined()) {
    const at::Tensor surplus = at::arange(take, index.options()) >= take_of.unsqueeze(-1);
    result = result.masked_fill(surplus, n);
  }
  return result.flatten(2);
}

}  // namespace weir::nn
