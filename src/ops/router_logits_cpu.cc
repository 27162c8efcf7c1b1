// SPDX-License-Identifier: Apache-2.0
// router_logits on the CPU: tensors to pointers, rows over threads. The work is in
// kernels/cpu/router_logits.cc.
#include "kernels/router_logits.h"

#include <ATen/Dispatch.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "ops/kernel_attention.h"
#include "ops/kernel_value.h"
#include "ops/parallel.h"
#include "ops/router_logits.h"

namespace weir::ops {
namespace {

using Pair = std::tuple<at::Tensor, at::Tensor>;

// Rows of one part of the routing tokens' gradient, and most parts of a group: sizes alone decide,
// so that sums do not depend on threads.
constexpr std::int64_t kPartRows = 512, kMostParts = 64;

struct Operands {
  at::Tensor x;       // contiguous last dimension
  at::Tensor tokens;  // contiguous
  kernels::RouterLogitsShape shape;

  Operands(const at::Tensor& x_, const at::Tensor& tokens_)
      : x(with_contiguous_features(x_)), tokens(tokens_.contiguous()) {
    shape = {.batch = x.size(0),
             .rows = x.size(1),
             .routes = tokens.size(-2),
             .dim = x.size(2),
             .groups = tokens.dim() == 2 ? 1 : x.size(0),
             .batch_stride = x.stride(0),
             .row_stride = x.stride(1)};
    if (shape.groups > 0) {
      shape.parts =
          std::clamp<std::int64_t>((shape.group_rows() + kPartRows - 1) / kPartRows, 1, kMostParts);
    }
  }
  /// Of one row, as a multiply-add of a vector.
  std::int64_t row_cost() const { return shape.dim * (shape.routes + 1) / 16; }
};

Pair forward_cpu(const at::Tensor& x, const at::Tensor& tokens, bool cosine) {
  const auto problem = router_logits_problem(x, tokens);
  TORCH_INTERNAL_ASSERT(tokens.scalar_type() == problem.compute);
  const Operands in(x, tokens);
  const auto options = x.options().dtype(problem.compute);
  const at::Tensor output = at::empty_symint(problem.output_shape(), options);
  const at::Tensor lengths = at::empty_symint(problem.lengths_shape(cosine), options);
  // The kernel takes lengths along with products, and there are none.
  if (cosine && in.shape.routes == 0) {
    lengths.copy_(x.to(problem.compute).norm(2, -1).clamp_min(kernels::kLeastLength));
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "weir::router_logits", [&] {
        using T = Compute<scalar_t>;
        const kernels::RouterLogitsForward<Value<scalar_t>, T> args = {
            .shape = in.shape,
            .x = const_values_of<scalar_t>(in.x),
            .tokens = in.tokens.const_data_ptr<T>(),
            .output = output.mutable_data_ptr<T>(),
            .lengths = cosine ? lengths.mutable_data_ptr<T>() : nullptr};
        parallel_rows(in.shape.batch * in.shape.rows, in.row_cost(),
                      [&](std::int64_t begin, std::int64_t end) {
                        kernels::router_logits_forward(args, begin, end);
                      });
      });
  return {output, lengths};
}

Pair backward_cpu(const at::Tensor& grad, const at::Tensor& x, const at::Tensor& tokens,
                  const at::Tensor& output, const at::Tensor& lengths, bool cosine, bool wants_x,
                  bool wants_tokens) {
  const auto problem = router_logits_problem(x, tokens);
  TORCH_INTERNAL_ASSERT(tokens.scalar_type() == problem.compute);
  const Operands in(x, tokens);
  const auto& shape = in.shape;
  const at::Tensor upstream = grad.contiguous(), logits = output.contiguous(),
                   divisors = lengths.contiguous();
  const at::Tensor of_x = wants_x ? at::empty(x.sizes(), x.options()) : at::empty({0}, x.options());
  const std::int64_t row = kernels::router_logits_row(shape.dim);
  const at::Tensor sums = at::empty(
      {shape.groups, shape.parts, shape.routes, wants_tokens ? row : 0}, tokens.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "weir::router_logits", [&] {
        using T = Compute<scalar_t>;
        const kernels::RouterLogitsBackward<Value<scalar_t>, T> args = {
            .shape = shape,
            .x = const_values_of<scalar_t>(in.x),
            .tokens = in.tokens.const_data_ptr<T>(),
            .grad = upstream.const_data_ptr<T>(),
            .output = logits.const_data_ptr<T>(),
            .lengths = cosine ? divisors.const_data_ptr<T>() : nullptr,
            .grad_x = wants_x ? values_of<scalar_t>(of_x) : nullptr,
            .grad_tokens = wants_tokens ? sums.mutable_data_ptr<T>() : nullptr};
        const std::int64_t tasks = shape.groups * shape.parts;
        const std::int64_t rows = shape.groups > 0 ? shape.group_rows() / shape.parts : 0;
        parallel_rows(tasks, rows * in.row_cost(), kernels::router_logits_workspace_bytes(shape),
                      [&](std::int64_t begin, std::int64_t end, std::byte* workspace) {
                        kernels::router_logits_backward(args, begin, end, workspace);
                      });
      });
  if (!wants_tokens) return {of_x, at::empty({0}, tokens.options())};
  const at::Tensor of_tokens = at::empty(tokens.sizes(), tokens.options());
  of_tokens.copy_(sums.sum(1).narrow(-1, 0, shape.dim).view_as(of_tokens));
  return {of_x, of_tokens};
}

TORCH_LIBRARY_IMPL(weir, CPU, m) {
  m.impl("_router_logits", forward_cpu);
  m.impl("_router_logits_backward", backward_cpu);
}

}  // namespace
}  // namespace weir::ops
