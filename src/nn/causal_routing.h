// SPDX-License-Identifier: Apache-2.0
// Routing that does not look ahead. A row of similarities is cut into windows; a token is routed
// by what came before its window and, first come within budget, by the tokens before it inside.
//
//   a_m = threshold of the similarities before window m, with their share of the budget
//   token i of window m is a candidate if s_i + a_m >= -tau; the first `budget` of them are routed
//   its score is exp(min(s_i + a_m, 0) / eps)
//
// Keys and values for window m are the largest similarities before it.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>

#include "weir/nn/coordinate_descent_router.h"
#include "weir/ops/coordinate_descent.h"

namespace weir::nn {

/// What a causal layer decides besides the options of its router.
struct CausalRoutingRule {
  CausalRoutingRule(const CoordinateDescentRouterOptions& router, std::int64_t window,
                    std::int64_t budget, const std::string& threshold_solver,
                    std::optional<double> tau);

  std::int64_t windows(std::int64_t n) const { return (n + window - 1) / window; }
  /// a_0, where nothing came before: the exact threshold of equal similarities of 0.
  double first_threshold() const;

  std::int64_t window, budget;  ///< positions of a window, and how many of them are routed
  bool straight_through;
  double fetch_k_ratio;
  ops::CoordinateDescentOptions threshold;  ///< of strict routing
  double eps;                               ///< with which its scores are read out
  double tau;
  ops::CoordinateDescentOptions solver;  ///< of whole windows, and of keys and values
};

/// The checks of such a layer: a router without blocks that selects by similarity.
void check_causal_routing(const char* module, const CoordinateDescentRouterOptions& router,
                          const std::string& autoregressive_routing,
                          const std::string& threshold_solver, std::optional<double> tau);

/// What is routed, k slots for each window: leading sizes, windows, k.
struct CausalRoutes {
  at::Tensor positions;  ///< int64, in the sequence; anything where `mask` is false
  at::Tensor scores;     ///< float32 at least; 0 where `mask` is false
  at::Tensor mask;       ///< bool
};

/// Of similarities (batch, n), for every window: (batch, windows, min(budget, window)). Entries of
/// -inf are never routed. A budget of a whole window or more routes all, with scores of 1.
CausalRoutes route_strictly(const at::Tensor& similarities, const CausalRoutingRule& rule);

/// The same among all tokens of a window, later ones too. `random`: by N(0, 1), which are then the
/// scores.
CausalRoutes route_whole_windows(const at::Tensor& similarities, const CausalRoutingRule& rule,
                                 bool random);

/// Of similarities (batch, routes, n), for every window but the first: the at most `number` largest
/// before it, (batch, routes, windows - 1, min(number, positions before the last window)), by
/// ascending position. A prefix of no more is taken whole, with scores of 1.
CausalRoutes route_prefixes(const at::Tensor& similarities, const CausalRoutingRule& rule,
                            std::int64_t number, bool random);

/// One token per row of similarities (batch, slots), at `positions` (batch), by strict routing:
/// whether it is routed, and its score, both (batch).
std::pair<at::Tensor, at::Tensor> route_token(const at::Tensor& similarities,
                                              const at::Tensor& positions,
                                              const CausalRoutingRule& rule);

/// The keys and values of that token, of similarities (batch, routes, slots): (batch, routes, 1,
/// min(number, slots)).
CausalRoutes route_prefix_of_token(const at::Tensor& similarities, const at::Tensor& positions,
                                   const CausalRoutingRule& rule, std::int64_t number);

}  // namespace weir::nn
