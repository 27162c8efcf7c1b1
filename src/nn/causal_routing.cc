// SPDX-License-Identifier: Apache-2.0
// Strict causal routing. Similarities are computed once for all windows; what a window costs beside
// them is one threshold and the selection.
#include "nn/causal_routing.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/full.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <vector>

#include "nn/check.h"
#include "nn/largest.h"
#include "weir/ops/prefix_thresholds.h"

namespace weir::nn {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// (batch, n) -> (batch, windows, window), -inf behind the end.
at::Tensor in_windows(const at::Tensor& s, const CausalRoutingRule& rule) {
  const std::int64_t windows = rule.windows(s.size(1));
  return at::constant_pad_nd(s, {0, windows * rule.window - s.size(1)}, -kInfinity)
      .unflatten(1, {windows, rule.window});
}

// Positions in the sequence of those in a window: (..., windows, k).
at::Tensor in_sequence(const at::Tensor& index, const CausalRoutingRule& rule) {
  return index + at::arange(index.size(-2), index.options()).unsqueeze(-1) * rule.window;
}

// exp(min(s + a, 0) / eps) where `mask`, and 0 elsewhere; no gradient meets an infinity.
at::Tensor weights(const at::Tensor& distance, const at::Tensor& mask, double eps) {
  const at::Tensor finite = distance.masked_fill((mask & (distance < kInfinity)).logical_not(), 0);
  return (finite.clamp_max(0) / eps).exp().masked_fill(mask.logical_not(), 0);
}

CausalRoutes finished(at::Tensor positions, const at::Tensor& scores, const at::Tensor& mask,
                      const CausalRoutingRule& rule) {
  // Not y + (1 - y): that may round to less than 1.
  const at::Tensor given = rule.straight_through ? 1 + (scores - scores.detach()) : scores;
  return {.positions = std::move(positions),
          .scores = given.masked_fill(mask.logical_not(), 0),
          .mask = mask};
}

// All tokens of all windows.
CausalRoutes whole(const at::Tensor& cut, const CausalRoutingRule& rule) {
  const at::Tensor mask = cut > -kInfinity;
  const at::Tensor index = at::arange(rule.window, mask.options().dtype(at::kLong));
  return {.positions = in_sequence(index.expand(cut.sizes()), rule),
          .scores = mask.to(cut.scalar_type()),
          .mask = mask};
}

// (batch, windows): of what comes before each window.
at::Tensor thresholds(const at::Tensor& s, const CausalRoutingRule& rule) {
  std::vector<std::int64_t> lengths;
  std::vector<double> budgets;
  for (std::int64_t m = 1; m < rule.windows(s.size(1)); ++m) {
    lengths.push_back(m * rule.window);
    budgets.push_back(static_cast<double>(m * rule.budget));
  }
  const auto options = s.options().dtype(at::kDouble).requires_grad(false);
  const at::Tensor first = at::full({s.size(0), 1}, rule.first_threshold(), options);
  return at::cat(
      {first, ops::prefix_thresholds(s, lengths, at::tensor(budgets, options), rule.threshold)}, 1);
}

// Of a prefix of `length` positions.
double budget_of_prefix(std::int64_t number, std::int64_t length, const CausalRoutingRule& rule) {
  return std::min(static_cast<double>(number) * rule.fetch_k_ratio, static_cast<double>(length));
}

}  // namespace

CausalRoutingRule::CausalRoutingRule(const CoordinateDescentRouterOptions& router,
                                     std::int64_t window_, std::int64_t budget_,
                                     const std::string& threshold_solver,
                                     std::optional<double> tau_)
    : window(window_),
      budget(std::min(budget_, window_)),
      straight_through(router.straight_through),
      fetch_k_ratio(router.fetch_k_ratio),
      threshold(router.solver_options()) {
  solver = threshold;
  threshold.solver = threshold_solver;
  eps = ops::read_out_eps(threshold);
  tau = tau_.value_or(eps * std::numbers::ln2);
}

double CausalRoutingRule::first_threshold() const {
  return eps * std::log(static_cast<double>(budget) / static_cast<double>(window));
}

