// SPDX-License-Identifier: Apache-2.0
// prefix_thresholds: checks, public front, Meta and Autograd. Row work: prefix_thresholds_cpu.cc;
// every other device: prefix_thresholds_composite.cc.
#include "weir/ops/prefix_thresholds.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <string>
#include <utility>

#include "ops/checks.h"
#include "ops/composite_gradient.h"
#include "ops/coordinate_descent.h"
#include "ops/prefix_thresholds.h"

namespace weir::ops {
namespace {

constexpr auto kName = "prefix_thresholds";

void check_lengths(at::IntArrayRef lengths, const c10::SymInt& n) {
  TORCH_CHECK_VALUE(std::is_sorted(lengths.begin(), lengths.end()), "weir::", kName,
                    ": expected `lengths` to ascend, but got ", lengths, ".");
  TORCH_CHECK_VALUE(lengths.empty() || (lengths.front() >= 0 && lengths.back() <= n),
                    "weir::", kName, ": expected `lengths` to lie between 0 and ", n,
                    ", the last dimension of `scores`, but got ", lengths, ".");
}

}  // namespace

std::vector<c10::SymInt> PrefixThresholdsProblem::trace_shape() const {
  std::vector<c10::SymInt> result = shape;
  result.emplace_back(std::max<std::int64_t>(n_iters, 1));
  return result;
}

PrefixThresholdsProblem prefix_thresholds_problem(const at::Tensor& scores,
                                                  const at::Tensor& budgets,
                                                  at::IntArrayRef lengths, std::int64_t n_iters,
                                                  double eps, std::optional<double> eps_init,
                                                  double eps_decay, std::string_view solver) {
  PrefixThresholdsProblem problem;
  problem.eps = checked_schedule(kName, n_iters, eps, eps_init, eps_decay, solver);
  problem.n_iters = solver == "exact" ? 0 : n_iters;
  check_scores(kName, scores);
  TORCH_CHECK_TYPE(scores.scalar_type() == at::kFloat || scores.scalar_type() == at::kDouble,
                   "weir::", kName, ": expected `scores` to be float32 or float64, but got ",
                   scores.scalar_type(), ".");
  check_lengths(lengths, scores.sym_size(-1));
  problem.shape = scores.sym_sizes().vec();
  problem.shape.back() = static_cast<std::int64_t>(lengths.size());
  TORCH_CHECK_TYPE(!budgets.is_complex() && budgets.scalar_type() != at::kBool, "weir::", kName,
                   ": expected `budgets` to be real numbers, but got ", budgets.scalar_type(), ".");
  TORCH_CHECK_VALUE(broadcasts_to(budgets.sym_sizes(), problem.shape), "weir::", kName,
                    ": expected `budgets` to broadcast to ", c10::SymIntArrayRef(problem.shape),
                    ", a number per row and prefix, but got ", budgets.sym_sizes(), ".");
  TORCH_CHECK_VALUE(budgets.device() == scores.device(), "weir::", kName,
                    ": expected `budgets` on the device of `scores`, ", scores.device(),
                    ", but got ", budgets.device(), ".");
  return problem;
}

namespace {

auto& forward_operator() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("weir::_prefix_thresholds", "")
                       .typed<decltype(prefix_thresholds_composite_forward)>();
  return op;
}

auto& backward_operator() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("weir::_prefix_thresholds_backward", "")
                       .typed<decltype(prefix_thresholds_composite_backward)>();
  return op;
}

at::Tensor front(const at::Tensor& scores, const at::Tensor& budgets, at::IntArrayRef lengths,
                 std::int64_t n_iters, double eps, std::optional<double> eps_init, double eps_decay,
                 std::string_view solver) {
  check_scores(kName, scores);
  const at::Tensor wide = scores.scalar_type() == at::kDouble ? scores : scores.to(at::kFloat);
  return std::get<0>(
      forward_operator().call(wide, budgets, lengths, n_iters, eps, eps_init, eps_decay, solver));
}

// ---- Meta

std::tuple<at::Tensor, at::Tensor> forward_meta(const at::Tensor& scores, const at::Tensor& budgets,
                                                at::IntArrayRef lengths, std::int64_t n_iters,
                                                double eps, std::optional<double> eps_init,
                                                double eps_decay, std::string_view solver) {
  const auto problem = prefix_thresholds_problem(scores, budgets, lengths, n_iters, eps, eps_init,
                                                 eps_decay, solver);
  const auto options = scores.options().dtype(at::kDouble);
  return {at::empty_symint(problem.shape, options),
          at::empty_symint(problem.trace_shape(), options)};
}

