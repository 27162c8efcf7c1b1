// SPDX-License-Identifier: Apache-2.0
#include "ops/checks.h"

namespace weir::ops {

bool broadcasts_to(c10::SymIntArrayRef shape, c10::SymIntArrayRef target) {
  if (shape.size() > target.size()) return false;
  for (std::size_t i = 1; i <= shape.size(); ++i) {
    const c10::SymInt& size = shape[shape.size() - i];
    if (size != 1 && size != target[target.size() - i]) return false;
  }
  return true;
}

void check_scores(const char* op, const at::Tensor& scores) {
  TORCH_CHECK_VALUE(
      scores.dim() >= 1, "weir::", op,
      ": expected `scores` to have at least 1 dimension, but got a 0-dimensional tensor.");
  TORCH_CHECK_TYPE(scores.is_floating_point(), "weir::", op,
                   ": expected `scores` to be floating point, but got ", scores.scalar_type(), ".");
}

void check_mask(const char* op, const at::Tensor& scores, const std::optional<at::Tensor>& mask) {
  if (!mask) return;
  TORCH_CHECK_TYPE(mask->scalar_type() == at::kBool, "weir::", op,
                   ": expected `mask` to be bool (true = keep), but got ", mask->scalar_type(),
                   ".");
  TORCH_CHECK_VALUE(broadcasts_to(mask->sym_sizes(), scores.sym_sizes()), "weir::", op,
                    ": expected `mask` to broadcast to ", scores.sym_sizes(),
                    " like `scores`, but got ", mask->sym_sizes(), ".");
  TORCH_CHECK_VALUE(mask->device() == scores.device(), "weir::", op,
                    ": expected `mask` on the device of `scores`, ", scores.device(), ", but got ",
                    mask->device(), ".");
}

}  // namespace weir::ops
