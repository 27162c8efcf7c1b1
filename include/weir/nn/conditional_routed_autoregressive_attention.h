// SPDX-License-Identifier: Apache-2.0
// CoLT5's attention for causal models: a light branch in windows for every token, and a heavy one
// for the few that routers choose in each window, over the few that they choose before it.
//
//   light = LocalMHA(x), causal
//   window m of the heavy branch: queries chosen among its tokens, keys among those before it
//   heavy = HeavyAttention(queries, keys, values times their scores) times the scores of queries
//   out = light + heavy at the places of queries, a learned vector elsewhere; light in window 0
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/any.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <vector>

#include "weir/export.h"
#include "weir/nn/coordinate_descent_router.h"
#include "weir/nn/heavy_attention.h"
#include "weir/nn/key_values.h"
#include "weir/nn/local_mha.h"
#include "weir/nn/module.h"
#include "weir/nn/router_kwargs.h"

namespace weir::nn {

struct CausalRoutes;
struct CausalRoutingRule;

/// The arguments of the published `ConditionalRoutedAutoregressiveAttention`, and how queries are
/// chosen.
struct ConditionalRoutedAutoregressiveAttentionOptions {
  std::int64_t dim = 0;
  std::int64_t num_heavy_tokens_q = 0;
  std::int64_t num_heavy_tokens_kv = 0;
  std::int64_t num_routed_kv = 1;
  std::int64_t light_dim_head = 64;
  std::int64_t light_heads = 8;
  std::int64_t light_window_size = 128;
  std::optional<std::int64_t> heavy_window_size = std::nullopt;
  std::int64_t heavy_dim_head = 64;
  std::int64_t heavy_heads = 8;
  bool router_straight_through = true;
  RouterKwargs router_kwargs = {};
  bool multiply_keys_by_score = false;
  bool multiply_queries_by_score = false;
  bool use_null_q_tokens = true;
  bool rotary_emb = false;
  bool light_rotary = false;
  std::string autoregressive_routing = "strict";
  std::string threshold_solver = "exact";
  std::optional<double> tau = std::nullopt;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = ConditionalRoutedAutoregressiveAttentionOptions;
    field("dim", &Self::dim, "Feature size of the tokens; required.");
    field("num_heavy_tokens_q", &Self::num_heavy_tokens_q,
          "Tokens of a window whose queries the heavy branch gets; required.");
    field("num_heavy_tokens_kv", &Self::num_heavy_tokens_kv,
          "Tokens before it, per route, whose keys and values it gets; required.");
    field("num_routed_kv", &Self::num_routed_kv,
          "Routes of keys and values, each for an equal share of the heavy heads.");
    field("light_dim_head", &Self::light_dim_head, "Feature size of a light head.");
    field("light_heads", &Self::light_heads, "Number of light heads.");
    field("light_window_size", &Self::light_window_size,
          "Positions per bucket of the light branch, which sees its own and the one before.");
    field("heavy_window_size", &Self::heavy_window_size,
          "Positions of a window of the heavy branch; none: light_window_size.");
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
    field("autoregressive_routing", &Self::autoregressive_routing,
          "strict: whether a token is routed depends on earlier ones only. window: the best of a "
          "whole window, as published; non-causal in selection.");
    field("threshold_solver", &Self::threshold_solver,
          "Of the thresholds of strict routing: exact or iterative.");
    field("tau", &Self::tau,
          "Strict routing takes similarities down to so much below the threshold; none: eps ln 2, "
          "a score of 1/2.");
  }

  std::int64_t window() const { return heavy_window_size.value_or(light_window_size); }
};

/// Optional arguments of `forward`.
struct ConditionalRoutedAutoregressiveAttentionInputs {
  std::optional<std::int64_t> num_heavy_tokens_q = std::nullopt;
  std::optional<std::int64_t> num_heavy_tokens_kv = std::nullopt;
  bool random_route = false;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = ConditionalRoutedAutoregressiveAttentionInputs;
    field("num_heavy_tokens_q", &Self::num_heavy_tokens_q, "In place of the option.");
    field("num_heavy_tokens_kv", &Self::num_heavy_tokens_kv, "In place of the option.");
    field("random_route", &Self::random_route,
          "Choose queries and keys at random, as a control: scores are N(0, 1) of torch's "
          "generator.");
  }
};

/// Ainslie et al. 2023, "CoLT5", arXiv:2303.09752.
class WEIR_API ConditionalRoutedAutoregressiveAttentionImpl
    : public torch::nn::Cloneable<ConditionalRoutedAutoregressiveAttentionImpl> {
 public:
  /// Throws c10::ValueError on options that do not fit.
  explicit ConditionalRoutedAutoregressiveAttentionImpl(
      const ConditionalRoutedAutoregressiveAttentionOptions& options);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// (batch, n, dim) -> (batch, n, dim), n of any length; up to one window the light branch alone.
  /// No residual. Throws c10::Error on arguments that do not fit.
  at::Tensor forward(const at::Tensor& x,
                     const ConditionalRoutedAutoregressiveAttentionInputs& inputs = {});

  /// The same for `x` (batch, m, dim), the next tokens of rows of any lengths: `positions` (batch,
  /// m) counts up from the length of each row, the longest of which is `length` with these. `past`
  /// are entries of `make_cache`. Not differentiable. Throws c10::Error with
  /// `autoregressive_routing` "window", which looks ahead, and as KeyValues::prepare.
  at::Tensor step(const at::Tensor& x, const at::Tensor& positions, std::int64_t length,
                  std::span<KeyValues> past);

  /// Entries without tokens, with room for `max_length`: of the light branch, of the heavy one, and
  /// the similarities of the routers.
  std::vector<KeyValues> make_cache(std::int64_t batch, std::int64_t max_length) const;

  ConditionalRoutedAutoregressiveAttentionOptions options;
  LocalMHA light_attn{nullptr};
  CoordinateDescentRouter q_router{nullptr};
  CoordinateDescentRouter kv_router{nullptr};
  HeavyAttention heavy_attn{nullptr};
  RotaryFrequencies rotary_emb{nullptr};  ///< empty without rotary_emb
  at::Tensor null_q_token;                ///< (dim), undefined without use_null_q_tokens

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1,
                            torch::nn::AnyValue(ConditionalRoutedAutoregressiveAttentionInputs())})

 private:
  CausalRoutingRule rule(std::int64_t num_heavy_tokens_q) const;
  at::Tensor similarities(const at::Tensor& x) const;
  at::Tensor project(const at::Tensor& x, const at::Tensor& positions);
  at::Tensor rest() const;
  at::Tensor attend(const at::Tensor& x, const at::Tensor& table, const CausalRoutes& q,
                    const CausalRoutes& kv);
  at::Tensor heavy(const at::Tensor& x, const at::Tensor& similarities, const at::Tensor& table,
                   const ConditionalRoutedAutoregressiveAttentionInputs& inputs);
  at::Tensor heavy_of_token(const at::Tensor& x, const at::Tensor& position,
                            const at::Tensor& similarities, const at::Tensor& table);
};

WEIR_MODULE(ConditionalRoutedAutoregressiveAttention);

}  // namespace weir::nn
