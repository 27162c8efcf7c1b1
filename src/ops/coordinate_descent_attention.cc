// SPDX-License-Identifier: Apache-2.0
// coordinate_descent_attention: checks, public front, Meta and Autograd. The work on the CPU:
// coordinate_descent_attention_cpu.cc; on every other device:
// coordinate_descent_attention_composite.cc.
#include "weir/ops/coordinate_descent_attention.h"

#include <ATen/ExpandUtils.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "ops/block_sparse_attention.h"
#include "ops/checks.h"
#include "ops/composite_gradient.h"
#include "ops/coordinate_descent_attention.h"

namespace weir::ops {
namespace {

using Options = CoordinateDescentAttentionOptions;
using Problem = CoordinateDescentAttentionProblem;
using Rule = CoordinateDescentAttentionRule;
using torch::autograd::variable_list;

constexpr char kOp[] = "coordinate_descent_attention";
constexpr char kExpected[] = "weir::coordinate_descent_attention: expected ";

auto& forward_operator() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("weir::_coordinate_descent_attention", "")
                       .typed<decltype(coordinate_descent_attention_composite_forward)>();
  return op;
}

auto& backward_operator() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("weir::_coordinate_descent_attention_backward", "")
                       .typed<decltype(coordinate_descent_attention_composite_backward)>();
  return op;
}

}  // namespace

// ---- the rule and the problem

std::vector<std::int64_t> Rule::integers() const { return {causal, nulls, n_iters, normalize}; }

std::vector<double> Rule::numbers() const { return {eps, eps_init, eps_decay, scale}; }

Rule Rule::of(at::IntArrayRef i, at::ArrayRef<double> x, std::string_view solver) {
  TORCH_CHECK_VALUE(i.size() == 4 && x.size() == 4, kExpected,
                    "4 integers and 4 numbers of a rule, but got ", i.size(), " and ", x.size(),
                    ".");
  return {.causal = i[0] != 0,
          .nulls = i[1],
          .n_iters = i[2],
          .normalize = i[3] != 0,
          .eps = x[0],
          .eps_init = x[1],
          .eps_decay = x[2],
          .scale = x[3],
          .solver = std::string(solver)};
}

Problem coordinate_descent_attention_problem(const at::Tensor& query, const at::Tensor& key,
                                             const at::Tensor& value, const at::Tensor& budget,
                                             const OptionalTensor& key_mask,
                                             const OptionalTensor& mask, at::IntArrayRef integers,
                                             at::ArrayRef<double> numbers,
                                             std::string_view solver) {
  check_attention_operands(kOp, query, key, value);
  check_key_mask(kOp, key_mask, query, key);
  check_pair_mask(kOp, mask, query, key);
  Problem problem = {.batch = query.sym_size(0),
                     .heads = query.sym_size(1),
                     .kv_heads = key.sym_size(1),
                     .queries = query.sym_size(2),
                     .keys = key.sym_size(2),
                     .dim = query.sym_size(3),
                     .value_dim = value.sym_size(3),
                     .rule = Rule::of(integers, numbers, solver),
                     .eps = {},
                     .compute = query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat};
  const Rule& rule = problem.rule;
  problem.eps =
      checked_schedule(kOp, rule.n_iters, rule.eps, rule.eps_init, rule.eps_decay, solver);
  TORCH_CHECK_VALUE(rule.nulls >= 0, kExpected, "`nulls` to be at least 0, but got ", rule.nulls,
                    ".");
  TORCH_CHECK_VALUE(std::isfinite(rule.scale), kExpected, "`scale` to be finite, but got ",
                    rule.scale, ".");
  TORCH_CHECK_TYPE(!budget.is_complex() && budget.scalar_type() != at::kBool, kExpected,
                   "`budget` to be a real number per query, but got ", budget.scalar_type(), ".");
  const std::vector<c10::SymInt> rows = problem.row_shape();
  TORCH_CHECK_VALUE(broadcasts_to(budget.sym_sizes(), rows), kExpected, "`budget` to broadcast to ",
                    c10::SymIntArrayRef(rows), ", the queries, but got ", budget.sym_sizes(), ".");
  TORCH_CHECK_VALUE(budget.device() == query.device(), kExpected,
                    "`budget` on the device of `query`, ", query.device(), ", but got ",
                    budget.device(), ".");
  return problem;
}

