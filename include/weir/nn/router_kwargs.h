// SPDX-License-Identifier: Apache-2.0
// `router_kwargs`: what a module with routers of its own hands on to them.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "weir/nn/coordinate_descent_router.h"

namespace weir::nn {

/// The options of `CoordinateDescentRouter` that a module around it does not decide itself.
struct RouterKwargs {
  std::int64_t n_iters = 20;
  double fetch_k_ratio = 9.0 / 8.0;
  double eps = 0.03;
  double eps_decay = 0.7;
  std::optional<double> eps_init = 4.0;
  bool cosine_sim_routing = false;
  double cosine_sim_scale = 8;
  std::optional<std::int64_t> route_block_size = std::nullopt;
  std::string select_by = "similarity";
  std::string solver = "iterative";
  std::string router_type = "coor_descent";
  double temperature = 1;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = RouterKwargs;
    constexpr auto kHelp = "As of CoordinateDescentRouter.";
    field("n_iters", &Self::n_iters, kHelp);
    field("fetch_k_ratio", &Self::fetch_k_ratio, kHelp);
    field("eps", &Self::eps, kHelp);
    field("eps_decay", &Self::eps_decay, kHelp);
    field("eps_init", &Self::eps_init, kHelp);
    field("cosine_sim_routing", &Self::cosine_sim_routing, kHelp);
    field("cosine_sim_scale", &Self::cosine_sim_scale, kHelp);
    field("route_block_size", &Self::route_block_size, kHelp);
    field("select_by", &Self::select_by, kHelp);
    field("solver", &Self::solver, kHelp);
    field("router_type", &Self::router_type, kHelp);
    field("temperature", &Self::temperature, kHelp);
  }

  CoordinateDescentRouterOptions router(std::int64_t dim, bool straight_through,
                                        std::int64_t num_routing_tokens = 1) const {
    return {.dim = dim,
            .straight_through = straight_through,
            .n_iters = n_iters,
            .fetch_k_ratio = fetch_k_ratio,
            .eps = eps,
            .eps_decay = eps_decay,
            .eps_init = eps_init,
            .num_routing_tokens = num_routing_tokens,
            .cosine_sim_routing = cosine_sim_routing,
            .cosine_sim_scale = cosine_sim_scale,
            .route_block_size = route_block_size,
            .select_by = select_by,
            .solver = solver,
            .router_type = router_type,
            .temperature = temperature};
  }
};

}  // namespace weir::nn
