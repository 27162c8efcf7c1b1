// SPDX-License-Identifier: Apache-2.0
// Feed-forward layer gated by GELU.
#include "weir/nn/local_feed_forward.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/gelu.h>

#include "nn/check.h"

namespace weir::nn {
namespace {

constexpr auto kName = "LocalFeedForward";

}  // namespace

LocalFeedForwardImpl::LocalFeedForwardImpl(const LocalFeedForwardOptions& options_)
    : options(options_) {
  check_size(kName, "dim", options.dim);
  const double units = static_cast<double>(options.dim) * options.mult * 2 / 3;
  TORCH_CHECK_VALUE(units >= 1 && units <= 1 << 30, "weir::", kName,
                    ": expected `dim` * `mult` * 2 / 3 to lie in [1, ", 1 << 30, "], but got ",
                    options.dim, " * ", options.mult, " * 2 / 3.");
  check_share(kName, "dropout", options.dropout);
  reset();
}

void LocalFeedForwardImpl::reset() {
  const auto without_bias = [](std::int64_t in, std::int64_t out) {
    return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(false));
  };
  norm = register_module("0", torch::nn::LayerNorm(torch::nn::LayerNormOptions({options.dim})));
  proj_in = register_module("1", without_bias(options.dim, 2 * hidden()));
  proj_out = register_module("4", without_bias(hidden(), options.dim));
}

at::Tensor LocalFeedForwardImpl::forward(const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) == options.dim, "weir::", kName,
                    ": expected the last dimension of `x` to be ", options.dim, ", but got ",
                    x.sizes(), ".");
  const auto halves = proj_in(norm(x)).chunk(2, -1);
  const at::Tensor units = halves[0] * at::gelu(halves[1]);  // (..., hidden)
  return proj_out(at::dropout(units, options.dropout, is_training()));
}

std::int64_t LocalFeedForwardImpl::hidden() const {
  return static_cast<std::int64_t>(static_cast<double>(options.dim) * options.mult * 2 / 3);
}

void LocalFeedForwardImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::" << kName << "(dim=" << options.dim << ", hidden=" << hidden() << ")";
}

}  // namespace weir::nn
