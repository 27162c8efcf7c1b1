// SPDX-License-Identifier: Apache-2.0
// Two branches. What the heavy one gives is added to rows of the light one in place: no tensor of
// zeros, no copy. Masked tokens and fillers have a score of 0 and add nothing.
#include "weir/nn/conditional_routed_feed_forward.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>

#include "nn/check.h"

namespace weir::nn {
namespace {

constexpr auto kName = "ConditionalRoutedFeedForward";

}  // namespace

ConditionalRoutedFeedForwardImpl::ConditionalRoutedFeedForwardImpl(
    const ConditionalRoutedFeedForwardOptions& options_)
    : options(options_) {
  check_size(kName, "dim", options.dim);
  check_size(kName, "num_heavy_tokens", options.num_heavy_tokens);
  check_hidden(kName, "light_ff_mult", options.dim, options.light_ff_mult);
  check_hidden(kName, "heavy_ff_mult", options.dim, options.heavy_ff_mult);
  reset();
}

void ConditionalRoutedFeedForwardImpl::reset() {
  const std::int64_t dim = options.dim;
  router = register_module("router", CoordinateDescentRouter(options.router_kwargs.router(
                                         dim, options.router_straight_through)));
  light_ff = register_module("light_ff", FeedForward({.dim = dim, .mult = options.light_ff_mult}));
  heavy_ff = register_module("heavy_ff", FeedForward({.dim = dim, .mult = options.heavy_ff_mult}));
}

at::Tensor ConditionalRoutedFeedForwardImpl::forward(
    const at::Tensor& x, const ConditionalRoutedFeedForwardInputs& inputs) {
  check_tokens(kName, x, options.dim);
  check_padding(kName, inputs.mask, x);
  const auto routed = router->forward(x, inputs.num_heavy_tokens.value_or(options.num_heavy_tokens),
                                      {.mask = inputs.mask});
  const auto dtype = x.scalar_type();  // autocast may give others
  const at::Tensor light = light_ff(x).to(dtype);
  at::Tensor heavy = heavy_ff(routed.routed_tokens).to(dtype);  // (batch, k, dim)
  if (!routed.indices) return light + heavy;
  heavy = heavy * routed.scores.unsqueeze(-1);

  const std::int64_t n = x.size(1);
  const at::Tensor first = at::arange(x.size(0), routed.indices->options()).unsqueeze(1) * n;
  const at::Tensor rows = routed.indices->clamp_max(n - 1) + first;
  return light.flatten(0, 1).index_add_(0, rows.flatten(), heavy.flatten(0, 1)).view(x.sizes());
}

void ConditionalRoutedFeedForwardImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::" << kName << "(dim=" << options.dim
         << ", num_heavy_tokens=" << options.num_heavy_tokens << ")";
}

}  // namespace weir::nn
