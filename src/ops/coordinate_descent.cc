// SPDX-License-Identifier: Apache-2.0
// coordinate_descent: checks, public front, Meta and Autograd. Row work: coordinate_descent_cpu.cc;
// every other device: coordinate_descent_composite.cc.
#include "weir/ops/coordinate_descent.h"

#include <ATen/ExpandUtils.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/scalar_tensor.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "ops/checks.h"
#include "ops/composite_gradient.h"
#include "ops/coordinate_descent.h"

namespace weir::ops {
namespace {

constexpr double kSmallestEps = 1e-12;  // below it, scores / eps leaves the range of float32

std::vector<double> eps_schedule(std::int64_t n_iters, double eps, std::optional<double> eps_init,
                                 double eps_decay) {
  std::vector<double> schedule = {std::max(eps_init.value_or(eps), eps)};
  for (std::int64_t t = 0; t < n_iters; ++t) {
    schedule.push_back(std::max(schedule.back() * eps_decay, eps));
  }
  return schedule;
}

void check_options(const char* op, std::int64_t n_iters, double eps, std::optional<double> eps_init,
                   double eps_decay, std::string_view solver) {
  TORCH_CHECK_VALUE(solver == "iterative" || solver == "exact", "weir::", op,
                    ": expected `solver` to be \"iterative\" or \"exact\", but got \"", solver,
                    "\".");
  TORCH_CHECK_VALUE(n_iters >= 1, "weir::", op, ": expected `n_iters` to be at least 1, but got ",
                    n_iters, ".");
  TORCH_CHECK_VALUE(std::isfinite(eps) && eps >= kSmallestEps, "weir::", op,
                    ": expected `eps` to be finite and at least ", kSmallestEps, ", but got ", eps,
                    ".");
  TORCH_CHECK_VALUE(!eps_init || (std::isfinite(*eps_init) && *eps_init > 0), "weir::", op,
                    ": expected `eps_init` to be finite and positive, but got ",
                    eps_init.value_or(0), ".");
  TORCH_CHECK_VALUE(eps_decay > 0 && eps_decay <= 1, "weir::", op,
                    ": expected `eps_decay` to lie in (0, 1], but got ", eps_decay, ".");
}

}  // namespace

std::vector<double> checked_schedule(const char* op, std::int64_t n_iters, double eps,
                                     std::optional<double> eps_init, double eps_decay,
                                     std::string_view solver) {
  check_options(op, n_iters, eps, eps_init, eps_decay, solver);
  if (solver == "exact") return {eps};
  return eps_schedule(n_iters, eps, eps_init, eps_decay);
}

at::Tensor checked_budget(const char* op, double budget, const at::Tensor& like) {
  TORCH_CHECK_VALUE(budget > 0 && std::isfinite(budget), "weir::", op,
                    ": expected `budget` to be finite and positive, but got ", budget, ".");
  return at::scalar_tensor(budget, like.options().dtype(at::kDouble));
}

std::vector<c10::SymInt> CoordinateDescentProblem::trace_shape() const {
  std::vector<c10::SymInt> shape = row_shape;
  shape.emplace_back(trace_size());
  return shape;
}

CoordinateDescentProblem coordinate_descent_problem(const at::Tensor& scores,
                                                    const at::Tensor& budget,
                                                    const std::optional<at::Tensor>& mask,
                                                    std::int64_t n_iters, double eps,
                                                    std::optional<double> eps_init,
                                                    double eps_decay, std::string_view solver) {
  std::vector<double> schedule =
      checked_schedule("coordinate_descent", n_iters, eps, eps_init, eps_decay, solver);
  check_scores("coordinate_descent", scores);
  const auto shape = scores.sym_sizes();
  const auto row_shape = shape.slice(0, shape.size() - 1);

  TORCH_CHECK_TYPE(
      !budget.is_complex() && budget.scalar_type() != at::kBool,
      "weir::coordinate_descent: expected `budget` to be a real number per row, but got ",
      budget.scalar_type(), ".");
  TORCH_CHECK_VALUE(broadcasts_to(budget.sym_sizes(), row_shape),
                    "weir::coordinate_descent: expected `budget` to broadcast to ", row_shape,
                    ", the shape of `scores` without its last dimension, but got ",
                    budget.sym_sizes(), ".");
  TORCH_CHECK_VALUE(budget.device() == scores.device(),
                    "weir::coordinate_descent: expected `budget` on the device of `scores`, ",
                    scores.device(), ", but got ", budget.device(), ".");
  check_mask("coordinate_descent", scores, mask);
  return {.row_shape = row_shape.vec(),
          .cols = shape.back(),
          .solver = solver == "exact" ? Solver::kExact : Solver::kIterative,
          .eps = std::move(schedule),
          .compute = scores.scalar_type() == at::kDouble ? at::kDouble : at::kFloat};
}

namespace {

auto& forward_operator() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("weir::_coordinate_descent", "")
                       .typed<decltype(coordinate_descent_composite_forward)>();
  return op;
}

auto& backward_operator() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("weir::_coordinate_descent_backward", "")
                       .typed<decltype(coordinate_descent_composite_backward)>();
  return op;
}

