// SPDX-License-Identifier: Apache-2.0
// CoLT5 as a causal language model: every layer has a light branch for all tokens and a heavy one
// for those that routers choose, in attention and in the feed-forward. No choice looks ahead, so
// that generation with a cache chooses as training does.
//
//   x = token_emb(tokens)
//   depth times:  x += ConditionalRoutedAutoregressiveAttention(x)
//                 x += ConditionalRoutedFeedForward(x)
//   logits = Linear(LayerNorm(x))
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/embedding.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <span>
#include <string>

#include "weir/export.h"
#include "weir/models/language_model.h"
#include "weir/nn/conditional_routed_autoregressive_attention.h"
#include "weir/nn/conditional_routed_feed_forward.h"
#include "weir/nn/module.h"

namespace weir::models {

/// What its layers have in common with `ConditionalRoutedTransformerBlock`, and causal routing.
struct ConditionalRoutedTransformerOptions {
  std::int64_t num_tokens = 0;
  std::int64_t max_seq_len = 0;
  std::int64_t dim = 0;
  std::int64_t depth = 0;
  std::int64_t num_heavy_attn_tokens_q = 16;
  std::int64_t num_heavy_attn_tokens_kv = 64;
  std::int64_t num_routed_kv = 1;
  std::int64_t num_heavy_ff_tokens = 16;
  std::int64_t light_dim_head = 64;
  std::int64_t light_heads = 8;
  std::int64_t light_window_size = 128;
  std::optional<std::int64_t> heavy_window_size = std::nullopt;
  std::int64_t heavy_dim_head = 64;
  std::int64_t heavy_heads = 8;
  double light_ff_mult = 0.5;
  double heavy_ff_mult = 4;
  bool router_straight_through = true;
  nn::RouterKwargs router_kwargs = {.eps = 1, .cosine_sim_routing = true};
  bool use_null_q_tokens = true;
  bool rotary_emb = true;
  bool light_rotary = true;
  std::string autoregressive_routing = "strict";
  std::string threshold_solver = "exact";
  std::optional<double> tau = std::nullopt;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = ConditionalRoutedTransformerOptions;
    field("num_tokens", &Self::num_tokens, "Size of the vocabulary; required.");
    field("max_seq_len", &Self::max_seq_len, "Longest sequence, in tokens; required.");
    field("dim", &Self::dim, "Feature size of the tokens; required.");
    field("depth", &Self::depth, "Number of layers; required.");
    field("num_heavy_attn_tokens_q", &Self::num_heavy_attn_tokens_q,
          "Tokens of a window whose queries the heavy attention gets.");
    field("num_heavy_attn_tokens_kv", &Self::num_heavy_attn_tokens_kv,
          "Tokens before it, per route, whose keys and values it gets.");
    field("num_routed_kv", &Self::num_routed_kv,
          "Routes of keys and values, each for an equal share of the heavy heads.");
    field("num_heavy_ff_tokens", &Self::num_heavy_ff_tokens,
          "Tokens of a window that the heavy feed-forward takes.");
    field("light_dim_head", &Self::light_dim_head, "Feature size of a light head.");
    field("light_heads", &Self::light_heads, "Number of light heads.");
    field("light_window_size", &Self::light_window_size,
          "Positions per bucket of the light attention, which sees its own and the one before.");
    field("heavy_window_size", &Self::heavy_window_size,
          "Positions of a window of the heavy branches; none: light_window_size.");
    field("heavy_dim_head", &Self::heavy_dim_head, "Feature size of a heavy head.");
    field("heavy_heads", &Self::heavy_heads, "Number of heavy heads.");
    field("light_ff_mult", &Self::light_ff_mult,
          "Hidden units of the light feed-forward as a multiple of dim.");
    field("heavy_ff_mult", &Self::heavy_ff_mult, "The same of the heavy one.");
    field("router_straight_through", &Self::router_straight_through,
          "Scores are 1 in value and have the gradient of coordinate descent.");
    field("router_kwargs", &Self::router_kwargs, "Options of the routers.");
    field("use_null_q_tokens", &Self::use_null_q_tokens,
          "A learned vector from the heavy attention for tokens that it did not get; else 0.");
    field("rotary_emb", &Self::rotary_emb, "Rotary embedding of the heavy attention.");
    field("light_rotary", &Self::light_rotary, "Rotary embedding of the light attention.");
    field("autoregressive_routing", &Self::autoregressive_routing,
          "strict: whether a token is routed depends on earlier ones only. window: the best of a "
          "whole window; non-causal in selection, and cannot generate with a cache.");
    field("threshold_solver", &Self::threshold_solver,
          "Of the thresholds of strict routing: exact or iterative.");
    field("tau", &Self::tau,
          "Strict routing takes similarities down to so much below the threshold; none: eps ln 2.");
  }
};

/// One layer: attention, then feed-forward, each with a residual.
class WEIR_API ConditionalRoutedLayerImpl
    : public torch::nn::Cloneable<ConditionalRoutedLayerImpl> {
 public:
  ConditionalRoutedLayerImpl(nn::ConditionalRoutedAutoregressiveAttentionOptions attention_options,
                             nn::ConditionalRoutedFeedForwardOptions feed_forward_options);

  void reset() override;

  /// (batch, n, dim) -> the same.
  at::Tensor forward(const at::Tensor& x);

  /// As those of the parts; `past` are the entries of the attention, then that of the feed-forward.
  at::Tensor step(const at::Tensor& x, const at::Tensor& positions, std::int64_t length,
                  std::span<nn::KeyValues> past);

  nn::ConditionalRoutedAutoregressiveAttentionOptions attention_options;
  nn::ConditionalRoutedFeedForwardOptions feed_forward_options;
  nn::ConditionalRoutedAutoregressiveAttention conditional_attn{nullptr};
  nn::ConditionalRoutedFeedForward conditional_ff{nullptr};
};

TORCH_MODULE(ConditionalRoutedLayer);

/// Ainslie et al. 2023, "CoLT5", arXiv:2303.09752, decoder only.
class WEIR_API ConditionalRoutedTransformerImpl : public LanguageModel {
 public:
  static constexpr const char* kKind = "colt5";

  /// Throws c10::ValueError on options that do not fit.
  explicit ConditionalRoutedTransformerImpl(const ConditionalRoutedTransformerOptions& options);

  at::Tensor forward(const at::Tensor& tokens) override;
  Cache make_cache(std::int64_t batch) const override;
  at::Tensor step(const at::Tensor& tokens, Cache& cache) override;
  std::int64_t max_length() const override { return options.max_seq_len; }
  std::int64_t num_tokens() const override { return options.num_tokens; }
  std::string kind() const override { return kKind; }
  std::string options_json() const override;
  void pretty_print(std::ostream& stream) const override;

  ConditionalRoutedTransformerOptions options;
  torch::nn::Embedding token_emb{nullptr};
  torch::nn::ModuleList layers{nullptr};  ///< depth times ConditionalRoutedLayer
  torch::nn::Sequential to_logits{nullptr};
};

WEIR_MODULE(ConditionalRoutedTransformer);

}  // namespace weir::models
