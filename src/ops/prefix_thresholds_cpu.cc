// SPDX-License-Identifier: Apache-2.0
// prefix_thresholds on the CPU: tensors to pointers, prefixes over threads. The work is in
// kernels/cpu/prefix_thresholds.cc.
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "kernels/prefix_thresholds.h"
#include "ops/parallel.h"
#include "ops/prefix_thresholds.h"

namespace weir::ops {
namespace {

/// The operands as the kernel wants them, kept alive while it runs.
struct Operands {
  PrefixThresholdsProblem problem;
  at::Tensor scores, budgets = {};  // contiguous
  at::IntArrayRef lengths;
  std::int64_t rows = 0;

  std::int64_t prefixes() const { return static_cast<std::int64_t>(lengths.size()); }
  bool empty() const { return rows == 0 || lengths.empty(); }

  template <class T>
  kernels::PrefixThresholdsRows<T> kernel_rows() const {
    return {.cols = scores.size(-1),
            .prefixes = prefixes(),
            .scores = scores.const_data_ptr<T>(),
            .lengths = lengths.data(),
            .budgets = budgets.const_data_ptr<double>(),
            .eps = problem.eps.data(),
            .n_iters = problem.n_iters};
  }

  /// `count` problems or rows, each of `prefixes` prefixes.
  template <class Body>
  void over(std::int64_t count, std::int64_t prefixes, const Body& body) const {
    const std::int64_t passes = problem.n_iters == 0 ? 6 : problem.n_iters;
    parallel_rows(count, prefixes * scores.size(-1) * passes,
                  kernels::prefix_thresholds_workspace_bytes(scores.size(-1), problem.n_iters),
                  body);
  }
};

Operands prepare(const at::Tensor& scores, const at::Tensor& budgets, at::IntArrayRef lengths,
                 std::int64_t n_iters, double eps, std::optional<double> eps_init, double eps_decay,
                 std::string_view solver) {
  Operands operands{.problem = prefix_thresholds_problem(scores, budgets, lengths, n_iters, eps,
                                                         eps_init, eps_decay, solver),
                    .scores = scores.contiguous(),
                    .lengths = lengths};
  operands.budgets = budgets.to(at::kDouble).expand_symint(operands.problem.shape).contiguous();
  operands.rows = 1;
  for (std::int64_t d = 0; d + 1 < scores.dim(); ++d) operands.rows *= scores.size(d);
  return operands;
}

std::tuple<at::Tensor, at::Tensor> forward_cpu(const at::Tensor& scores, const at::Tensor& budgets,
                                               at::IntArrayRef lengths, std::int64_t n_iters,
                                               double eps, std::optional<double> eps_init,
                                               double eps_decay, std::string_view solver) {
  const Operands operands =
      prepare(scores, budgets, lengths, n_iters, eps, eps_init, eps_decay, solver);
  const at::Tensor trace =
      at::empty_symint(operands.problem.trace_shape(), scores.options().dtype(at::kDouble));
  if (!operands.empty()) {
    AT_DISPATCH_FLOATING_TYPES(scores.scalar_type(), "weir::prefix_thresholds", [&] {
      const kernels::PrefixThresholdsForward<scalar_t> args = {
          .in = operands.kernel_rows<scalar_t>(), .trace = trace.mutable_data_ptr<double>()};
      operands.over(operands.rows * operands.prefixes(), 1,
                    [&](std::int64_t begin, std::int64_t end, std::byte* workspace) {
                      kernels::prefix_thresholds_forward(args, begin, end, workspace);
                    });
    });
  }
  return {trace.select(-1, -1).clone(), trace};
}

at::Tensor backward_cpu(const at::Tensor& grad, const at::Tensor& scores, const at::Tensor& budgets,
                        const at::Tensor& trace, at::IntArrayRef lengths, std::int64_t n_iters,
                        double eps, std::optional<double> eps_init, double eps_decay,
                        std::string_view solver) {
  const Operands operands =
      prepare(scores, budgets, lengths, n_iters, eps, eps_init, eps_decay, solver);
  const at::Tensor upstream = grad.contiguous(), saved = trace.contiguous();
  at::Tensor grad_scores = at::empty(scores.sizes(), scores.options());
  if (operands.empty()) return grad_scores.zero_();
  AT_DISPATCH_FLOATING_TYPES(scores.scalar_type(), "weir::prefix_thresholds", [&] {
    const kernels::PrefixThresholdsBackward<scalar_t> args = {
        .in = operands.kernel_rows<scalar_t>(),
        .grad = upstream.const_data_ptr<double>(),
        .trace = saved.const_data_ptr<double>(),
        .grad_scores = grad_scores.mutable_data_ptr<scalar_t>()};
    operands.over(operands.rows, operands.prefixes(),
                  [&](std::int64_t begin, std::int64_t end, std::byte* workspace) {
                    kernels::prefix_thresholds_backward(args, begin, end, workspace);
                  });
  });
  return grad_scores;
}

TORCH_LIBRARY_IMPL(weir, CPU, m) {
  m.impl("_prefix_thresholds", forward_cpu);
  m.impl("_prefix_thresholds_backward", backward_cpu);
}

}  // namespace
}  // namespace weir::ops
