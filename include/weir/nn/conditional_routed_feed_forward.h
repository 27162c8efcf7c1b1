// SPDX-License-Identifier: Apache-2.0
// Feed-forward layer in two branches: a light one for every token, a heavy one for those that a
// router chooses.
//
//   x (batch, n, dim) -> light(x) + score * heavy(x) at the chosen tokens, light(x) elsewhere
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/any.h>

#include <cstdint>
#include <optional>
#include <ostream>

#include "weir/export.h"
#include "weir/nn/coordinate_descent_router.h"
#include "weir/nn/feed_forward.h"
#include "weir/nn/module.h"
#include "weir/nn/router_kwargs.h"

namespace weir::nn {

/// The arguments of the published `ConditionalRoutedFeedForward`.
struct ConditionalRoutedFeedForwardOptions {
  std::int64_t dim = 0;
  std::int64_t num_heavy_tokens = 0;
  double light_ff_mult = 0.5;
  double heavy_ff_mult = 4;
  bool router_straight_through = true;
  RouterKwargs router_kwargs = {};

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = ConditionalRoutedFeedForwardOptions;
    field("dim", &Self::dim, "Feature size of the tokens; required.");
    field("num_heavy_tokens", &Self::num_heavy_tokens,
          "Tokens of a row that the heavy branch takes; required.");
    field("light_ff_mult", &Self::light_ff_mult,
          "Hidden units of the light branch as a multiple of dim.");
    field("heavy_ff_mult", &Self::heavy_ff_mult, "The same of the heavy branch.");
    field("router_straight_through", &Self::router_straight_through,
          "Scores are 1 in value and have the gradient of coordinate descent.");
    field("router_kwargs", &Self::router_kwargs, "More options of the router.");
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

  ConditionalRoutedFeedForwardOptions options;
  CoordinateDescentRouter router{nullptr};
  FeedForward light_ff{nullptr}, heavy_ff{nullptr};

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(ConditionalRoutedFeedForwardInputs())})
};

WEIR_MODULE(ConditionalRoutedFeedForward);

}  // namespace weir::nn
