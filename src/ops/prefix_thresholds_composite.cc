// SPDX-License-Identifier: Apache-2.0
// prefix_thresholds from ATen operators: coordinate_descent of a row per prefix, masked behind it.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/library.h>

#include <limits>

#include "ops/coordinate_descent.h"
#include "ops/prefix_thresholds.h"
#include "weir/ops/prefix_thresholds.h"

namespace weir::ops {

std::tuple<at::Tensor, at::Tensor> prefix_thresholds_composite_forward(
    const at::Tensor& scores, const at::Tensor& budgets, at::IntArrayRef lengths,
    std::int64_t n_iters, double eps, std::optional<double> eps_init, double eps_decay,
    std::string_view solver) {
  const auto problem = prefix_thresholds_problem(scores, budgets, lengths, n_iters, eps, eps_init,
                                                 eps_decay, solver);
  const auto options = scores.options().dtype(at::kDouble).requires_grad(false);
  if (scores.sym_numel() == 0 || lengths.empty()) {
    return {at::zeros_symint(problem.shape, options),
            at::zeros_symint(problem.trace_shape(), options)};
  }
  const auto longs = scores.options().dtype(at::kLong).requires_grad(false);
  const at::Tensor ends = at::tensor(lengths, longs).unsqueeze(-1);  // (prefixes, 1)
  const at::Tensor inside = at::arange(scores.sym_size(-1).expect_int(), longs) < ends;
  auto shape = problem.shape;
  shape.push_back(scores.sym_size(-1));
  const auto [weights, trace] = coordinate_descent_composite_forward(
      scores.unsqueeze(-2).expand_symint(shape), budgets.expand_symint(problem.shape), inside,
      n_iters, eps, eps_init, eps_decay, solver);
  const at::Tensor valid =
      (inside & (scores != -std::numeric_limits<double>::infinity()).unsqueeze(-2)).any(-1);
  const at::Tensor thresholds = trace.select(-1, -1).masked_fill(valid.logical_not(), 0);
  return {thresholds, trace};
}

at::Tensor prefix_thresholds_composite_backward(const at::Tensor& grad, const at::Tensor& scores,
                                                const at::Tensor& budgets,
                                                const at::Tensor& /*trace*/,
                                                at::IntArrayRef lengths, std::int64_t n_iters,
                                                double eps, std::optional<double> eps_init,
                                                double eps_decay, std::string_view solver) {
  const at::AutoGradMode with_graph(true);
  const at::Tensor leaf = scores.detach().requires_grad_();
  const at::Tensor thresholds = std::get<0>(prefix_thresholds_composite_forward(
      leaf, budgets.detach(), lengths, n_iters, eps, eps_init, eps_decay, solver));
  if (!thresholds.requires_grad()) return at::zeros_symint(scores.sym_sizes(), scores.options());
  return torch::autograd::grad({thresholds}, {leaf}, {grad})[0];
}

at::Tensor prefix_thresholds_composite(const at::Tensor& scores, at::IntArrayRef lengths,
                                       const at::Tensor& budgets,
                                       const CoordinateDescentOptions& options) {
  return std::get<0>(prefix_thresholds_composite_forward(scores, budgets, lengths, options.n_iters,
                                                         options.eps, options.eps_init,
                                                         options.eps_decay, options.solver));
}

namespace {

TORCH_LIBRARY_IMPL(weir, CompositeExplicitAutograd, m) {
  m.impl("_prefix_thresholds", prefix_thresholds_composite_forward);
  m.impl("_prefix_thresholds_backward", prefix_thresholds_composite_backward);
}

}  // namespace
}  // namespace weir::ops
