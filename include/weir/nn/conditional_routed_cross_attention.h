// SPDX-License-Identifier: Apache-2.0
// CoLT5's attention to something else, such as a million memories: routers choose which tokens ask
// and which of the context are asked.
//
//   q = q_router(x), kv = kv_router(context)      the tokens chosen, and their scores
//   heavy = HeavyAttention(q, context = kv, values times the scores of kv) times the scores of q
//   out = heavy at the places of q, a learned vector elsewhere
//
// With `kv_routing_from_x` the routing tokens of the context depend on who asks:
//
//   routing tokens = queries + HeavyAttention(queries, context = x)      of learned queries
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
#include "weir/nn/module.h"
#include "weir/nn/router_kwargs.h"

namespace weir::nn {

/// The arguments of the published `ConditionalRoutedCrossAttention`, and `kv_routing_from_x`.
struct ConditionalRoutedCrossAttentionOptions {
  std::int64_t dim = 0;
  std::int64_t num_tokens_q = 0;
  std::int64_t num_tokens_kv = 0;
  std::int64_t dim_head = 64;
  std::int64_t heads = 8;
  bool router_straight_through = true;
  RouterKwargs router_kwargs = {};
  std::int64_t kv_routing_tokens = 1;
  bool multiply_keys_by_score = false;
  bool use_null_q_tokens = true;
  std::optional<std::int64_t> route_block_size = std::nullopt;
  bool kv_routing_from_x = false;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = ConditionalRoutedCrossAttentionOptions;
    field("dim", &Self::dim, "Feature size of the tokens and of the context; required.");
    field("num_tokens_q", &Self::num_tokens_q, "Tokens that attend; required.");
    field("num_tokens_kv", &Self::num_tokens_kv,
          "Tokens of the context, per route, that are attended to; required.");
    field("dim_head", &Self::dim_head, "Feature size of one head.");
    field("heads", &Self::heads, "Number of heads.");
    field("router_straight_through", &Self::router_straight_through,
          "Scores are 1 in value and have the gradient of coordinate descent.");
    field("router_kwargs", &Self::router_kwargs, "Options of the routers.");
    field("kv_routing_tokens", &Self::kv_routing_tokens,
          "Routes of the context, each for an equal share of the heads.");
    field("multiply_keys_by_score", &Self::multiply_keys_by_score,
          "Multiply keys, not only values, with their scores.");
    field("use_null_q_tokens", &Self::use_null_q_tokens,
          "A learned vector for tokens that do not attend; else 0.");
    field("route_block_size", &Self::route_block_size,
          "Route an equal share of num_tokens_kv, rounded up, from every block of so many tokens "
          "of the context; x is not routed in blocks.");
    field("kv_routing_from_x", &Self::kv_routing_from_x,
          "What is chosen from the context depends on x: learned queries attend to its tokens, and "
          "the result is added to them as routing tokens.");
  }
};

/// Optional arguments of `forward`.
struct ConditionalRoutedCrossAttentionInputs {
  std::optional<NumTokens> num_tokens_q = std::nullopt;
  std::optional<NumTokens> num_tokens_kv = std::nullopt;
  std::optional<at::Tensor> mask = std::nullopt;
  std::optional<at::Tensor> context_mask = std::nullopt;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = ConditionalRoutedCrossAttentionInputs;
    field("num_tokens_q", &Self::num_tokens_q,
          "In place of the option: one number, or int64 (batch).");
    field("num_tokens_kv", &Self::num_tokens_kv,
          "In place of the option: one number, or int64 (batch).");
    field("mask", &Self::mask, "Padding of x: bool (batch, n), true = a token.");
    field("context_mask", &Self::context_mask,
          "Padding of the context: bool (batch, m), true = a token.");
  }
};

/// Ainslie et al. 2023, "CoLT5", arXiv:2303.09752.
class WEIR_API ConditionalRoutedCrossAttentionImpl
    : public torch::nn::Cloneable<ConditionalRoutedCrossAttentionImpl> {
 public:
  /// Throws c10::ValueError on options that do not fit.
  explicit ConditionalRoutedCrossAttentionImpl(
      const ConditionalRoutedCrossAttentionOptions& options);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// `x` (batch, n, dim), `context` (batch, m, dim) -> (batch, n, dim). Where n is at most
  /// num_tokens_q every token attends, where m is at most num_tokens_kv to the whole context; the
  /// router of that side then has no gradient. The context is read once to compare it with the
  /// routing tokens and not copied (16-bit contexts: once, in float32); what was chosen is
  /// gathered. No residual; what comes out at padded positions has no meaning. Throws c10::Error
  /// on arguments that do not fit.
  at::Tensor forward(const at::Tensor& x, const at::Tensor& context,
                     const ConditionalRoutedCrossAttentionInputs& inputs = {});

  ConditionalRoutedCrossAttentionOptions options;
  CoordinateDescentRouter q_router{nullptr};
  CoordinateDescentRouter kv_router{nullptr};
  HeavyAttention heavy_attn{nullptr};
  at::Tensor null_q_token;                  ///< (dim), undefined without use_null_q_tokens
  at::Tensor kv_routing_queries;            ///< (kv_routing_tokens, dim), with kv_routing_from_x
  HeavyAttention kv_routing_attn{nullptr};  ///< empty without kv_routing_from_x

 protected:
  FORWARD_HAS_DEFAULT_ARGS({2, torch::nn::AnyValue(ConditionalRoutedCrossAttentionInputs())})
};

WEIR_MODULE(ConditionalRoutedCrossAttention);

}  // namespace weir::nn