namespace {

// ---- public front

Rule rule_of(const at::Tensor& query, const Options& o) {
  return {.causal = o.causal,
          .nulls = o.nulls,
          .n_iters = o.n_iters,
          .normalize = o.normalize,
          .eps = o.eps,
          .eps_init = o.eps_init.value_or(o.eps),
          .eps_decay = o.eps_decay,
          .scale = attention_scale(query, o.scale),
          .solver = o.solver};
}

at::Tensor front(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                 const at::Tensor& budget, const OptionalTensor& key_mask,
                 const OptionalTensor& mask, bool causal, std::int64_t nulls, std::int64_t n_iters,
                 double eps, std::optional<double> eps_init, double eps_decay,
                 std::string_view solver, bool normalize, std::optional<double> scale) {
  return coordinate_descent_attention(
      query, key, value, budget, {key_mask, mask},
      {causal, nulls, n_iters, eps, eps_init, eps_decay, std::string(solver), normalize, scale});
}

at::Tensor front_number(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                        double budget, const OptionalTensor& key_mask, const OptionalTensor& mask,
                        bool causal, std::int64_t nulls, std::int64_t n_iters, double eps,
                        std::optional<double> eps_init, double eps_decay, std::string_view solver,
                        bool normalize, std::optional<double> scale) {
  return front(query, key, value, checked_budget(kOp, budget, query), key_mask, mask, causal, nulls,
               n_iters, eps, eps_init, eps_decay, solver, normalize, scale);
}

// ---- Meta

std::tuple<at::Tensor, at::Tensor> forward_meta(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& budget, const OptionalTensor& key_mask, const OptionalTensor& mask,
    at::IntArrayRef integers, at::ArrayRef<double> numbers, std::string_view solver) {
  const Problem problem = coordinate_descent_attention_problem(query, key, value, budget, key_mask,
                                                               mask, integers, numbers, solver);
  return {at::empty_symint(problem.output_shape(), query.options()),
          at::empty_symint(problem.trace_shape(), query.options().dtype(at::kDouble))};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward_meta(
    const at::Tensor& /*grad*/, const at::Tensor& query, const at::Tensor& key,
    const at::Tensor& value, const at::Tensor& budget, const OptionalTensor& key_mask,
    const OptionalTensor& mask, const at::Tensor& /*trace*/, at::IntArrayRef integers,
    at::ArrayRef<double> numbers, std::string_view solver) {
  const Problem problem = coordinate_descent_attention_problem(query, key, value, budget, key_mask,
                                                               mask, integers, numbers, solver);
  const auto like = [](const at::Tensor& x) {
    return at::empty_symint(x.sym_sizes(), x.options());
  };
  return {like(query), like(key), like(value),
          at::empty_symint(problem.row_shape(), query.options().dtype(at::kDouble))};
}

// ---- Autograd

class CoordinateDescentAttention : public torch::autograd::Function<CoordinateDescentAttention> {
 public:
  static variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& query,
                               const at::Tensor& key, const at::Tensor& value,
                               const at::Tensor& budget, const OptionalTensor& key_mask,
                               const OptionalTensor& mask,
                               const std::vector<std::int64_t>& integers,
                               const std::vector<double>& numbers, std::string solver) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [output, trace] = forward_operator().call(query, key, value, budget, key_mask, mask,
                                                   integers, numbers, solver);
    ctx->save_for_backward({query, key, value, budget, trace, key_mask.value_or(at::Tensor()),
                            mask.value_or(at::Tensor())});
    ctx->mark_non_differentiable({trace});
    ctx->saved_data["integers"] = integers;
    ctx->saved_data["numbers"] = numbers;
    ctx->saved_data["solver"] = std::move(solver);
    return {output, trace};
  }

