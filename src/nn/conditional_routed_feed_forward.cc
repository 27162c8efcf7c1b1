// SPDX-License-Identifier: Apache-2.0
// Two branches. What the heavy one gives is added to rows of the light one in place: no tensor of
// zeros, no copy. Masked tokens and fillers have a score of 0 and add nothing.
#include "weir/nn/conditional_routed_feed_forward.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>

#include <limits>
#include <vector>

#include "nn/causal_routing.h"
#include "nn/check.h"
#include "nn/tokens_at.h"

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
  if (options.heavy_window_size) {
    check_size(kName, "heavy_window_size", *options.heavy_window_size);
    check_causal_routing(kName, options.router_kwargs.router(options.dim, true),
                         options.autoregressive_routing, options.threshold_solver, options.tau);
  }
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
  if (options.heavy_window_size) return causal(x, inputs);
  const auto routed = router->forward(x, inputs.num_heavy_tokens.value_or(options.num_heavy_tokens),
                                      {.mask = inputs.mask});
  if (routed.indices) return add_heavy(x, routed.routed_tokens, routed.scores, *routed.indices);
  const auto dtype = x.scalar_type();  // autocast may give others
  return light_ff(x).to(dtype) + heavy_ff(x).to(dtype);
}

at::Tensor ConditionalRoutedFeedForwardImpl::step(const at::Tensor& x, const at::Tensor& positions,
                                                  std::int64_t length, KeyValues& past) {
  at::NoGradGuard no_grad;
  check_tokens(kName, x, options.dim);
  TORCH_CHECK_VALUE(options.heavy_window_size && options.autoregressive_routing == "strict",
                    "weir::", kName,
                    ": expected `heavy_window_size` and `autoregressive_routing` \"strict\" for a "
                    "step: later tokens would change earlier ones.");
  if (x.numel() == 0) return light_ff(x);
  const at::Tensor s = write_slots(past.keys, router->similarities(x).unsqueeze(-1), positions,
                                   length)
                           .flatten(1);        // (batch, length)
  if (length == x.size(1)) return forward(x);  // all rows begin here
  const auto routing = rule(options.num_heavy_tokens);
  std::vector<at::Tensor> factors;  // (batch, 1)
  for (std::int64_t i = 0; i < x.size(1); ++i) {
    const auto [routed, score] = route_token(s, positions.select(1, i), routing);
    factors.push_back(score.masked_fill(routed.logical_not(), 0).unsqueeze(1));
  }
  const at::Tensor factor = at::cat(factors, 1).to(x.scalar_type());
  const at::Tensor out = light_ff(x).to(x.scalar_type());
  const at::Tensor chosen = factor != 0;  // (batch, m)
  const at::Tensor heavy = heavy_ff(x.index({chosen})) * factor.index({chosen}).unsqueeze(-1);
  return out.index_put_({chosen}, heavy.to(out.scalar_type()), /*accumulate=*/true);
}

KeyValues ConditionalRoutedFeedForwardImpl::make_cache(std::int64_t batch,
                                                       std::int64_t max_length) const {
  const auto options_of_rows = router->routing_token.options();
  const auto wide = options_of_rows.dtype() == at::kDouble ? at::kDouble : at::kFloat;
  KeyValues past = blank_key_values(batch, 1, max_length, 1, options_of_rows.dtype(wide));
  past.values = past.keys.narrow(-1, 0, 0);
  return past;
}

CausalRoutingRule ConditionalRoutedFeedForwardImpl::rule(std::int64_t num_heavy_tokens) const {
  return {router->options, *options.heavy_window_size, num_heavy_tokens, options.threshold_solver,
          options.tau};
}

// Routing by windows, from what came before each.
at::Tensor ConditionalRoutedFeedForwardImpl::causal(
    const at::Tensor& x, const ConditionalRoutedFeedForwardInputs& inputs) {
  const NumTokens number = inputs.num_heavy_tokens.value_or(options.num_heavy_tokens);
  TORCH_CHECK_VALUE(!number.per_entry.defined(), "weir::", kName,
                    ": expected `num_heavy_tokens` to be one number in a causal layer, but got a "
                    "tensor.");
  check_size(kName, "num_heavy_tokens", number.each);
  if (x.size(1) == 0) return light_ff(x);
  at::Tensor s = router->similarities(x).squeeze(1);
  if (inputs.mask) {
    s = s.masked_fill(inputs.mask->logical_not(), -std::numeric_limits<double>::infinity());
  }
  const auto routing = rule(number.each);
  const CausalRoutes routes = options.autoregressive_routing == "strict"
                                  ? route_strictly(s, routing)
                                  : route_whole_windows(s, routing, /*random=*/false);
  const at::Tensor positions = routes.positions.flatten(1);
  return add_heavy(x, tokens_at(x, positions), routes.scores.flatten(1), positions);
}

// The light branch of `x`, and `scores` (batch, k) times the heavy one of `tokens` (batch, k, dim)
// at `positions` (batch, k). Fillers have a score of 0.
at::Tensor ConditionalRoutedFeedForwardImpl::add_heavy(const at::Tensor& x,
                                                       const at::Tensor& tokens,
                                                       const at::Tensor& scores,
                                                       const at::Tensor& positions) {
  const auto dtype = x.scalar_type();  // autocast may give others
  const at::Tensor light = light_ff(x).to(dtype);
  const at::Tensor heavy = heavy_ff(tokens).to(dtype) * scores.to(dtype).unsqueeze(-1);
  return light.flatten(0, 1)
      .index_add_(0, rows_of(positions, x.size(1)).flatten(), heavy.flatten(0, 1))
      .view(x.sizes());
}

void ConditionalRoutedFeedForwardImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::" << kName << "(dim=" << options.dim
         << ", num_heavy_tokens=" << options.num_heavy_tokens;
  if (options.heavy_window_size) stream << ", heavy_window_size=" << *options.heavy_window_size;
  stream << ")";
}

}  // namespace weir::nn
