// SPDX-License-Identifier: Apache-2.0
// coordinate_descent on the CPU: tensors to pointers, rows over threads. The work is in
// kernels/cpu/coordinate_descent.cc.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "kernels/coordinate_descent.h"
#include "ops/coordinate_descent.h"
#include "ops/kernel_value.h"
#include "ops/parallel.h"

namespace weir::ops {
namespace {

/// The operands as the kernel wants them, kept alive while it runs.
struct Operands {
  CoordinateDescentProblem problem;
  at::Tensor scores;                       // contiguous
  at::Tensor budget;                       // double, one value or one per row
  at::Tensor mask;                         // undefined, or bool with contiguous rows
  std::vector<std::int64_t> mask_offsets;  // where the mask of each row starts
  std::int64_t rows = 0, cols = 0;

  std::int64_t n_iters() const {
    return problem.solver == Solver::kExact ? 0 : problem.trace_size();
  }
  /// Passes over a row, as a measure of its work; the exact solver does with about six.
  std::int64_t row_cost() const { return cols * (n_iters() == 0 ? 6 : n_iters()); }
};

/// Offsets of all rows of `mask` expanded to `sizes`, without expanding it in memory.
std::vector<std::int64_t> row_offsets(const at::Tensor& mask, at::IntArrayRef sizes,
                                      std::int64_t rows) {
  const at::Tensor expanded = mask.expand(sizes);
  const std::int64_t leading = expanded.dim() - 1;
  std::vector<std::int64_t> offsets(static_cast<std::size_t>(rows)),
      index(static_cast<std::size_t>(leading));
  std::int64_t offset = 0;
  for (std::int64_t& row : offsets) {
    row = offset;
    for (std::int64_t d = leading - 1; d >= 0; --d) {  // odometer over the leading dimensions
      offset += expanded.stride(d);
      if (++index[static_cast<std::size_t>(d)] < sizes[static_cast<std::size_t>(d)]) break;
      offset -= expanded.stride(d) * sizes[static_cast<std::size_t>(d)];
      index[static_cast<std::size_t>(d)] = 0;
    }
  }
  return offsets;
}

at::Tensor with_contiguous_rows(at::Tensor mask, std::int64_t cols) {
  if (mask.dim() == 0) mask = mask.reshape({1});
  if (mask.size(-1) != cols) {
    std::vector<std::int64_t> sizes = mask.sizes().vec();
    sizes.back() = cols;
    mask = mask.expand(sizes);
  }
  return mask.stride(-1) == 1 ? mask : mask.contiguous();
}

Operands prepare(const at::Tensor& scores, const at::Tensor& budget,
                 const std::optional<at::Tensor>& mask, std::int64_t n_iters, double eps,
                 std::optional<double> eps_init, double eps_decay, std::string_view solver) {
  Operands operands;
  operands.problem =
      coordinate_descent_problem(scores, budget, mask, n_iters, eps, eps_init, eps_decay, solver);
  operands.cols = scores.size(-1);
  operands.rows = operands.cols == 0 ? 0 : scores.numel() / operands.cols;
  operands.scores = scores.contiguous();
  const at::Tensor wide = budget.to(at::kDouble);
  const auto row_shape = scores.sizes().slice(0, static_cast<std::size_t>(scores.dim() - 1));
  operands.budget = wide.numel() == 1 ? wide.contiguous() : wide.expand(row_shape).contiguous();
  if (mask && operands.rows > 0) {
    operands.mask = with_contiguous_rows(*mask, operands.cols);
    operands.mask_offsets = row_offsets(operands.mask, scores.sizes(), operands.rows);
  }
  return operands;
}

template <class Scalar>
kernels::CoordinateDescentRows<Value<Scalar>> kernel_rows(const Operands& operands) {
  return {
      .cols = operands.cols,
      .scores = reinterpret_cast<const Value<Scalar>*>(operands.scores.const_data_ptr<Scalar>()),
      .budget = operands.budget.const_data_ptr<double>(),
      .budget_stride = operands.budget.numel() == 1 ? 0 : 1,
      .mask = operands.mask.defined()
                  ? reinterpret_cast<const std::uint8_t*>(operands.mask.const_data_ptr<bool>())
                  : nullptr,
      .mask_offsets = operands.mask_offsets.data(),
      .eps = operands.problem.eps.data(),
      .n_iters = operands.n_iters()};
}

template <class Body>
void over_rows(const Operands& operands, const Body& body) {
  const std::size_t bytes =
      kernels::coordinate_descent_workspace_bytes(operands.cols, operands.n_iters());
  parallel_rows(operands.rows, operands.row_cost(), bytes, body);
}

std::tuple<at::Tensor, at::Tensor> forward_cpu(const at::Tensor& scores, const at::Tensor& budget,
                                               const std::optional<at::Tensor>& mask,
                                               std::int64_t n_iters, double eps,
                                               std::optional<double> eps_init, double eps_decay,
                                               std::string_view solver) {
  const Operands operands =
      prepare(scores, budget, mask, n_iters, eps, eps_init, eps_decay, solver);
  at::Tensor output = at::empty(scores.sizes(), scores.options());
  at::Tensor trace =
      at::empty_symint(operands.problem.trace_shape(), scores.options().dtype(at::kDouble));
  if (operands.rows == 0) return {output, trace.zero_()};
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, scores.scalar_type(), "weir::coordinate_descent", [&] {
        const kernels::CoordinateDescentForward<Value<scalar_t>> args = {
            .in = kernel_rows<scalar_t>(operands),
            .output = reinterpret_cast<Value<scalar_t>*>(output.mutable_data_ptr<scalar_t>()),
            .trace = trace.mutable_data_ptr<double>()};
        over_rows(operands, [&](std::int64_t begin, std::int64_t end, std::byte* workspace) {
          kernels::coordinate_descent_forward(args, begin, end, workspace);
        });
      });
  return {output, trace};
}

std::tuple<at::Tensor, at::Tensor> backward_cpu(const at::Tensor& grad, const at::Tensor& scores,
                                                const at::Tensor& budget,
                                                const std::optional<at::Tensor>& mask,
                                                const at::Tensor& trace, std::int64_t n_iters,
                                                double eps, std::optional<double> eps_init,
                                                double eps_decay, std::string_view solver) {
  const Operands operands =
      prepare(scores, budget, mask, n_iters, eps, eps_init, eps_decay, solver);
  TORCH_INTERNAL_ASSERT(grad.sizes() == scores.sizes() &&
                        grad.scalar_type() == scores.scalar_type());
  const at::Tensor upstream = grad.contiguous(), saved = trace.contiguous();
  at::Tensor grad_scores = at::empty(scores.sizes(), scores.options());
  at::Tensor grad_budget =
      at::empty_symint(operands.problem.row_shape, scores.options().dtype(at::kDouble));
  if (operands.rows == 0) return {grad_scores, grad_budget.zero_()};
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, scores.scalar_type(), "weir::coordinate_descent", [&] {
        const kernels::CoordinateDescentBackward<Value<scalar_t>> args = {
            .in = kernel_rows<scalar_t>(operands),
            .grad = reinterpret_cast<const Value<scalar_t>*>(upstream.const_data_ptr<scalar_t>()),
            .trace = saved.const_data_ptr<double>(),
            .grad_scores =
                reinterpret_cast<Value<scalar_t>*>(grad_scores.mutable_data_ptr<scalar_t>()),
            .grad_budget = grad_budget.mutable_data_ptr<double>()};
        over_rows(operands, [&](std::int64_t begin, std::int64_t end, std::byte* workspace) {
          kernels::coordinate_descent_backward(args, begin, end, workspace);
        });
      });
  return {grad_scores, grad_budget};
}

TORCH_LIBRARY_IMPL(weir, CPU, m) {
  m.impl("_coordinate_descent", forward_cpu);
  m.impl("_coordinate_descent_backward", backward_cpu);
}

}  // namespace
}  // namespace weir::ops
