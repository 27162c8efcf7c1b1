// SPDX-License-Identifier: Apache-2.0
// Routing by coordinate descent. Blocks are a view of the similarities, padded with -inf; the
// tokens themselves, n * dim numbers each, are only multiplied once and gathered.
#include "weir/nn/coordinate_descent_router.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/scatter.h>
#include <ATen/ops/sort.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "nn/check.h"
#include "nn/largest.h"
#include "nn/route_blocks.h"
#include "nn/tokens_at.h"
#include "weir/ops/router_logits.h"

namespace weir::nn {
namespace {

constexpr auto kName = "CoordinateDescentRouter";
constexpr double kInfinity = std::numeric_limits<double>::infinity();

ops::CoordinateDescentOptions checked(const CoordinateDescentRouterOptions& options) {
  check_size(kName, "dim", options.dim);
  TORCH_CHECK_VALUE(std::isfinite(options.fetch_k_ratio) && options.fetch_k_ratio >= 1,
                    "weir::", kName,
                    ": expected `fetch_k_ratio` to be finite and at least 1, but got ",
                    options.fetch_k_ratio, ".");
  check_size(kName, "num_routing_tokens", options.num_routing_tokens);
  check_positive(kName, "cosine_sim_scale", options.cosine_sim_scale);
  if (options.route_block_size) check_size(kName, "route_block_size", *options.route_block_size);
  TORCH_CHECK_VALUE(options.select_by == "similarity" || options.select_by == "scores",
                    "weir::", kName,
                    ": expected `select_by` to be \"similarity\" or \"scores\", but got \"",
                    options.select_by, "\".");
  const bool descends = options.router_type == "coor_descent";
  TORCH_CHECK_VALUE(
      descends || options.router_type == "cum_softmax", "weir::", kName,
      ": expected `router_type` to be \"coor_descent\" or \"cum_softmax\", but got \"",
      options.router_type, "\".");
  TORCH_CHECK_VALUE(
      descends || options.select_by == "similarity", "weir::", kName,
      ": expected `select_by` \"similarity\" with `router_type` \"cum_softmax\", whose "
      "scores do not grow with similarity.");
  check_positive(kName, "temperature", options.temperature);
  const auto solver = options.solver_options();
  check_coordinate_descent(kName, solver, {"n_iters", "eps", "eps_init", "eps_decay", "solver"});
  return solver;
}

void check_routing_tokens(const std::optional<at::Tensor>& tokens, const at::Tensor& x,
                          const CoordinateDescentRouterOptions& options) {
  TORCH_CHECK_VALUE(tokens.has_value() == options.learned_routing_tokens, "weir::", kName,
                    ": expected `routing_tokens` with `learned_routing_tokens`, and only then.");
  if (!tokens) return;
  const std::int64_t r = options.num_routing_tokens;
  const bool fits = (tokens->dim() == 2 && r == 1) || (tokens->dim() == 3 && tokens->size(1) == r);
  TORCH_CHECK_VALUE(fits && tokens->size(0) == x.size(0) && tokens->size(-1) == x.size(-1),
                    "weir::", kName, ": expected `routing_tokens` to have shape [", x.size(0), ", ",
                    r, ", ", x.size(-1), "], but got ", tokens->sizes(), ".");
}

/// The smallest and the largest number of tokens of a row.
std::pair<std::int64_t, std::int64_t> checked_range(const NumTokens& num_tokens,
                                                    const at::Tensor& x) {
  const at::Tensor& numbers = num_tokens.per_entry;
  if (!numbers.defined()) {
    check_at_least(kName, "num_tokens", num_tokens.each, 1);
    return {num_tokens.each, num_tokens.each};
  }
  TORCH_CHECK_TYPE(numbers.scalar_type() == at::kLong, "weir::", kName,
                   ": expected `num_tokens` to be int64, but got ", numbers.scalar_type(), ".");
  TORCH_CHECK_VALUE(numbers.dim() == 1 && numbers.size(0) == x.size(0), "weir::", kName,
                    ": expected `num_tokens` to have shape [", x.size(0),
                    "], a number per entry of the batch, but got ", numbers.sizes(), ".");
  if (numbers.numel() == 0) return {1, 1};
  const auto [smallest, largest] = numbers.aminmax();
  check_at_least(kName, "num_tokens", smallest.item<std::int64_t>(), 0);
  return {smallest.item<std::int64_t>(), std::max<std::int64_t>(1, largest.item<std::int64_t>())};
}

at::ScalarType computed_in(const at::Tensor& x) {
  return x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

/// exp(s_j) over the sum of exp(s_i) for s_i up to s_j, along the last axis; 0 where s_j = -inf.
/// The constants are those of the published router.
at::Tensor cumulative_softmax(const at::Tensor& s) {
  const auto [sorted, order] = at::sort(s, /*stable=*/true, /*dim=*/-1, /*descending=*/false);
  const at::Tensor top = sorted.narrow(-1, s.size(-1) - 1, 1).detach();
  const at::Tensor e = (sorted - top.masked_fill(top == -kInfinity, 0)).exp();
  return at::scatter(at::zeros_like(e), -1, order, e / e.cumsum(-1).clamp_min(1e-6));
}

/// All n tokens for every route.
CoordinateDescentRouterOutputs not_routed(const at::Tensor& x,
                                          const std::optional<at::Tensor>& mask,
                                          std::int64_t routes) {
  const std::int64_t batch = x.size(0), n = x.size(1);
  return {.indices = std::nullopt,
          .scores = at::ones({batch, routes, n}, x.options().requires_grad(false)),
          .routed_tokens = x.unsqueeze(1).expand({-1, routes, -1, -1}),
          .routed_mask =
              mask ? std::optional(mask->unsqueeze(1).expand({-1, routes, -1})) : std::nullopt};
}

}  // namespace

CoordinateDescentRouterImpl::CoordinateDescentRouterImpl(
    const CoordinateDescentRouterOptions& options_)
    : options(options_), solver_(checked(options_)) {
  reset();
}

void CoordinateDescentRouterImpl::reset() {
  if (options.learned_routing_tokens) return;
  routing_token =
      register_parameter("routing_token", at::randn({options.num_routing_tokens, options.dim}));
}

CoordinateDescentRouterOutputs CoordinateDescentRouterImpl::forward(
    const at::Tensor& x, const NumTokens& num_tokens, const CoordinateDescentRouterInputs& inputs) {
  // Similarities in 16 bits would lose the threshold.
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  check_tokens(kName, x, options.dim);
  check_padding(kName, inputs.mask, x);
  check_routing_tokens(inputs.routing_tokens, x, options);
  const auto [smallest, largest] = checked_range(num_tokens, x);
  const bool has_routes = options.num_routing_tokens != 1 || inputs.keep_one_route_dim;
  auto out =
      x.size(1) <= smallest
          ? not_routed(x, inputs.mask, options.num_routing_tokens)
          : route(x,
                  RouteBlocks(x.size(1), options.route_block_size, largest, num_tokens.per_entry),
                  inputs);
  if (has_routes) return out;
  if (out.indices) out.indices = out.indices->squeeze(1);
  if (out.routed_mask) out.routed_mask = out.routed_mask->squeeze(1);
  return {.indices = out.indices,
          .scores = out.scores.squeeze(1),
          .routed_tokens = out.routed_tokens.squeeze(1),
          .routed_mask = out.routed_mask};
}

// All results with a dimension of routes.
CoordinateDescentRouterOutputs CoordinateDescentRouterImpl::route(
    const at::Tensor& x, const RouteBlocks& blocks,
    const CoordinateDescentRouterInputs& inputs) const {
  const std::int64_t batch = x.size(0), n = x.size(1), routes = options.num_routing_tokens;
  at::Tensor s = inputs.random_route
                     ? at::randn({batch, routes, n}, x.options().dtype(computed_in(x)))
                     : similarities(x, inputs.routing_tokens);
  if (inputs.mask) s = s.masked_fill(inputs.mask->logical_not().unsqueeze(1), -kInfinity);
  const at::Tensor cut = blocks.cut(s);  // (batch, routes, count, size)
  at::Tensor y = cut, by = cut;
  if (!inputs.random_route) {
    y = options.router_type == "cum_softmax"
            ? cumulative_softmax(cut / options.temperature)
            : ops::coordinate_descent(cut, blocks.budget(options.fetch_k_ratio, cut), {}, solver_);
    y = blocks.with_ones(y);
    // A score may be 0 for a valid token too; a masked one comes behind it.
    if (options.select_by == "scores") by = y.masked_fill(cut == -kInfinity, -1);
  }
  const at::Tensor index = indices_of_largest(by.detach(), blocks.take);
  const at::Tensor indices = blocks.places(index);       // (batch, routes, k)
  const at::Tensor at_token = indices.clamp_max(n - 1);  // of fillers: the last
  at::Tensor scores = y.gather(-1, index).flatten(2);
  // Not y + (1 - y): that may round to less than 1.
  if (options.straight_through) scores = 1 + (scores - scores.detach());

  CoordinateDescentRouterOutputs out;
  out.indices = indices;
  out.scores = scores.to(x.scalar_type());
  if (inputs.mask || blocks.has_fillers()) {
    at::Tensor kept = indices < n;
    if (inputs.mask) {
      kept = kept & inputs.mask->unsqueeze(1).expand({-1, routes, -1}).gather(2, at_token);
    }
    out.scores = out.scores.masked_fill(kept.logical_not(), 0);
    out.routed_mask = kept;
  }
  out.routed_tokens = tokens_at(x, indices);
  return out;
}

// (batch, routes, n), in float32 at least.
at::Tensor CoordinateDescentRouterImpl::similarities(
    const at::Tensor& x, const std::optional<at::Tensor>& external) const {
  const at::Tensor tokens =
      external ? external->view({x.size(0), options.num_routing_tokens, options.dim})
               : routing_token;
  return ops::router_logits(x, tokens,
                            {.cosine = options.cosine_sim_routing,
                             .scale = options.cosine_sim_routing ? options.cosine_sim_scale : 1});
}

void CoordinateDescentRouterImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::" << kName << "(dim=" << options.dim;
  if (options.learned_routing_tokens) stream << ", learned_routing_tokens=true";
  stream << ", num_routing_tokens=" << options.num_routing_tokens << ", eps=" << options.eps
         << ", solver=" << options.solver;
  if (options.router_type != "coor_descent") stream << ", router_type=" << options.router_type;
  if (options.cosine_sim_routing) stream << ", cosine_sim_scale=" << options.cosine_sim_scale;
  if (options.route_block_size) stream << ", route_block_size=" << *options.route_block_size;
  stream << ")";
}

}  // namespace weir::nn