// ---- public front

at::Tensor front(const at::Tensor& scores, const at::Tensor& budget,
                 const std::optional<at::Tensor>& mask, std::int64_t n_iters, double eps,
                 std::optional<double> eps_init, double eps_decay, std::string_view solver) {
  return std::get<0>(
      forward_operator().call(scores, budget, mask, n_iters, eps, eps_init, eps_decay, solver));
}

at::Tensor front_number(const at::Tensor& scores, double budget,
                        const std::optional<at::Tensor>& mask, std::int64_t n_iters, double eps,
                        std::optional<double> eps_init, double eps_decay, std::string_view solver) {
  const at::Tensor tensor = checked_budget("coordinate_descent", budget, scores);
  return front(scores, tensor, mask, n_iters, eps, eps_init, eps_decay, solver);
}

// ---- Meta

std::tuple<at::Tensor, at::Tensor> forward_meta(const at::Tensor& scores, const at::Tensor& budget,
                                                const std::optional<at::Tensor>& mask,
                                                std::int64_t n_iters, double eps,
                                                std::optional<double> eps_init, double eps_decay,
                                                std::string_view solver) {
  const auto problem =
      coordinate_descent_problem(scores, budget, mask, n_iters, eps, eps_init, eps_decay, solver);
  return {at::empty_symint(scores.sym_sizes(), scores.options()),
          at::empty_symint(problem.trace_shape(), scores.options().dtype(at::kDouble))};
}

std::tuple<at::Tensor, at::Tensor> backward_meta(const at::Tensor& /*grad*/,
                                                 const at::Tensor& scores, const at::Tensor& budget,
                                                 const std::optional<at::Tensor>& mask,
                                                 const at::Tensor& /*trace*/, std::int64_t n_iters,
                                                 double eps, std::optional<double> eps_init,
                                                 double eps_decay, std::string_view solver) {
  const auto problem =
      coordinate_descent_problem(scores, budget, mask, n_iters, eps, eps_init, eps_decay, solver);
  return {at::empty_symint(scores.sym_sizes(), scores.options()),
          at::empty_symint(problem.row_shape, scores.options().dtype(at::kDouble))};
}

// ---- Autograd

