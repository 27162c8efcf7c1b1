// SPDX-License-Identifier: Apache-2.0
// Attention and feed-forward, each around a residual; their norms are their own.
#include "weir/nn/conditional_routed_transformer_block.h"

#include <ATen/TensorOperators.h>

#include "nn/check.h"

namespace weir::nn {
namespace {

constexpr auto kName = "ConditionalRoutedTransformerBlock";

// What the parts know by another name, for messages that name the options of the block.
void check(const ConditionalRoutedTransformerBlockOptions& options) {
  check_size(kName, "dim", options.dim);
  check_size(kName, "num_heavy_attn_tokens_q", options.num_heavy_attn_tokens_q);
  check_size(kName, "num_heavy_attn_tokens_kv", options.num_heavy_attn_tokens_kv);
  check_size(kName, "num_heavy_ff_tokens", options.num_heavy_ff_tokens);
}

ConditionalRoutedAttentionOptions attention_options(
    const ConditionalRoutedTransformerBlockOptions& options) {
  return {.dim = options.dim,
          .num_heavy_tokens_q = options.num_heavy_attn_tokens_q,
          .num_heavy_tokens_kv = options.num_heavy_attn_tokens_kv,
          .num_routed_kv = options.num_routed_kv,
          .light_dim_head = options.light_dim_head,
          .light_heads = options.light_heads,
          .light_window_size = options.light_window_size,
          .heavy_dim_head = options.heavy_dim_head,
          .heavy_heads = options.heavy_heads,
          .router_straight_through = options.router_straight_through,
          .router_kwargs = options.router_kwargs,
          .multiply_keys_by_score = options.multiply_keys_by_score,
          .multiply_queries_by_score = options.multiply_queries_by_score,
          .use_null_q_tokens = options.use_null_q_tokens,
          .rotary_emb = options.rotary_emb,
          .light_rotary = options.light_rotary};
}

ConditionalRoutedFeedForwardOptions feed_forward_options(
    const ConditionalRoutedTransformerBlockOptions& options) {
  return {.dim = options.dim,
          .num_heavy_tokens = options.num_heavy_ff_tokens,
          .light_ff_mult = options.light_ff_mult,
          .heavy_ff_mult = options.heavy_ff_mult,
          .router_straight_through = options.router_straight_through,
          .router_kwargs = options.router_kwargs};
}

}  // namespace

ConditionalRoutedTransformerBlockImpl::ConditionalRoutedTransformerBlockImpl(
    const ConditionalRoutedTransformerBlockOptions& options_)
    : options(options_) {
  check(options);
  reset();
}

void ConditionalRoutedTransformerBlockImpl::reset() {
  conditional_ff = register_module("conditional_ff",
                                   ConditionalRoutedFeedForward(feed_forward_options(options)));
  conditional_attn =
      register_module("conditional_attn", ConditionalRoutedAttention(attention_options(options)));
}

at::Tensor ConditionalRoutedTransformerBlockImpl::forward(
    const at::Tensor& x, const ConditionalRoutedTransformerBlockInputs& inputs) {
  check_tokens(kName, x, options.dim);
  check_padding(kName, inputs.mask, x);
  const at::Tensor attended =
      x + conditional_attn->forward(x, {.num_heavy_tokens_q = inputs.num_heavy_attn_tokens_q,
                                        .num_heavy_tokens_kv = inputs.num_heavy_attn_tokens_kv,
                                        .mask = inputs.mask});
  return attended +
         conditional_ff->forward(
             attended, {.mask = inputs.mask, .num_heavy_tokens = inputs.num_heavy_ff_tokens});
}

void ConditionalRoutedTransformerBlockImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::" << kName << "(dim=" << options.dim
         << ", num_heavy_attn_tokens_q=" << options.num_heavy_attn_tokens_q
         << ", num_heavy_attn_tokens_kv=" << options.num_heavy_attn_tokens_kv
         << ", num_heavy_ff_tokens=" << options.num_heavy_ff_tokens << ")";
}

}  // namespace weir::nn
