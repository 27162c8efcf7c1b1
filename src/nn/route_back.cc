// SPDX-License-Identifier: Apache-2.0
// Scatter by assignment. The one copy of `src` that an answer of its own needs gets a spare row at
// its end, which takes what is dropped: no shape depends on how much that is.
#include "weir/nn/route_back.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/where.h>
#include <c10/util/Exception.h>
#include <c10/util/accumulate.h>

#include <cstdint>
#include <vector>

namespace weir::nn {
namespace {

void check(const at::Tensor& src, const at::Tensor& tokens, const at::Tensor& indices,
           const std::optional<at::Tensor>& mask) {
  TORCH_CHECK_VALUE(src.dim() >= 2, "weir::route_back: expected `src` to have shape ",
                    "[..., n, dim], but got ", src.sizes(), ".");
  TORCH_CHECK_TYPE(indices.scalar_type() == at::kLong,
                   "weir::route_back: expected `indices` to be int64, but got ",
                   indices.scalar_type(), ".");
  const auto leading = src.sizes().slice(0, src.dim() - 2);
  TORCH_CHECK_VALUE(
      indices.dim() == src.dim() - 1 && indices.sizes().slice(0, indices.dim() - 1) == leading,
      "weir::route_back: expected `indices` to have the leading sizes ", leading,
      " of `src` and one more, but got ", indices.sizes(), ".");
  std::vector<std::int64_t> shape = indices.sizes().vec();
  shape.push_back(src.size(-1));
  TORCH_CHECK_VALUE(tokens.sizes() == shape, "weir::route_back: expected `tokens` to have shape ",
                    at::IntArrayRef(shape), ", a row of `src` per index, but got ", tokens.sizes(),
                    ".");
  if (!mask) return;
  TORCH_CHECK_TYPE(mask->scalar_type() == at::kBool,
                   "weir::route_back: expected `mask` to be bool (true = keep), but got ",
                   mask->scalar_type(), ".");
  TORCH_CHECK_VALUE(mask->sizes() == indices.sizes(),
                    "weir::route_back: expected `mask` to have shape ", indices.sizes(),
                    " like `indices`, but got ", mask->sizes(), ".");
}

}  // namespace

at::Tensor route_back(const at::Tensor& src, const at::Tensor& tokens, const at::Tensor& indices,
                      const std::optional<at::Tensor>& mask) {
  check(src, tokens, indices, mask);
  const std::int64_t n = src.size(-2), dim = src.size(-1), k = indices.size(-1);
  const std::int64_t groups = c10::multiply_integers(src.sizes().slice(0, src.dim() - 2));
  const std::int64_t spare = groups * n;
  const at::Tensor places = indices.reshape({groups, k});
  const at::Tensor first = at::arange(groups, places.options()).unsqueeze(1) * n;  // (groups, 1)
  at::Tensor kept = (places >= 0) & (places < n);
  if (mask) kept = kept & mask->reshape({groups, k});
  const at::Tensor rows = at::where(kept, places + first, spare).flatten();

  const at::Tensor room = at::cat({src.reshape({spare, dim}), src.new_zeros({1, dim})});
  return room.index_copy_(0, rows, tokens.reshape({groups * k, dim}).to(src.scalar_type()))
      .narrow(0, 0, spare)
      .view(src.sizes());
}

}  // namespace weir::nn
