// SPDX-License-Identifier: Apache-2.0
// Products of every token with a few routing tokens, and the lengths of the tokens, in one pass.
// docs/operators/router_logits.md has the formulas. Rows of all batch entries are numbered through;
// the caller owns every byte and calls forward or backward over ranges split in any way.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/half.h"

namespace weir::kernels {

/// Lengths count as this at least; there they have no gradient.
constexpr double kLeastLength = 1e-12;

struct RouterLogitsShape {
  std::int64_t batch = 0, rows = 0, routes = 0, dim = 0;
  std::int64_t groups = 1;                        // sets of routing tokens: 1 or batch
  std::int64_t parts = 1;                         // of the rows of a group, for their gradient
  std::int64_t batch_stride = 0, row_stride = 0;  // of x

  std::int64_t group_rows() const { return batch / groups * rows; }
};

/// Compute type T: float, or double for double.
template <class Value, class T>
struct RouterLogitsForward {
  RouterLogitsShape shape;
  const Value* x = nullptr;
  const T* tokens = nullptr;  // [groups, routes, dim]
  T* output = nullptr;        // [batch, routes, rows]
  T* lengths = nullptr;       // [batch, rows], or null: not divided by
};

template <class Value, class T>
struct RouterLogitsBackward {
  RouterLogitsShape shape;
  const Value* x = nullptr;
  const T* tokens = nullptr;
  const T* grad = nullptr;     // [batch, routes, rows]
  const T* output = nullptr;   // the same; read with lengths
  const T* lengths = nullptr;  // [batch, rows], or null
  Value* grad_x = nullptr;     // [batch, rows, dim], or null: not wanted
  T* grad_tokens = nullptr;    // [groups, parts, routes, router_logits_row(dim)], or null
};

/// Entries of a row of grad_tokens: dim, up to whole vectors.
std::int64_t router_logits_row(std::int64_t dim);

/// Scratch of one call of backward.
std::size_t router_logits_workspace_bytes(const RouterLogitsShape& shape);

/// Ranges of batch * rows.
void router_logits_forward(const RouterLogitsForward<float, float>& args, std::int64_t begin,
                           std::int64_t end);
void router_logits_forward(const RouterLogitsForward<double, double>& args, std::int64_t begin,
                           std::int64_t end);
void router_logits_forward(const RouterLogitsForward<BFloat16, float>& args, std::int64_t begin,
                           std::int64_t end);
void router_logits_forward(const RouterLogitsForward<Float16, float>& args, std::int64_t begin,
                           std::int64_t end);

/// Ranges of groups * parts.
void router_logits_backward(const RouterLogitsBackward<float, float>& args, std::int64_t begin,
                            std::int64_t end, std::byte* workspace);
void router_logits_backward(const RouterLogitsBackward<double, double>& args, std::int64_t begin,
                            std::int64_t end, std::byte* workspace);
void router_logits_backward(const RouterLogitsBackward<BFloat16, float>& args, std::int64_t begin,
                            std::int64_t end, std::byte* workspace);
void router_logits_backward(const RouterLogitsBackward<Float16, float>& args, std::int64_t begin,
                            std::int64_t end, std::byte* workspace);

}  // namespace weir::kernels
