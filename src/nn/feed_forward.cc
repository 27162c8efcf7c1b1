// SPDX-License-Identifier: Apache-2.0
// Feed-forward layer whose parameters are named by their places in the published nn.Sequential.
#include "weir/nn/feed_forward.h"

#include <ATen/ops/gelu.h>

#include "nn/check.h"

namespace weir::nn {
namespace {

constexpr auto kName = "FeedForward";

}  // namespace

FeedForwardImpl::FeedForwardImpl(const FeedForwardOptions& options_) : options(options_) {
  check_size(kName, "dim", options.dim);
  check_hidden(kName, "mult", options.dim, options.mult);
  reset();
}

void FeedForwardImpl::reset() {
  norm = register_module("0", L2RMSNorm(options.dim));
  proj_in = register_module("1", torch::nn::Linear(options.dim, hidden()));
  proj_out = register_module("3", torch::nn::Linear(hidden(), options.dim));
}

at::Tensor FeedForwardImpl::forward(const at::Tensor& x) {
  TORCH_CHECK_VALUE(x.dim() >= 1 && x.size(-1) == options.dim, "weir::", kName,
                    ": expected the last dimension of `x` to be ", options.dim, ", but got ",
                    x.sizes(), ".");
  return proj_out(at::gelu(proj_in(norm(x))));
}

std::int64_t FeedForwardImpl::hidden() const {
  return static_cast<std::int64_t>(static_cast<double>(options.dim) * options.mult);
}

void FeedForwardImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::" << kName << "(dim=" << options.dim << ", hidden=" << hidden() << ")";
}

}  // namespace weir::nn