class CoordinateDescent : public torch::autograd::Function<CoordinateDescent> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const at::Tensor& scores, const at::Tensor& budget,
                                                const std::optional<at::Tensor>& mask,
                                                std::int64_t n_iters, double eps,
                                                std::optional<double> eps_init, double eps_decay,
                                                std::string solver) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [output, trace] =
        forward_operator().call(scores, budget, mask, n_iters, eps, eps_init, eps_decay, solver);
    ctx->save_for_backward({scores, budget, mask.value_or(at::Tensor()), trace});
    ctx->mark_non_differentiable({trace});
    ctx->saved_data["n_iters"] = n_iters;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["eps_init"] = eps_init;
    ctx->saved_data["eps_decay"] = eps_decay;
    ctx->saved_data["solver"] = std::move(solver);
    return {output, trace};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &scores = saved[0], &budget = saved[1], &trace = saved[3];
    const std::optional<at::Tensor> mask =
        saved[2].defined() ? std::optional(saved[2]) : std::nullopt;
    const std::int64_t n_iters = ctx->saved_data["n_iters"].toInt();
    const double eps = ctx->saved_data["eps"].toDouble();
    const auto eps_init = ctx->saved_data["eps_init"].toOptional<double>();
    const double eps_decay = ctx->saved_data["eps_decay"].toDouble();
    const std::string solver = ctx->saved_data["solver"].toStringRef();

    torch::autograd::variable_list result(8);
    if (!grads[0].defined()) return result;
    if (at::GradMode::is_enabled()) {  // a second derivative is wanted: differentiate the composite
      const auto composite = [&](const torch::autograd::variable_list& x) {
        return std::get<0>(coordinate_descent_composite_forward(x[0], x[1], mask, n_iters, eps,
                                                                eps_init, eps_decay, solver));
      };
      differentiate_composite(grads[0], saved, /*count=*/2, composite, result);
      return result;
    }
    auto [grad_scores, grad_budget] = backward_operator().call(
        grads[0], scores, budget, mask, trace, n_iters, eps, eps_init, eps_decay, solver);
    result[0] = grad_scores;
    if (budget.requires_grad()) {
      result[1] = at::sum_to(grad_budget, budget.sym_sizes()).to(budget.scalar_type());
    }
    return result;
  }
};

std::tuple<at::Tensor, at::Tensor> forward_autograd(const at::Tensor& scores,
                                                    const at::Tensor& budget,
                                                    const std::optional<at::Tensor>& mask,
                                                    std::int64_t n_iters, double eps,
                                                    std::optional<double> eps_init,
                                                    double eps_decay, std::string_view solver) {
  auto outputs = CoordinateDescent::apply(scores, budget, mask, n_iters, eps, eps_init, eps_decay,
                                          std::string(solver));
  return {outputs[0], outputs[1]};
}

TORCH_LIBRARY_IMPL(weir, CompositeImplicitAutograd, m) {
  m.impl("coordinate_descent", front);
  m.impl("coordinate_descent.number", front_number);
}
TORCH_LIBRARY_IMPL(weir, Meta, m) {
  m.impl("_coordinate_descent", forward_meta);
  m.impl("_coordinate_descent_backward", backward_meta);
}
TORCH_LIBRARY_IMPL(weir, Autograd, m) { m.impl("_coordinate_descent", forward_autograd); }

}  // namespace

double read_out_eps(const CoordinateDescentOptions& options) {
  return checked_schedule("coordinate_descent", options.n_iters, options.eps, options.eps_init,
                          options.eps_decay, options.solver)
      .back();
}

at::Tensor coordinate_descent(const at::Tensor& scores, const at::Tensor& budget,
                              const std::optional<at::Tensor>& mask,
                              const CoordinateDescentOptions& options) {
  return front(scores, budget, mask, options.n_iters, options.eps, options.eps_init,
               options.eps_decay, options.solver);
}

at::Tensor coordinate_descent(const at::Tensor& scores, double budget,
                              const std::optional<at::Tensor>& mask,
                              const CoordinateDescentOptions& options) {
  return front_number(scores, budget, mask, options.n_iters, options.eps, options.eps_init,
                      options.eps_decay, options.solver);
}

at::Tensor coordinate_descent_composite(const at::Tensor& scores, const at::Tensor& budget,
                                        const std::optional<at::Tensor>& mask,
                                        const CoordinateDescentOptions& options) {
  return std::get<0>(coordinate_descent_composite_forward(scores, budget, mask, options.n_iters,
                                                          options.eps, options.eps_init,
                                                          options.eps_decay, options.solver));
}

}  // namespace weir::ops
