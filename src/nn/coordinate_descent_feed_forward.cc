// SPDX-License-Identifier: Apache-2.0
// Feed-forward layer with GELU or coordinate descent between its two projections.
#include "weir/nn/coordinate_descent_feed_forward.h"

#include <torch/nn/modules/normalization.h>

#include <algorithm>

#include "nn/check.h"

namespace weir::nn {
namespace {

constexpr auto kName = "CoordinateDescentFeedForward";

}  // namespace

CoordinateDescentFeedForwardImpl::CoordinateDescentFeedForwardImpl(
    const CoordinateDescentFeedForwardOptions& options_)
    : options(options_), solver_(coordinate_descent_options(kName, options_)) {
  check_size(kName, "dim", options.dim);
  const double hidden_units = static_cast<double>(options.dim) * options.mult;
  TORCH_CHECK_VALUE(hidden_units >= 1 && hidden_units <= 1 << 30, "weir::", kName,
                    ": expected `dim` * `mult` to lie in [1, ", 1 << 30, "], but got ", options.dim,
                    " * ", options.mult, ".");
  budget_ = options.coor_descent_sparsity_k.value_or(std::max<std::int64_t>(1, hidden() / 10));
  check_positive(kName, "coor_descent_sparsity_k", budget_);
  reset();
}

void CoordinateDescentFeedForwardImpl::reset() {
  proj_in = register_module(
      "proj_in",
      torch::nn::Sequential(torch::nn::LayerNorm(torch::nn::LayerNormOptions({options.dim})),
                            torch::nn::Linear(options.dim, hidden())));
  proj_out = register_module("proj_out", torch::nn::Linear(hidden(), options.dim));
}

at::Tensor CoordinateDescentFeedForwardImpl::forward(const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) == options.dim, "weir::", kName,
                    ": expected the last dimension of `x` to be ", options.dim, ", but got ",
                    x.sizes(), ".");
  const at::Tensor units = proj_in->forward(x);  // (..., hidden)
  if (!options.use_coor_descent) return proj_out(at::gelu(units));
  const at::Tensor weights = ops::coordinate_descent(units, budget_, std::nullopt, solver_);
  return proj_out(options.coor_descent_gate ? units * weights : weights);
}

std::int64_t CoordinateDescentFeedForwardImpl::hidden() const {
  return static_cast<std::int64_t>(static_cast<double>(options.dim) * options.mult);
}

void CoordinateDescentFeedForwardImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::" << kName << "(dim=" << options.dim << ", hidden=" << hidden();
  if (options.use_coor_descent) {
    stream << ", coor_descent_sparsity_k=" << budget_
           << ", coor_descent_solver=" << options.coor_descent_solver;
    if (options.coor_descent_gate) stream << ", coor_descent_gate=true";
  }
  stream << ")";
}

}  // namespace weir::nn
