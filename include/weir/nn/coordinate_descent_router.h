// SPDX-License-Identifier: Apache-2.0
// Chooses the tokens that are worth the expensive branch of a layer.
//
//   x (batch, n, dim), one routing token per route -> similarities (batch, routes, n)
//   -> coordinate descent -> scores in [0, 1] -> the num_tokens largest of each row
//
// `router_type` "cum_softmax" has other scores: exp(s_j / temperature) over the sum of those of the
// similarities up to s_j.
//
// Which tokens is a hard choice without a gradient; routing tokens and x learn through the scores,
// with which the caller multiplies what it computes for the chosen tokens.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/any.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>
#include <utility>

#include "weir/export.h"
#include "weir/nn/module.h"
#include "weir/ops/coordinate_descent.h"

namespace weir::nn {

struct RouteBlocks;

/// The arguments of the published `CoordinateDescentRouter`, what it selects by, and the solver.
struct CoordinateDescentRouterOptions {
  std::int64_t dim = 0;
  bool straight_through = true;
  std::int64_t n_iters = 20;
  double fetch_k_ratio = 9.0 / 8.0;
  double eps = 0.03;
  double eps_decay = 0.7;
  std::optional<double> eps_init = 4.0;
  std::int64_t num_routing_tokens = 1;
  bool learned_routing_tokens = false;
  bool cosine_sim_routing = false;
  double cosine_sim_scale = 8;
  std::optional<std::int64_t> route_block_size = std::nullopt;
  std::string select_by = "similarity";
  std::string solver = "iterative";
  std::string router_type = "coor_descent";
  double temperature = 1;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = CoordinateDescentRouterOptions;
    field("dim", &Self::dim, "Feature size of the tokens; required.");
    field("straight_through", &Self::straight_through,
          "Scores are 1 in value and have the gradient of coordinate descent.");
    field("n_iters", &Self::n_iters, "Iterations of the iterative solver.");
    field("fetch_k_ratio", &Self::fetch_k_ratio,
          "Budget of coordinate descent as a multiple of num_tokens; at least 1.");
    field(
        "eps", &Self::eps,
        "Entropy of the scores; smaller is harder. Tokens far above the rest get a score of 1 and "
        "no gradient: with large similarities, choose cosine_sim_routing or a larger eps.");
    field("eps_decay", &Self::eps_decay, "Factor on the entropy from one iteration to the next.");
    field("eps_init", &Self::eps_init, "Entropy of the first iteration; none: eps.");
    field("num_routing_tokens", &Self::num_routing_tokens,
          "Routes: each chooses tokens of its own.");
    field("learned_routing_tokens", &Self::learned_routing_tokens,
          "Routing tokens come with each call; the module has none.");
    field("cosine_sim_routing", &Self::cosine_sim_routing,
          "Cosine similarities, times cosine_sim_scale, instead of dot products.");
    field("cosine_sim_scale", &Self::cosine_sim_scale, "Their largest value.");
    field("route_block_size", &Self::route_block_size,
          "Route an equal share of num_tokens, rounded up, from every block of so many tokens.");
    field("select_by", &Self::select_by,
          "similarity, or scores: among these many may be equal, and the smallest indices win.");
    field("solver", &Self::solver,
          "iterative (n_iters steps) or exact (scores sum to the budget).");
    field("router_type", &Self::router_type,
          "coor_descent, or cum_softmax, a router of the first releases of CoLT5-attention.");
    field("temperature", &Self::temperature, "Of cum_softmax: divides the similarities.");
  }

  /// Those of coordinate descent.
  ops::CoordinateDescentOptions solver_options() const {
    return {.n_iters = n_iters,
            .eps = eps,
            .eps_init = eps_init,
            .eps_decay = eps_decay,
            .solver = solver};
  }
};

/// How many tokens a call routes: one number, or int64 (batch) with a number per entry of the
/// batch, each at least 0.
struct NumTokens {
  NumTokens(std::int64_t number) : each(number) {}                  // NOLINT: router(x, 16)
  NumTokens(at::Tensor numbers) : per_entry(std::move(numbers)) {}  // NOLINT