void check_causal_routing(const char* module, const CoordinateDescentRouterOptions& router,
                          const std::string& autoregressive_routing,
                          const std::string& threshold_solver, std::optional<double> tau) {
  TORCH_CHECK_VALUE(
      autoregressive_routing == "strict" || autoregressive_routing == "window", "weir::", module,
      ": expected `autoregressive_routing` to be \"strict\" or \"window\", but got \"",
      autoregressive_routing, "\".");
  TORCH_CHECK_VALUE(threshold_solver == "exact" || threshold_solver == "iterative",
                    "weir::", module,
                    ": expected `threshold_solver` to be \"exact\" or \"iterative\", but got \"",
                    threshold_solver, "\".");
  TORCH_CHECK_VALUE(!tau || (std::isfinite(*tau) && *tau >= 0), "weir::", module,
                    ": expected `tau` to be finite and at least 0, but got ", tau.value_or(0), ".");
  TORCH_CHECK_VALUE(!router.route_block_size, "weir::", module,
                    ": expected no `route_block_size` in a causal layer, whose windows are the "
                    "blocks, but got ",
                    router.route_block_size.value_or(0), ".");
  TORCH_CHECK_VALUE(router.router_type == "coor_descent" && router.select_by == "similarity",
                    "weir::", module,
                    ": expected `router_type` \"coor_descent\" and `select_by` \"similarity\" in "
                    "a causal layer, but got \"",
                    router.router_type, "\" and \"", router.select_by, "\".");
}

CausalRoutes route_strictly(const at::Tensor& s, const CausalRoutingRule& rule) {
  const at::Tensor cut = in_windows(s, rule);  // (batch, windows, window)
  if (rule.budget == rule.window) return whole(cut, rule);
  const at::Tensor distance = cut + thresholds(s, rule).unsqueeze(-1);
  const at::Tensor candidate = (distance.detach() >= -rule.tau) & (cut > -kInfinity);
  const at::Tensor routed = candidate & (candidate.cumsum(-1) <= rule.budget);
  // A stable sort puts what is routed first, in its order.
  const at::Tensor index =
      std::get<1>(routed.logical_not().sort(/*stable=*/std::optional(true), -1))
          .narrow(-1, 0, rule.budget);
  const at::Tensor scores = weights(distance, routed, rule.eps).to(s.scalar_type());
  return finished(in_sequence(index, rule), scores.gather(-1, index), routed.gather(-1, index),
                  rule);
}

CausalRoutes route_whole_windows(const at::Tensor& s, const CausalRoutingRule& rule, bool random) {
  const at::Tensor cut = in_windows(s, rule);
  if (rule.budget == rule.window) return whole(cut, rule);
  const at::Tensor scores =
      random ? cut
             : ops::coordinate_descent(cut, budget_of_prefix(rule.budget, rule.window, rule), {},
                                       rule.solver);
  const at::Tensor index = indices_of_largest(cut.detach(), rule.budget);
  return finished(in_sequence(index, rule), scores.gather(-1, index),
                  cut.gather(-1, index) > -kInfinity, rule);
}