  static variable_list backward(torch::autograd::AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    variable_list result(kInputs);
    if (!grads[0].defined()) return result;
    const auto given = [](const at::Tensor& x) {
      return x.defined() ? std::optional(x) : std::nullopt;
    };
    const AttentionMasks masks = {given(saved[5]), given(saved[6])};
    const auto integers = ctx->saved_data.at("integers").toIntVector();
    const auto numbers = ctx->saved_data.at("numbers").toDoubleVector();
    const std::string solver = ctx->saved_data.at("solver").toStringRef();
    if (at::GradMode::is_enabled()) {  // a second derivative is wanted: differentiate the composite
      const auto composite = [&](const variable_list& x) {
        return std::get<0>(coordinate_descent_attention_composite_forward(
            x[0], x[1], x[2], x[3], masks.key_mask, masks.mask, integers, numbers, solver));
      };
      differentiate_composite(grads[0], saved, kDifferentiable, composite, result);
      return result;
    }
    std::tie(result[0], result[1], result[2], result[3]) =
        backward_operator().call(grads[0], saved[0], saved[1], saved[2], saved[3], masks.key_mask,
                                 masks.mask, saved[4], integers, numbers, solver);
    const at::Tensor& budget = saved[3];
    result[3] = budget.requires_grad()
                    ? at::sum_to(result[3], budget.sym_sizes()).to(budget.scalar_type())
                    : at::Tensor();
    return result;
  }

 private:
  static constexpr std::size_t kInputs = 9, kDifferentiable = 4;
};

std::tuple<at::Tensor, at::Tensor> forward_autograd(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& budget, const OptionalTensor& key_mask, const OptionalTensor& mask,
    at::IntArrayRef integers, at::ArrayRef<double> numbers, std::string_view solver) {
  auto outputs =
      CoordinateDescentAttention::apply(query, key, value, budget, key_mask, mask, integers.vec(),
                                        numbers.vec(), std::string(solver));
  return {outputs[0], outputs[1]};
}

TORCH_LIBRARY_IMPL(weir, CompositeImplicitAutograd, m) {
  m.impl("coordinate_descent_attention", front);
  m.impl("coordinate_descent_attention.number", front_number);
}
TORCH_LIBRARY_IMPL(weir, Meta, m) {
  m.impl("_coordinate_descent_attention", forward_meta);
  m.impl("_coordinate_descent_attention_backward", backward_meta);
}
TORCH_LIBRARY_IMPL(weir, Autograd, m) { m.impl("_coordinate_descent_attention", forward_autograd); }

}  // namespace

at::Tensor coordinate_descent_attention(const at::Tensor& query, const at::Tensor& key,
                                        const at::Tensor& value, const at::Tensor& budget,
                                        const AttentionMasks& masks, const Options& options) {
  const Rule rule = rule_of(query, options);
  return std::get<0>(forward_operator().call(query, key, value, budget, masks.key_mask, masks.mask,
                                             rule.integers(), rule.numbers(), rule.solver));
}

at::Tensor coordinate_descent_attention(const at::Tensor& query, const at::Tensor& key,
                                        const at::Tensor& value, double budget,
                                        const AttentionMasks& masks, const Options& options) {
  return coordinate_descent_attention(query, key, value, checked_budget(kOp, budget, query), masks,
                                      options);
}

at::Tensor coordinate_descent_attention_composite(const at::Tensor& query, const at::Tensor& key,
                                                  const at::Tensor& value, const at::Tensor& budget,
                                                  const AttentionMasks& masks,
                                                  const Options& options) {
  const Rule rule = rule_of(query, options);
  return std::get<0>(coordinate_descent_attention_composite_forward(
      query, key, value, budget, masks.key_mask, masks.mask, rule.integers(), rule.numbers(),
      rule.solver));
}

}  // namespace weir::ops
