// SPDX-License-Identifier: Apache-2.0
// A layer of CoLT5's encoder.
//
//   x = x + ConditionalRoutedAttention(x);  x = x + ConditionalRoutedFeedForward(x)
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/any.h>

#include <cstdint>
#include <optional>
#include <ostream>

#include "weir/export.h"
#include "weir/nn/conditional_routed_attention.h"
#include "weir/nn/conditional_routed_feed_forward.h"
#include "weir/nn/module.h"
#include "weir/nn/router_kwargs.h"

namespace weir::nn {

/// The arguments of the published `ConditionalRoutedTransformerBlock`, and the rotary embeddings.
struct ConditionalRoutedTransformerBlockOptions {
  std::int64_t dim = 0;
  std::int64_t num_heavy_attn_tokens_q = 0;
  std::int64_t num_heavy_attn_tokens_kv = 0;
  std::int64_t num_routed_kv = 1;
  std::int64_t num_heavy_ff_tokens = 0;
  std::int64_t light_dim_head = 64;
  std::int64_t light_heads = 8;
  std::int64_t light_window_size = 128;
  std::int64_t heavy_dim_head = 64;
  std::int64_t heavy_heads = 8;
  double light_ff_mult = 0.5;
  double heavy_ff_mult = 4;
  bool router_straight_through = true;
  RouterKwargs router_kwargs = {};
  bool multiply_keys_by_score = false;
  bool multiply_queries_by_score = false;
  bool use_null_q_tokens = true;
  bool rotary_emb = false;
  bool light_rotary = false;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = ConditionalRoutedTransformerBlockOptions;
    field("dim", &Self::dim, "Feature size of the tokens; required.");
    field("num_heavy_attn_tokens_q", &Self::num_heavy_attn_tokens_q,
          "Tokens whose queries the heavy branch of the attention gets; required.");
    field("num_heavy_attn_tokens_kv", &Self::num_heavy_attn_tokens_kv,
          "Tokens, per route, whose keys and values it gets; required.");
    field("num_routed_kv", &Self::num_routed_kv,
          "Routes of keys and values, each for an equal share of the heavy heads.");
    field("num_heavy_ff_tokens", &Self::num_heavy_ff_tokens,
          "Tokens that the heavy branch of the feed-forward takes; required.");
    field("light_dim_head", &Self::light_dim_head, "Feature size of a light head.");
    field("light_heads", &Self::light_heads, "Number of light heads.");
    field("light_window_size", &Self::light_window_size,
          "Positions that the light attention sees, half of them on each side; even.");
    field("heavy_dim_head", &Self::heavy_dim_head, "Feature size of a heavy head.");
    field("heavy_heads", &Self::heavy_heads, "Number of heavy heads.");
    field("light_ff_mult", &Self::light_ff_mult,
          "Hidden units of the light feed-forward as a multiple of dim.");
    field("heavy_ff_mult", &Self::heavy_ff_mult, "The same of the heavy one.");
    field("router_straight_through", &Self::router_straight_through,
          "Scores are 1 in value and have the gradient of coordinate descent.");
    field("router_kwargs", &Self::router_kwargs, "Options of the routers.");
    field("multiply_keys_by_score", &Self::multiply_keys_by_score,
          "Multiply keys, not only values, with their scores.");
    field("multiply_queries_by_score", &Self::multiply_queries_by_score,
          "Multiply queries with their scores, not only what they give.");
    field("use_null_q_tokens", &Self::use_null_q_tokens,
          "A learned vector from the heavy attention for tokens that it did not get; else 0.");
    field("rotary_emb", &Self::rotary_emb, "Rotary embedding of the heavy attention.");
    field("light_rotary", &Self::light_rotary, "Rotary embedding of the light attention.");
  }
};

/// Optional arguments of `forward`.
struct ConditionalRoutedTransformerBlockInputs {
  std::optional<at::Tensor> mask = std::nullopt;
  std::optional<NumTokens> num_heavy_attn_tokens_q = std::nullopt;
  std::optional<NumTokens> num_heavy_attn_tokens_kv = std::nullopt;
  std::optional<NumTokens> num_heavy_ff_tokens = std::nullopt;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = ConditionalRoutedTransformerBlockInputs;
    constexpr auto kNumber = "In place of the option: one number, or int64 (batch).";
    field("mask", &Self::mask, "Padding: bool (batch, n), true = a token.");
    field("num_heavy_attn_tokens_q", &Self::num_heavy_attn_tokens_q, kNumber);
    field("num_heavy_attn_tokens_kv", &Self::num_heavy_attn_tokens_kv, kNumber);
    field("num_heavy_ff_tokens", &Self::num_heavy_ff_tokens, kNumber);
  }
};

/// Ainslie et al. 2023, "CoLT5", arXiv:2303.09752.
class WEIR_API ConditionalRoutedTransformerBlockImpl
    : public torch::nn::Cloneable<ConditionalRoutedTransformerBlockImpl> {
 public:
  /// Throws c10::ValueError on options that do not fit.
  explicit ConditionalRoutedTransformerBlockImpl(
      const ConditionalRoutedTransformerBlockOptions& options);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// (batch, n, dim) -> (batch, n, dim), n of any length. What comes out at padded positions has no
  /// meaning. Throws c10::Error on arguments that do not fit.
  at::Tensor forward(const at::Tensor& x,
                     const ConditionalRoutedTransformerBlockInputs& inputs = {});

  ConditionalRoutedTransformerBlockOptions options;
  ConditionalRoutedFeedForward conditional_ff{nullptr};
  ConditionalRoutedAttention conditional_attn{nullptr};

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(ConditionalRoutedTransformerBlockInputs())})
};

WEIR_MODULE(ConditionalRoutedTransformerBlock);

}  // namespace weir::nn
