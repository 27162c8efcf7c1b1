// SPDX-License-Identifier: Apache-2.0
// coordinate_descent from ATen operators, in the scalar form of
// docs/operators/coordinate_descent.md. `scores` below is (..., n), everything per row (..., 1); c
// = -a is the threshold of a row.
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "ops/coordinate_descent.h"

namespace weir::ops {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

/// The operands in the dtype of the computation.
struct Row {
  at::Tensor valid;   // bool (..., n): kept by the mask and not -inf
  at::Tensor empty;   // bool (..., 1): no valid entry
  at::Tensor scores;  // (..., n); 0 where not valid, so that no gradient meets an infinity
  at::Tensor budget;  // (..., 1), in [1e-20, max]
  at::Tensor count;   // (..., 1) number of valid entries, 1 for an empty row
};

Row prepare(const CoordinateDescentProblem& problem, const at::Tensor& scores,
            const at::Tensor& budget, const std::optional<at::Tensor>& mask) {
  Row row;
  row.valid = scores != -kInfinity;
  if (mask) row.valid = row.valid & *mask;
  row.empty = row.valid.any(-1, /*keepdim=*/true).logical_not();
  row.scores = scores.to(problem.compute).masked_fill(row.valid.logical_not(), 0);
  const double largest = problem.compute == at::kDouble ? std::numeric_limits<double>::max()
                                                        : std::numeric_limits<float>::max();
  row.budget = budget.to(problem.compute)
                   .clamp(1e-20, largest)
                   .expand_symint(problem.row_shape)
                   .unsqueeze(-1);
  row.count = row.valid.sum(-1, /*keepdim=*/true, problem.compute).clamp_min(1);
  return row;
}

/// log sum exp over the valid entries; 0 for an empty row.
at::Tensor valid_logsumexp(const Row& row, const at::Tensor& exponents) {
  const at::Tensor drop = (row.valid | row.empty).logical_not();
  return at::logsumexp(exponents.masked_fill(drop, -kInfinity), -1, /*keepdim=*/true);
}

at::Tensor read_out(const Row& row, const at::Tensor& a, double eps, at::ScalarType dtype) {
  const at::Tensor saturated = row.scores > -a;
  const at::Tensor exponents =
      at::where(saturated, at::zeros_like(row.scores), row.scores + a) / eps;
  return exponents.exp().masked_fill(row.valid.logical_not(), 0).to(dtype);
}

std::vector<at::Tensor> iterate(const Row& row, const std::vector<double>& eps) {
  const at::Tensor log_budget = row.budget.log();
  std::vector<at::Tensor> trace = {eps[0] * (log_budget - row.count.log())};
  for (std::size_t t = 1; t + 1 < eps.size(); ++t) {
    const at::Tensor c = -trace.back();
    const at::Tensor capped = at::where(row.scores > c, c, row.scores);
    trace.push_back(eps[t] * (log_budget - valid_logsumexp(row, capped / eps[t])));
  }
  return trace;
}

/// The threshold from a sorted row: with the first m entries saturated, sum = budget needs
/// a(m) = eps (ln(budget - m) - LSE of the rest); the solution is the smallest m whose largest
/// unsaturated entry stays at or below 1.
at::Tensor solve(const Row& row, double eps) {
  const at::Tensor x = row.scores.masked_fill(row.valid.logical_not(), -kInfinity) / eps;
  at::Tensor saturated;
  {
    at::NoGradGuard no_grad;
    const at::Tensor sorted = std::get<0>(x.sort(-1, /*descending=*/true));
    const at::Tensor rest = sorted.flip(-1).logcumsumexp(-1).flip(-1);  // LSE over j >= m
    const at::Tensor m = at::arange(x.sym_size(-1).expect_int(), x.options());
    const at::Tensor alpha = (row.budget - m).clamp_min(0).log() - rest;
    const at::Tensor fits = (sorted + alpha <= 0) & (m < row.budget);
    const at::Tensor number = fits.to(at::kLong).argmax(-1, /*keepdim=*/true);
    const at::Tensor largest_unsaturated = sorted.gather(-1, number);
    saturated = x > largest_unsaturated;
  }
  const at::Tensor m = saturated.sum(-1, /*keepdim=*/true, row.budget.scalar_type());
  const at::Tensor all_one = row.count <= row.budget;  // also the empty rows of budget >= 1
  const at::Tensor safe = row.empty | all_one;
  const at::Tensor rest = x.masked_fill(saturated, -kInfinity).masked_fill(safe, 0);
  const at::Tensor a =
      eps *
      (at::where(safe, at::zeros_like(row.budget), row.budget - m).masked_fill(safe, 1).log() -
       at::logsumexp(rest, -1, /*keepdim=*/true));
  return a.masked_fill(all_one, kInfinity);
}

// ---- backward, from the closed form

std::tuple<at::Tensor, at::Tensor> backward_exact(const Row& row, const at::Tensor& grad,
                                                  const at::Tensor& a, double eps) {
  const at::Tensor unsaturated = (row.scores <= -a) & row.valid;
  const at::Tensor weights = at::where(unsaturated, ((row.scores + a) / eps).exp(), 0);
  const at::Tensor mass = weights.sum(-1, /*keepdim=*/true);
  const at::Tensor mean =
      ((grad.masked_fill(unsaturated.logical_not(), 0) * weights).sum(-1, true) / mass)
          .masked_fill(mass == 0, 0);
  const at::Tensor grad_scores =
      (weights / eps * (grad - mean)).masked_fill(unsaturated.logical_not(), 0);
  return {grad_scores, mean};
}

std::tuple<at::Tensor, at::Tensor> backward_iterative(const Row& row, const at::Tensor& grad,
                                                      const at::Tensor& trace,
                                                      const std::vector<double>& eps) {
  const std::int64_t last = static_cast<std::int64_t>(eps.size()) - 2;
  const auto a = [&](std::int64_t t) { return trace.narrow(-1, t, 1); };
  const at::Tensor live = (row.scores <= -a(last)) & row.valid;
  const at::Tensor weights = at::where(live, ((row.scores + a(last)) / eps[last + 1]).exp(), 0);
  at::Tensor grad_scores = (grad * weights).masked_fill(live.logical_not(), 0) / eps[last + 1];
  at::Tensor mass = grad_scores.sum(-1, /*keepdim=*/true);
  at::Tensor grad_budget = at::zeros_like(mass);
  for (std::int64_t t = last; t >= 0; --t) {
    grad_budget = grad_budget + mass * eps[t] / row.budget;
    if (t == 0) break;
    const at::Tensor c = -a(t - 1);
    const at::Tensor saturated = row.scores > c;
    const at::Tensor capped = at::where(saturated, c, row.scores) / eps[t];
    const at::Tensor p =
        (capped - valid_logsumexp(row, capped)).exp().masked_fill(row.valid.logical_not(), 0);
    grad_scores = grad_scores - mass * p.masked_fill(saturated, 0);
    mass = mass * p.masked_fill(saturated.logical_not(), 0).sum(-1, /*keepdim=*/true);
  }
  return {grad_scores, grad_budget};
}

TORCH_LIBRARY_IMPL(weir, CompositeExplicitAutograd, m) {
  m.impl("_coordinate_descent", coordinate_descent_composite_forward);
  m.impl("_coordinate_descent_backward", coordinate_descent_composite_backward);
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> coordinate_descent_composite_forward(
    const at::Tensor& scores, const at::Tensor& budget, const std::optional<at::Tensor>& mask,
    std::int64_t n_iters, double eps, std::optional<double> eps_init, double eps_decay,
    std::string_view solver) {
  const auto problem =
      coordinate_descent_problem(scores, budget, mask, n_iters, eps, eps_init, eps_decay, solver);
  if (scores.sym_numel() == 0) {
    return {scores.clone(),
            at::zeros_symint(problem.trace_shape(), scores.options().dtype(at::kDouble))};
  }
  const Row row = prepare(problem, scores, budget, mask);
  const std::vector<at::Tensor> trace = problem.solver == Solver::kExact
                                            ? std::vector<at::Tensor>{solve(row, eps)}
                                            : iterate(row, problem.eps);
  const at::Tensor output = read_out(row, trace.back(), problem.eps.back(), scores.scalar_type());
  return {output, at::stack(trace, -1).squeeze(-2).to(at::kDouble)};
}

std::tuple<at::Tensor, at::Tensor> coordinate_descent_composite_backward(
    const at::Tensor& grad, const at::Tensor& scores, const at::Tensor& budget,
    const std::optional<at::Tensor>& mask, const at::Tensor& trace, std::int64_t n_iters,
    double eps, std::optional<double> eps_init, double eps_decay, std::string_view solver) {
  const auto problem =
      coordinate_descent_problem(scores, budget, mask, n_iters, eps, eps_init, eps_decay, solver);
  const Row row = prepare(problem, scores, budget, mask);
  const at::Tensor a = trace.to(problem.compute);
  const at::Tensor upstream = grad.to(problem.compute);
  auto [grad_scores, grad_budget] = problem.solver == Solver::kExact
                                        ? backward_exact(row, upstream, a, eps)
                                        : backward_iterative(row, upstream, a, problem.eps);
  const at::Tensor inside = (budget >= 1e-20).expand_symint(problem.row_shape);  // not clamped
  return {grad_scores.to(scores.scalar_type()),
          grad_budget.squeeze(-1).to(at::kDouble).masked_fill(inside.logical_not(), 0)};
}

}  // namespace weir::ops
