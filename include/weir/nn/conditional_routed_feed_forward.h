// SPDX-License-Identifier: Apache-2.0
// Feed-forward layer in two branches: a light one for every token, a heavy one for those that a
// router chooses.
//
//   x (batch, n, dim) -> light(x) + score * heavy(x) at the chosen tokens, light(x) elsewhere
//
// With `heavy_window_size` the choice is causal: so many tokens of each window, by what came
// before.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/any.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>

#include "weir/export.h"
#include "weir/nn/coordinate_descent_router.h"
#include "weir/nn/feed_forward.h"
#include "weir/nn/key_values.h"
#include "weir/nn/module.h"
#include "weir/nn/router_kwargs.h"

namespace weir::nn {

struct CausalRoutingRule;

/// The arguments of the published `ConditionalRoutedFeedForward`, and those of causal routing.
struct ConditionalRoutedFeedForwardOptions {
  std::int64_t dim = 0;
  std::int64_t num_heavy_tokens = 0;
  double light_ff_mult = 0.5;
  double heavy_ff_mult = 4;
  bool router_straight_through = true;
  RouterKwargs router_kwargs = {};
  std::optional<std::int64_t> heavy_window_size = std::nullopt;
  std::string autoregressive_routing = "strict";
  std::string threshold_solver = "exact";
  std::optional<double> tau = std::nullopt;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = ConditionalRoutedFeedForwardOptions;
    field("dim", &Self::dim, "Feature size of the tokens; required.");
    field("num_heavy_tokens", &Self::num_heavy_tokens,
          "Tokens that the heavy branch takes, of a row or of each window; required.");
    field("light_ff_mult", &Self::light_ff_mult,
          "Hidden units of the light branch as a multiple of dim.");
    field("heavy_ff_mult", &Self::heavy_ff_mult, "The same of the heavy branch.");
    field("router_straight_through", &Self::router_straight_through,
          "Scores are 1 in value and have the gradient of coordinate descent.");
    field("router_kwargs", &Self::router_kwargs, "More options of the router.");
    field("heavy_window_size", &Self::heavy_window_size,
          "Causal, and num_heavy_tokens of each window of so many positions; none: of the row.");
    field("autoregressive_routing", &Self::autoregressive_routing,
          "Of a causal layer. strict: whether a token is routed depends on earlier ones only. "
          "window: the best of a whole window; non-causal in selection.");
    field("threshold_solver", &Self::threshold_solver,
          "Of the thresholds of strict routing: exact or iterative.");
    field("tau", &Self::tau,
          "Strict routing takes similarities down to so much below the threshold; none: eps ln 2, "
          "a score of 1/2.");
  }
};

/// Optional arguments of `forward`.
struct ConditionalRoutedFeedForwardInputs {
  std::optional<at::Tensor> mask = std::nullopt;
  std::optional<NumTokens> num_heavy_tokens = std::nullopt;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = ConditionalRoutedFeedForwardInputs;
    field("mask", &Self::mask,
          "Padding: bool (batch, n), true = a token. The light branch has all.");
    field("num_heavy_tokens", &Self::num_heavy_tokens,
          "Another number for this call, or int64 (batch) with one per entry of the batch.");
  }
};

/// Ainslie et al. 2023, "CoLT5", arXiv:2303.09752.
class WEIR_API ConditionalRoutedFeedForwardImpl
    : public torch::nn::Cloneable<ConditionalRoutedFeedForwardImpl> {
 public:
  /// Throws c10::ValueError on options that do not fit.
  explicit ConditionalRoutedFeedForwardImpl(const ConditionalRoutedFeedForwardOptions& options);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// (batch, n, dim) -> (batch, n, dim). With n <= num_heavy_tokens every token takes the heavy
  /// branch, and the router learns nothing. Throws c10::Error on arguments that do not fit.
  at::Tensor forward(const at::Tensor& x, const ConditionalRoutedFeedForwardInputs& inputs = {});

  /// The same for `x` (batch, m, dim), the next tokens of rows of any lengths: `positions` (batch,
  /// m) counts up from the length of each row, the longest of which is `length` with these. Not
  /// differentiable. Throws c10::Error unless causal and strict.
  at::Tensor step(const at::Tensor& x, const at::Tensor& positions, std::int64_t length,
                  KeyValues& past);

  /// A `past` without tokens: the similarities of the router, with room for `max_length`.
  KeyValues make_cache(std::int64_t batch, std::int64_t max_length) const;

  ConditionalRoutedFeedForwardOptions options;
  CoordinateDescentRouter router{nullptr};
  FeedForward light_ff{nullptr}, heavy_ff{nullptr};

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(ConditionalRoutedFeedForwardInputs())})

 private:
  CausalRoutingRule rule(std::int64_t num_heavy_tokens) const;
  at::Tensor causal(const at::Tensor& x, const ConditionalRoutedFeedForwardInputs& inputs);
  at::Tensor add_heavy(const at::Tensor& x, const at::Tensor& tokens, const at::Tensor& scores,
                       const at::Tensor& positions);
};

WEIR_MODULE(ConditionalRoutedFeedForward);

}  // namespace weir::nn