CausalRoutes route_prefixes(const at::Tensor& s, const CausalRoutingRule& rule, std::int64_t number,
                            bool random) {
  const std::int64_t windows = rule.windows(s.size(2)), w = rule.window;
  const std::int64_t most = std::min(number, (windows - 1) * w);
  const at::Tensor detached = s.detach();
  const auto longs = s.options().dtype(at::kLong).requires_grad(false);
  // The largest of a longer prefix are among those of the shorter one and what came since.
  at::Tensor kept = at::arange(0, longs).expand({s.size(0), s.size(1), 0});
  std::vector<at::Tensor> positions, masks;
  std::vector<std::int64_t> lengths;
  std::vector<double> budgets;
  for (std::int64_t m = 1; m < windows; ++m) {
    const at::Tensor added = at::arange((m - 1) * w, m * w, longs);
    kept = at::cat({kept, added.expand({s.size(0), s.size(1), w})}, 2);
    if (kept.size(2) > number) {
      const at::Tensor best = indices_of_largest(detached.gather(2, kept), number);
      kept = kept.gather(2, std::get<0>(best.sort(-1)));
    }
    const std::int64_t missing = most - kept.size(2);
    positions.push_back(at::constant_pad_nd(kept, {0, missing}, 0));
    masks.push_back(at::arange(most, longs) < kept.size(2));
    lengths.push_back(m * w);
    budgets.push_back(budget_of_prefix(number, m * w, rule));
  }
  const at::Tensor places = at::stack(positions, 2);  // (batch, routes, windows - 1, most)
  const at::Tensor mask = at::stack(masks).expand(places.sizes());
  at::Tensor scores = s.gather(2, places.flatten(2)).view(places.sizes());
  if (!random) {
    const auto options = s.options().dtype(at::kDouble).requires_grad(false);
    const at::Tensor a =
        ops::prefix_thresholds(s, lengths, at::tensor(budgets, options), rule.solver);
    scores =
        weights(scores + a.unsqueeze(-1), mask, ops::read_out_eps(rule.solver)).to(s.scalar_type());
  }
  const at::Tensor is_whole = (at::tensor(lengths, longs) <= number).view({-1, 1});
  return finished(places, scores.masked_fill(is_whole, 1), mask, rule);
}

std::pair<at::Tensor, at::Tensor> route_token(const at::Tensor& s, const at::Tensor& positions,
                                              const CausalRoutingRule& rule) {
  const at::Tensor place = positions.unsqueeze(1);  // (batch, 1)
  const at::Tensor window = place.div(rule.window, "floor"), begin = window * rule.window;
  const at::Tensor slot = at::arange(s.size(1), positions.options());
  const at::Tensor own = s.gather(1, place);
  if (rule.budget == rule.window)
    return {(own > -kInfinity).squeeze(1), at::ones_like(own).squeeze(1)};
  const at::Tensor before = s.masked_fill(slot >= begin, -kInfinity);
  const at::Tensor budgets = (window * rule.budget).clamp_min(1).to(at::kDouble);
  const at::Tensor a =
      at::where(window == 0, rule.first_threshold(),
                ops::prefix_thresholds(before, {s.size(1)}, budgets, rule.threshold));
  const at::Tensor candidate = (s + a >= -rule.tau) & (s > -kInfinity);
  const at::Tensor count = (candidate & (slot >= begin) & (slot <= place)).sum(1, /*keepdim=*/true);
  const at::Tensor routed = candidate.gather(1, place) & (count <= rule.budget);
  const at::Tensor score = rule.straight_through
                               ? at::ones_like(own)
                               : weights(own + a, routed, rule.eps).to(s.scalar_type());
  return {routed.squeeze(1), score.squeeze(1)};
}

CausalRoutes route_prefix_of_token(const at::Tensor& s, const at::Tensor& positions,
                                   const CausalRoutingRule& rule, std::int64_t number) {
  const std::int64_t most = std::min(number, s.size(2));
  const at::Tensor length = (positions.div(rule.window, "floor") * rule.window).view({-1, 1, 1});
  const at::Tensor slot = at::arange(s.size(2), positions.options());
  const at::Tensor before = s.masked_fill(slot >= length, -kInfinity);
  const at::Tensor places = std::get<0>(indices_of_largest(before, most).sort(-1));
  const at::Tensor mask = places < length;
  at::Tensor scores = mask.to(s.scalar_type());
  if (!rule.straight_through) {
    const at::Tensor wide = length.to(at::kDouble);
    const at::Tensor budgets =
        at::minimum(at::full_like(wide, static_cast<double>(number) * rule.fetch_k_ratio), wide)
            .clamp_min(1);
    const at::Tensor a = ops::prefix_thresholds(before, {s.size(2)}, budgets, rule.solver);
    const at::Tensor y = weights(before.gather(2, places) + a, mask, ops::read_out_eps(rule.solver))
                             .to(s.scalar_type());
    scores = at::where(length <= number, scores, y);
  }
  return {.positions = places.unsqueeze(2),
          .scores = scores.masked_fill(mask.logical_not(), 0).unsqueeze(2),
          .mask = mask.unsqueeze(2)};
}

}  // namespace weir::nn