  std::int64_t each = 0;
  at::Tensor per_entry;  ///< undefined for one number
};

/// Optional arguments of `forward`.
struct CoordinateDescentRouterInputs {
  std::optional<at::Tensor> mask = std::nullopt;
  bool random_route = false;
  std::optional<at::Tensor> routing_tokens = std::nullopt;
  bool keep_one_route_dim = false;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = CoordinateDescentRouterInputs;
    field("mask", &Self::mask, "Padding: bool (batch, n), true = a token.");
    field("random_route", &Self::random_route,
          "Choose at random, as a control: scores are N(0, 1) of torch's generator.");
    field("routing_tokens", &Self::routing_tokens,
          "(batch, dim) for one route, or (batch, num_routing_tokens, dim); with "
          "learned_routing_tokens.");
    field("keep_one_route_dim", &Self::keep_one_route_dim,
          "Results have a dimension of routes also with one route.");
  }
};

/// What was chosen: k tokens per row, in each block by descending similarity (with `select_by`
/// "scores": by score), equal ones by index. Rows are (batch), or (batch, num_routing_tokens) with
/// more than one routing token or with keep_one_route_dim.
///
/// Fillers are entries beyond a row's own number of tokens or beyond the end of the last block:
/// index n or more, score 0, mask false, as token a copy of the last one.
struct CoordinateDescentRouterOutputs {
  std::optional<at::Tensor> indices;      ///< int64 (..., k); none: n <= num_tokens, all are chosen
  at::Tensor scores;                      ///< (..., k), of the dtype of x; 0 where masked
  at::Tensor routed_tokens;               ///< (..., k, dim), rows of x
  std::optional<at::Tensor> routed_mask;  ///< bool (..., k); none: no mask and no fillers

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = CoordinateDescentRouterOutputs;
    field("indices", &Self::indices);
    field("scores", &Self::scores);
    field("routed_tokens", &Self::routed_tokens);
    field("routed_mask", &Self::routed_mask);
  }
};

/// Ainslie et al. 2023, "CoLT5", arXiv:2303.09752; Qian et al. 2022, arXiv:2211.01267.
class WEIR_API CoordinateDescentRouterImpl
    : public torch::nn::Cloneable<CoordinateDescentRouterImpl> {
 public:
  /// Throws c10::ValueError on options that do not fit.
  explicit CoordinateDescentRouterImpl(const CoordinateDescentRouterOptions& options);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// `x` (batch, n, dim). If n <= `num_tokens`, nothing is chosen: `x` itself with scores of 1 and
  /// no gradient to the routing tokens. With a number per entry, k is the largest of them. Where
  /// fewer than that are valid, masked tokens fill up. With route_block_size, k counts what all
  /// blocks give, at least `num_tokens`.
  ///
  /// Computed in float32 at least, also under autocast; `x` is read once and not copied for the
  /// routes. Throws c10::Error on arguments that do not fit.
  CoordinateDescentRouterOutputs forward(const at::Tensor& x, const NumTokens& num_tokens,
                                         const CoordinateDescentRouterInputs& inputs = {});

  /// (batch, n, dim) -> (batch, num_routing_tokens, n): how well each token fits each route, in
  /// float32 at least. `routing_tokens` as in the inputs of `forward`.
  at::Tensor similarities(const at::Tensor& x,
                          const std::optional<at::Tensor>& routing_tokens = std::nullopt) const;

  CoordinateDescentRouterOptions options;
  at::Tensor routing_token;  ///< (num_routing_tokens, dim); undefined if learned_routing_tokens

 protected:
  FORWARD_HAS_DEFAULT_ARGS({2, torch::nn::AnyValue(CoordinateDescentRouterInputs())})

 private:
  CoordinateDescentRouterOutputs route(const at::Tensor& x, const RouteBlocks& blocks,
                                       const CoordinateDescentRouterInputs& inputs) const;

  ops::CoordinateDescentOptions solver_;
};

WEIR_MODULE(CoordinateDescentRouter);

}  // namespace weir::nn
