// SPDX-License-Identifier: Apache-2.0
// The heavy branch of CoLT5's attention layers: routers choose queries and what they attend to.
//
//   q = q_router(x), kv = kv_router(context)      the tokens chosen, and their scores
//   heavy = HeavyAttention(q, context = kv, values times the scores of kv) times the scores of q
//   -> heavy at the places of q, the null token elsewhere
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>

#include "weir/nn/coordinate_descent_router.h"
#include "weir/nn/heavy_attention.h"

namespace weir::nn {

/// One side of a routed attention: tokens (batch, n, dim) and how many of them to route.
struct RoutedFrom {
  at::Tensor tokens;
  NumTokens num_tokens;
  CoordinateDescentRouterInputs inputs = {};
};

/// The parts of a layer that its heavy branch uses; holders, not copies.
struct HeavyBranch {
  CoordinateDescentRouter q_router, kv_router;
  HeavyAttention attention;
  at::Tensor null_q_token = {};  ///< (dim); undefined: 0
  bool multiply_queries_by_score = false;
  std::optional<at::Tensor> inv_freq = std::nullopt;  ///< rotary embedding

  /// What the queries get: (batch, n, dim), of their dtype. A side that has no more tokens than
  /// are to be routed is taken whole: without scores, and without a copy for each route.
  at::Tensor forward(const RoutedFrom& queries, const RoutedFrom& context);
};

/// Each route gets an equal share of the heads.
void check_routes(std::string_view module, std::string_view option, std::int64_t routes,
                  std::string_view heads_option, std::int64_t heads);

}  // namespace weir::nn
