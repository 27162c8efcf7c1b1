// SPDX-License-Identifier: Apache-2.0
// CoLT5's attention for maps of features: a light branch inside windows for every place, a heavy
// one for the few that routers choose, from the whole map or from each window.
//
//   light = SelfAttention inside each window of w x w places
//   q = q_router(x), kv = kv_router(x)            the places chosen, and their scores
//   heavy = HeavyAttention(q, context = kv, values times the scores of kv) times the scores of q
//   out = light + heavy at the places of q, a learned vector elsewhere
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
#include "weir/nn/heavy_attention.h"
#include "weir/nn/module.h"
#include "weir/nn/router_kwargs.h"
#include "weir/nn/self_attention.h"

namespace weir::nn {

/// The arguments of the published `ConditionalRoutedImageAttention`, and `routing`.
struct ConditionalRoutedImageAttentionOptions {
  std::int64_t dim = 0;
  std::int64_t num_heavy_tokens_q = 0;
  std::int64_t num_heavy_tokens_kv = 0;
  std::int64_t num_routed_kv = 1;
  std::int64_t light_dim_head = 64;
  std::int64_t light_heads = 8;
  std::int64_t light_window_size = 128;
  std::int64_t heavy_dim_head = 64;
  std::int64_t heavy_heads = 8;
  bool router_straight_through = true;
  RouterKwargs router_kwargs = {};
  bool multiply_keys_by_score = false;
  bool multiply_queries_by_score = false;
  bool use_null_q_tokens = true;
  bool channel_first = false;
  std::string routing = "global";

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = ConditionalRoutedImageAttentionOptions;
    field("dim", &Self::dim, "Features per place; required.");
    field("num_heavy_tokens_q", &Self::num_heavy_tokens_q,
          "Places whose queries the heavy branch gets; required.");
    field("num_heavy_tokens_kv", &Self::num_heavy_tokens_kv,
          "Places, per route, whose keys and values it gets; required.");
    field("num_routed_kv", &Self::num_routed_kv,
          "Routes of keys and values, each for an equal share of the heavy heads.");
    field("light_dim_head", &Self::light_dim_head, "Feature size of a light head.");
    field("light_heads", &Self::light_heads, "Number of light heads.");
    field("light_window_size", &Self::light_window_size,
          "Height and width of the windows, of which a map has whole ones.");
    field("heavy_dim_head", &Self::heavy_dim_head, "Feature size of a heavy head.");
    field("heavy_heads", &Self::heavy_heads, "Number of heavy heads.");
    field("router_straight_through", &Self::router_straight_through,
          "Scores are 1 in value and have the gradient of coordinate descent.");
    field("router_kwargs", &Self::router_kwargs, "Options of the routers.");
    field("multiply_keys_by_score", &Self::multiply_keys_by_score,
          "Multiply keys, not only values, with their scores.");
    field("multiply_queries_by_score", &Self::multiply_queries_by_score,
          "Multiply queries with their scores, not only what they give.");
    field("use_null_q_tokens", &Self::use_null_q_tokens,
          "A learned vector from the heavy branch for places that it did not get; else 0.");
    field("channel_first", &Self::channel_first,
          "Maps are (batch, dim, height, width), not (batch, height, width, dim).");
    field("routing", &Self::routing,
          "global: from the whole map; window: from each window, so many places of each.");
  }
};

/// Optional arguments of `forward`.
struct ConditionalRoutedImageAttentionInputs {
  std::optional<NumTokens> num_heavy_tokens_q = std::nullopt;
  std::optional<NumTokens> num_heavy_tokens_kv = std::nullopt;
  std::optional<at::Tensor> mask = std::nullopt;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = ConditionalRoutedImageAttentionInputs;
    field("num_heavy_tokens_q", &Self::num_heavy_tokens_q,
          "In place of the option: one number, or int64 (batch).");
    field("num_heavy_tokens_kv", &Self::num_heavy_tokens_kv,
          "In place of the option: one number, or int64 (batch).");
    field("mask", &Self::mask, "Padding: bool (batch, height, width), true = a place of the map.");
  }
};

/// Ainslie et al. 2023, "CoLT5", arXiv:2303.09752.
class WEIR_API ConditionalRoutedImageAttentionImpl
    : public torch::nn::Cloneable<ConditionalRoutedImageAttentionImpl> {
 public:
  /// Throws c10::ValueError on options that do not fit.
  explicit ConditionalRoutedImageAttentionImpl(
      const ConditionalRoutedImageAttentionOptions& options);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// (batch, height, width, dim) -> the same, or both with dim second: `channel_first`. Height and
  /// width are multiples of light_window_size. Where a map (a window, with `routing` "window") has
  /// no more than num_heavy_tokens_q places, each is a heavy query, with num_heavy_tokens_kv the
  /// same for keys; the router of that side then has no gradient. No residual; what comes out at
  /// padded places has no meaning. Throws c10::Error on arguments that do not fit.
  at::Tensor forward(const at::Tensor& x, const ConditionalRoutedImageAttentionInputs& inputs = {});

  ConditionalRoutedImageAttentionOptions options;
  SelfAttention light_attn{nullptr};
  CoordinateDescentRouter q_router{nullptr};
  CoordinateDescentRouter kv_router{nullptr};
  HeavyAttention heavy_attn{nullptr};
  at::Tensor null_q_token;  ///< (dim), undefined without use_null_q_tokens

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(ConditionalRoutedImageAttentionInputs())})
};

WEIR_MODULE(ConditionalRoutedImageAttention);

}  // namespace weir::nn
