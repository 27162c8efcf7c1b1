// SPDX-License-Identifier: Apache-2.0
// A heavy branch alone, from one sequence to another.
#include "weir/nn/conditional_routed_cross_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>

#include "nn/check.h"
#include "nn/heavy_branch.h"

namespace weir::nn {
namespace {

constexpr auto kName = "ConditionalRoutedCrossAttention";

void check(const ConditionalRoutedCrossAttentionOptions& options) {
  check_size(kName, "dim", options.dim);
  check_size(kName, "num_tokens_q", options.num_tokens_q);
  check_size(kName, "num_tokens_kv", options.num_tokens_kv);
  check_size(kName, "dim_head", options.dim_head);
  check_size(kName, "heads", options.heads);
  check_size(kName, "kv_routing_tokens", options.kv_routing_tokens);
  if (options.route_block_size) check_size(kName, "route_block_size", *options.route_block_size);
  TORCH_CHECK_VALUE(!options.router_kwargs.route_block_size, "weir::", kName,
                    ": expected `route_block_size` beside `router_kwargs`, not in it: only the "
                    "context is routed in blocks.");
  check_routes(kName, "kv_routing_tokens", options.kv_routing_tokens, "heads", options.heads);
}

void check_context(const at::Tensor& context, const at::Tensor& x) {
  TORCH_CHECK_VALUE(
      context.dim() == 3 && context.size(0) == x.size(0) && context.size(2) == x.size(2),
      "weir::", kName, ": expected `context` to have shape [", x.size(0), ", m, ", x.size(2),
      "], but got ", context.sizes(), ".");
}

CoordinateDescentRouterOptions kv_options(const ConditionalRoutedCrossAttentionOptions& options) {
  auto result = options.router_kwargs.router(options.dim, options.router_straight_through,
                                             options.kv_routing_tokens);
  result.route_block_size = options.route_block_size;
  result.learned_routing_tokens = options.kv_routing_from_x;
  return result;
}

}  // namespace

ConditionalRoutedCrossAttentionImpl::ConditionalRoutedCrossAttentionImpl(
    const ConditionalRoutedCrossAttentionOptions& options_)
    : options(options_) {
  check(options);
  reset();
}

void ConditionalRoutedCrossAttentionImpl::reset() {
  const HeavyAttentionOptions attention = {
      .dim = options.dim, .dim_head = options.dim_head, .heads = options.heads};
  if (options.use_null_q_tokens) {
    null_q_token = register_parameter("null_q_token", at::randn({options.dim}));
  }
  q_router = register_module("q_router", CoordinateDescentRouter(options.router_kwargs.router(
                                             options.dim, options.router_straight_through)));
  kv_router = register_module("kv_router", CoordinateDescentRouter(kv_options(options)));
  auto heavy = attention;
  heavy.multiply_keys_by_score = options.multiply_keys_by_score;
  heavy_attn = register_module("heavy_attn", HeavyAttention(heavy));
  if (options.kv_routing_from_x) {
    kv_routing_queries = register_parameter("kv_routing_queries",
                                            at::randn({options.kv_routing_tokens, options.dim}));
    kv_routing_attn = register_module("kv_routing_attn", HeavyAttention(attention));
  }
}

at::Tensor ConditionalRoutedCrossAttentionImpl::forward(
    const at::Tensor& x, const at::Tensor& context,
    const ConditionalRoutedCrossAttentionInputs& inputs) {
  check_tokens(kName, x, options.dim);
  check_padding(kName, inputs.mask, x);
  check_context(context, x);
  check_padding(kName, inputs.context_mask, context, "context_mask", "context");
  std::optional<at::Tensor> routing_tokens;
  if (options.kv_routing_from_x) {
    const at::Tensor queries = kv_routing_queries.expand({x.size(0), -1, -1});
    routing_tokens =
        queries + kv_routing_attn->forward(queries, {.context = x, .mask = inputs.mask});
  }
  HeavyBranch branch = {.q_router = q_router,
                        .kv_router = kv_router,
                        .attention = heavy_attn,
                        .null_q_token = null_q_token};
  return branch.forward(
      {x, inputs.num_tokens_q.value_or(options.num_tokens_q), {.mask = inputs.mask}},
      {context,
       inputs.num_tokens_kv.value_or(options.num_tokens_kv),
       {.mask = inputs.context_mask, .routing_tokens = routing_tokens}});
}

void ConditionalRoutedCrossAttentionImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::" << kName << "(dim=" << options.dim
         << ", num_tokens_q=" << options.num_tokens_q << ", num_tokens_kv=" << options.num_tokens_kv
         << ", kv_routing_tokens=" << options.kv_routing_tokens << ")";
}

}  // namespace weir::nn