at::Tensor backward_meta(const at::Tensor& /*grad*/, const at::Tensor& scores,
                         const at::Tensor& budgets, const at::Tensor& /*trace*/,
                         at::IntArrayRef lengths, std::int64_t n_iters, double eps,
                         std::optional<double> eps_init, double eps_decay,
                         std::string_view solver) {
  prefix_thresholds_problem(scores, budgets, lengths, n_iters, eps, eps_init, eps_decay, solver);
  return at::empty_symint(scores.sym_sizes(), scores.options());
}

// ---- Autograd

class PrefixThresholds : public torch::autograd::Function<PrefixThresholds> {
 public:
  static torch::autograd::variable_list forward(torch::autograd::AutogradContext* ctx,
                                                const at::Tensor& scores, const at::Tensor& budgets,
                                                std::vector<std::int64_t> lengths,
                                                std::int64_t n_iters, double eps,
                                                std::optional<double> eps_init, double eps_decay,
                                                std::string solver) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [thresholds, trace] = forward_operator().call(scores, budgets, lengths, n_iters, eps,
                                                       eps_init, eps_decay, solver);
    ctx->save_for_backward({scores, budgets, trace});
    ctx->mark_non_differentiable({trace});
    ctx->saved_data["lengths"] = std::move(lengths);
    ctx->saved_data["n_iters"] = n_iters;
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["eps_init"] = eps_init;
    ctx->saved_data["eps_decay"] = eps_decay;
    ctx->saved_data["solver"] = std::move(solver);
    return {thresholds, trace};
  }

  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 const torch::autograd::variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    const at::Tensor &scores = saved[0], &budgets = saved[1], &trace = saved[2];
    const auto lengths = ctx->saved_data["lengths"].toIntVector();
    const std::int64_t n_iters = ctx->saved_data["n_iters"].toInt();
    const double eps = ctx->saved_data["eps"].toDouble();
    const auto eps_init = ctx->saved_data["eps_init"].toOptional<double>();
    const double eps_decay = ctx->saved_data["eps_decay"].toDouble();
    const std::string solver = ctx->saved_data["solver"].toStringRef();

    torch::autograd::variable_list result(8);
    if (!grads[0].defined()) return result;
    if (at::GradMode::is_enabled()) {  // a second derivative is wanted: differentiate the composite
      const auto composite = [&](const torch::autograd::variable_list& x) {
        return std::get<0>(prefix_thresholds_composite_forward(x[0], budgets, lengths, n_iters, eps,
                                                               eps_init, eps_decay, solver));
      };
      differentiate_composite(grads[0], saved, /*count=*/1, composite, result);
      return result;
    }
    result[0] = backward_operator().call(grads[0], scores, budgets, trace, lengths, n_iters, eps,
                                         eps_init, eps_decay, solver);
    return result;
  }
};

std::tuple<at::Tensor, at::Tensor> forward_autograd(const at::Tensor& scores,
                                                    const at::Tensor& budgets,
                                                    at::IntArrayRef lengths, std::int64_t n_iters,
                                                    double eps, std::optional<double> eps_init,
                                                    double eps_decay, std::string_view solver) {
  auto outputs = PrefixThresholds::apply(scores, budgets, lengths.vec(), n_iters, eps, eps_init,
                                         eps_decay, std::string(solver));
  return {outputs[0], outputs[1]};
}

TORCH_LIBRARY_IMPL(weir, CompositeImplicitAutograd, m) { m.impl("prefix_thresholds", front); }
TORCH_LIBRARY_IMPL(weir, Meta, m) {
  m.impl("_prefix_thresholds", forward_meta);
  m.impl("_prefix_thresholds_backward", backward_meta);
}
TORCH_LIBRARY_IMPL(weir, Autograd, m) { m.impl("_prefix_thresholds", forward_autograd); }

}  // namespace

at::Tensor prefix_thresholds(const at::Tensor& scores, at::IntArrayRef lengths,
                             const at::Tensor& budgets, const CoordinateDescentOptions& options) {
  return front(scores, budgets, lengths, options.n_iters, options.eps, options.eps_init,
               options.eps_decay, options.solver);
}

}  // namespace weir::ops
