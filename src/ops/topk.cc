// SPDX-License-Identifier: Apache-2.0
// topk: hard top-k with the gradient of coordinate_descent, composed of operators on every device.
#include "weir/ops/topk.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/where.h>
#include <torch/library.h>

#include <cmath>
#include <limits>
#include <tuple>

#include "ops/checks.h"
#include "weir/ops/coordinate_descent.h"

namespace weir::ops {
namespace {

double lowest(at::ScalarType dtype) {
  return -(dtype == at::kDouble     ? std::numeric_limits<double>::max()
           : dtype == at::kHalf     ? 65504.0
           : dtype == at::kBFloat16 ? 3.3895313892515355e38
                                    : static_cast<double>(std::numeric_limits<float>::max()));
}

void check(const at::Tensor& scores, std::int64_t k, const TopkOptions& options) {
  check_scores("topk", scores);
  TORCH_CHECK_VALUE(k >= 1 && k <= scores.sym_size(-1), "weir::topk: expected `k` to lie in [1, ",
                    scores.sym_size(-1), "], the length of a row of `scores`, but got ", k, ".");
  TORCH_CHECK_VALUE(options.coor_descent_k_ratio >= 1,
                    "weir::topk: expected `coor_descent_k_ratio` to be at least 1, but got ",
                    options.coor_descent_k_ratio, ".");
}

}  // namespace

TopkResult topk(const at::Tensor& scores, std::int64_t k, const std::optional<at::Tensor>& mask,
                const TopkOptions& options) {
  check(scores, k, options);
  check_mask("topk", scores, mask);
  const at::Tensor kept =
      mask ? scores.masked_fill(mask->logical_not(), lowest(scores.scalar_type())) : scores;
  if (options.non_differentiable) {
    auto [values, indices] = at::topk(kept, k);
    return {.values = values, .indices = indices, .coor_descent_values = {}, .gates = {}};
  }
  // Under tracing the length may be symbolic; only a budget that reaches it pins it down.
  const c10::SymInt cols = scores.sym_size(-1);
  double budget = static_cast<double>(k) * options.coor_descent_k_ratio;
  if (cols < static_cast<std::int64_t>(std::ceil(budget))) {
    budget = static_cast<double>(cols.guard_int(__FILE__, __LINE__));
  }
  const at::Tensor weights = coordinate_descent(scores, budget, mask,
                                                {.n_iters = options.n_iters,
                                                 .eps = options.eps,
                                                 .eps_init = options.eps_init,
                                                 .eps_decay = options.eps_decay,
                                                 .solver = options.solver});
  at::Tensor gates = weights + (1 - weights).detach();  // 1, with the gradient of the weights
  if (mask) gates = gates.masked_fill(mask->logical_not(), 0);
  const at::Tensor indices = std::get<1>(at::topk(kept, k));
  const at::Tensor values = (kept * (mask ? gates.masked_fill(mask->logical_not(), 1) : gates));
  return {.values = values.gather(-1, indices),
          .indices = indices,
          .coor_descent_values = weights.gather(-1, indices),
          .gates = gates.gather(-1, indices)};
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> front(
    const at::Tensor& scores, std::int64_t k, double coor_descent_k_ratio, std::int64_t n_iters,
    double eps, std::optional<double> eps_init, double eps_decay,
    const std::optional<at::Tensor>& mask, std::string_view solver, bool non_differentiable) {
  TopkResult result = topk(scores, k, mask,
                           {.coor_descent_k_ratio = coor_descent_k_ratio,
                            .n_iters = n_iters,
                            .eps = eps,
                            .eps_init = eps_init,
                            .eps_decay = eps_decay,
                            .solver = std::string(solver),
                            .non_differentiable = non_differentiable});
  return {result.values, result.indices, result.coor_descent_values, result.gates};
}

TORCH_LIBRARY_IMPL(weir, CompositeImplicitAutograd, m) { m.impl("topk", front); }

}  // namespace
}  // namespace weir::ops
