// SPDX-License-Identifier: Apache-2.0
// CoLT5's attention: a light branch in windows for every token, a heavy one over the whole sequence
// for the few that routers choose.
//
//   light = LocalMHA(x);  0 without it
//   q = q_router(x), kv = kv_router(x)            the tokens chosen, and their scores
//   heavy = HeavyAttention(q, context = kv, values times the scores of kv) times the scores of q
//   out = light + heavy at the places of q, a learned vector elsewhere
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/any.h>

#include <cstdint>
#include <optional>
#include <ostream>

#include "weir/export.h"
#include "weir/nn/coordinate_descent_router.h"
#include "weir/nn/heavy_attention.h"
#include "weir/nn/local_mha.h"
#include "weir/nn/module.h"
#include "weir/nn/router_kwargs.h"

namespace weir::nn {

/// The arguments of the published `ConditionalRoutedAttention`, and `light_rotary`.
struct ConditionalRoutedAttentionOptions {
  std::int64_t dim = 0;
  std::int64_t num_heavy_tokens_q = 0;
  std::int64_t num_heavy_tokens_kv = 0;
  std::int64_t num_routed_kv = 1;
  bool has_light_attn = true;
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
  bool rotary_emb = false;
  bool light_rotary = false;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = ConditionalRoutedAttentionOptions;
    field("dim", &Self::dim, "Feature size of the tokens; required.");
    field("num_heavy_tokens_q", &Self::num_heavy_tokens_q,
          "Tokens whose queries the heavy branch gets; required.");
    field("num_heavy_tokens_kv", &Self::num_heavy_tokens_kv,
          "Tokens, per route, whose keys and values it gets; required.");
    field("num_routed_kv", &Self::num_routed_kv,
          "Routes of keys and values, each for an equal share of the heavy heads.");
    field("has_light_attn", &Self::has_light_attn, "With the light branch.");
    field("light_dim_head", &Self::light_dim_head, "Feature size of a light head.");
    field("light_heads", &Self::light_heads, "Number of light heads.");
    field("light_window_size", &Self::light_window_size,
          "Positions that the light branch sees, half of them on each side; even.");
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
          "A learned vector from the heavy branch for tokens that it did not get; else 0.");
    field("rotary_emb", &Self::rotary_emb, "Rotary embedding of the heavy branch.");
    field("light_rotary", &Self::light_rotary,
          "Rotary embedding of the light branch, which else knows no positions.");
  }
};

/// Optional arguments of `forward`.
struct ConditionalRoutedAttentionInputs {
  std::optional<NumTokens> num_heavy_tokens_q = std::nullopt;
  std::optional<NumTokens> num_heavy_tokens_kv = std::nullopt;
  std::optional<at::Tensor> mask = std::nullopt;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = ConditionalRoutedAttentionInputs;
    field("num_heavy_tokens_q", &Self::num_heavy_tokens_q,
          "In place of the option: one number, or int64 (batch).");
    field("num_heavy_tokens_kv", &Self::num_heavy_tokens_kv,
          "In place of the option: one number, or int64 (batch).");
    field("mask", &Self::mask, "Padding: bool (batch, n), true = a token.");
  }
};

/// Ainslie et al. 2023, "CoLT5", arXiv:2303.09752.
class WEIR_API ConditionalRoutedAttentionImpl
    : public torch::nn::Cloneable<ConditionalRoutedAttentionImpl> {
 public:
  /// Throws c10::ValueError on options that do not fit.
  explicit ConditionalRoutedAttentionImpl(const ConditionalRoutedAttentionOptions& options);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// (batch, n, dim) -> (batch, n, dim), n of any length. Where n is at most num_heavy_tokens_q
  /// every token is a heavy query, with num_heavy_tokens_kv the same for keys; the router of that
  /// side then has no gradient. No residual; what comes out at padded positions has no meaning.
  /// Throws c10::Error on arguments that do not fit.
  at::Tensor forward(const at::Tensor& x, const ConditionalRoutedAttentionInputs& inputs = {});

  ConditionalRoutedAttentionOptions options;
  LocalMHA light_attn{nullptr};  ///< empty without light branch
  CoordinateDescentRouter q_router{nullptr};
  CoordinateDescentRouter kv_router{nullptr};
  HeavyAttention heavy_attn{nullptr};
  RotaryFrequencies rotary_emb{nullptr};  ///< empty without rotary_emb
  at::Tensor null_q_token;                ///< (dim), undefined without use_null_q_tokens

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(ConditionalRoutedAttentionInputs())})
};

WEIR_MODULE(ConditionalRoutedAttention);

}  // namespace weir::nn
