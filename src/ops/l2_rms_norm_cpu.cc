// SPDX-License-Identifier: Apache-2.0
// l2_rms_norm on the CPU: tensors to pointers, rows over threads. The work is in
// kernels/cpu/l2_rms_norm.cc.
#include "kernels/l2_rms_norm.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "ops/kernel_value.h"
#include "ops/l2_rms_norm.h"
#include "ops/parallel.h"

namespace weir::ops {
namespace {

using Pair = std::tuple<at::Tensor, at::Tensor>;

// As in router_logits: sizes alone decide what adds up with what.
constexpr std::int64_t kPartRows = 512, kMostParts = 64;

std::int64_t rows_of(const at::Tensor& x) { return x.size(-1) == 0 ? 0 : x.numel() / x.size(-1); }

Pair forward_cpu(const at::Tensor& x_, const at::Tensor& gamma_) {
  const auto compute = l2_rms_norm_compute(x_, gamma_);
  TORCH_INTERNAL_ASSERT(gamma_.scalar_type() == compute);
  const at::Tensor x = x_.contiguous(), gamma = gamma_.contiguous();
  const at::Tensor output = at::empty(x.sizes(), x.options());
  const at::Tensor lengths = at::empty(x.sizes().slice(0, static_cast<std::size_t>(x.dim() - 1)),
                                       x.options().dtype(compute));
  if (x.size(-1) == 0) lengths.fill_(1e-12);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "weir::l2_rms_norm", [&] {
        using T = Compute<scalar_t>;
        const kernels::L2RmsNormForward<Value<scalar_t>, T> args = {
            .dim = x.size(-1),
            .x = const_values_of<scalar_t>(x),
            .gamma = gamma.const_data_ptr<T>(),
            .output = values_of<scalar_t>(output),
            .lengths = lengths.mutable_data_ptr<T>()};
        parallel_rows(rows_of(x), x.size(-1) / 4, [&](std::int64_t begin, std::int64_t end) {
          kernels::l2_rms_norm_forward(args, begin, end);
        });
      });
  return {output, lengths};
}

Pair backward_cpu(const at::Tensor& grad_, const at::Tensor& x_, const at::Tensor& gamma_,
                  const at::Tensor& lengths_) {
  const auto compute = l2_rms_norm_compute(x_, gamma_);
  TORCH_INTERNAL_ASSERT(gamma_.scalar_type() == compute && grad_.sizes() == x_.sizes());
  const at::Tensor grad = grad_.contiguous(), x = x_.contiguous(), gamma = gamma_.contiguous(),
                   lengths = lengths_.contiguous();
  const std::int64_t rows = rows_of(x), dim = x.size(-1);
  const std::int64_t parts =
      std::clamp<std::int64_t>((rows + kPartRows - 1) / kPartRows, 1, kMostParts);
  const at::Tensor of_x = at::empty(x.sizes(), x.options());
  const at::Tensor sums = at::empty({parts, kernels::l2_rms_norm_row(dim)}, gamma.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, x.scalar_type(), "weir::l2_rms_norm", [&] {
        using T = Compute<scalar_t>;
        const kernels::L2RmsNormBackward<Value<scalar_t>, T> args = {
            .rows = rows,
            .dim = dim,
            .parts = parts,
            .grad = const_values_of<scalar_t>(grad),
            .x = const_values_of<scalar_t>(x),
            .gamma = gamma.const_data_ptr<T>(),
            .lengths = lengths.const_data_ptr<T>(),
            .grad_x = values_of<scalar_t>(of_x),
            .grad_gamma = sums.mutable_data_ptr<T>()};
        parallel_rows(parts, rows / parts * dim / 2, [&](std::int64_t begin, std::int64_t end) {
          kernels::l2_rms_norm_backward(args, begin, end);
        });
      });
  return {of_x, sums.sum(0).narrow(0, 0, dim).contiguous()};
}

TORCH_LIBRARY_IMPL(weir, CPU, m) {
  m.impl("_l2_rms_norm", forward_cpu);
  m.impl("_l2_rms_norm_backward", backward_cpu);
}

}  // namespace
}  // namespace weir::ops
