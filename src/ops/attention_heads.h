// SPDX-License-Identifier: Apache-2.0
// Grouped heads for composites: query head h reads key head h / (heads / kv_heads).
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

namespace weir::ops {

/// (batch, kv_heads, m, features) -> (batch, heads, m, features)
inline at::Tensor repeat_heads(const c10::SymInt& heads, const at::Tensor& x) {
  const c10::SymInt kv_heads = x.sym_size(1);
  if (heads == kv_heads) return x;
  return x.unsqueeze(2)
      .expand_symint({x.sym_size(0), kv_heads, heads / kv_heads, x.sym_size(2), x.sym_size(3)})
      .flatten(1, 2);
}

/// The transpose of `repeat_heads`.
inline at::Tensor sum_heads(const c10::SymInt& kv_heads, const at::Tensor& x) {
  const c10::SymInt heads = x.sym_size(1);
  if (heads == kv_heads) return x;
  return x.view_symint({x.sym_size(0), kv_heads, heads / kv_heads, x.sym_size(2), x.sym_size(3)})
      .sum(2);
}

}  // namespace weir::ops
