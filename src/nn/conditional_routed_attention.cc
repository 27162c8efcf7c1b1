// SPDX-License-Identifier: Apache-2.0
// Light branch for all, heavy branch for what the routers choose.
#include "weir/nn/conditional_routed_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>

#include "nn/check.h"
#include "nn/heavy_branch.h"

namespace weir::nn {
namespace {

constexpr auto kName = "ConditionalRoutedAttention";

void check(const ConditionalRoutedAttentionOptions& options) {
  check_size(kName, "dim", options.dim);
  check_size(kName, "num_heavy_tokens_q", options.num_heavy_tokens_q);
  check_size(kName, "num_heavy_tokens_kv", options.num_heavy_tokens_kv);
  check_size(kName, "num_routed_kv", options.num_routed_kv);
  check_size(kName, "light_dim_head", options.light_dim_head);
  check_size(kName, "light_heads", options.light_heads);
  check_size(kName, "heavy_dim_head", options.heavy_dim_head);
  check_size(kName, "heavy_heads", options.heavy_heads);
  TORCH_CHECK_VALUE(options.light_window_size >= 2 && options.light_window_size % 2 == 0,
                    "weir::", kName,
                    ": expected `light_window_size` to be even and at least 2, but got ",
                    options.light_window_size, ".");
  check_routes(kName, "num_routed_kv", options.num_routed_kv, "heavy_heads", options.heavy_heads);
  TORCH_CHECK_VALUE(!options.rotary_emb || options.heavy_dim_head % 2 == 0, "weir::", kName,
                    ": expected `heavy_dim_head` to be even with `rotary_emb`, but got ",
                    options.heavy_dim_head, ".");
}

LocalMHAOptions light_options(const ConditionalRoutedAttentionOptions& options) {
  return {.dim = options.dim,
          .window_size = options.light_window_size / 2,
          .dim_head = options.light_dim_head,
          .heads = options.light_heads,
          .prenorm = true,
          .look_backward = 1,
          .look_forward = 1,
          .use_rotary_pos_emb = options.light_rotary};
}

}  // namespace

ConditionalRoutedAttentionImpl::ConditionalRoutedAttentionImpl(
    const ConditionalRoutedAttentionOptions& options_)
    : options(options_) {
  check(options);
  reset();
}

void ConditionalRoutedAttentionImpl::reset() {
  if (options.use_null_q_tokens) {
    null_q_token = register_parameter("null_q_token", at::randn({options.dim}));
  }
  if (options.has_light_attn) {
    light_attn = register_module("light_attn", LocalMHA(light_options(options)));
  }
  const auto router_options = [this](std::int64_t routes) {
    return options.router_kwargs.router(options.dim, options.router_straight_through, routes);
  };
  q_router = register_module("q_router", CoordinateDescentRouter(router_options(1)));
  kv_router =
      register_module("kv_router", CoordinateDescentRouter(router_options(options.num_routed_kv)));
  heavy_attn = register_module(
      "heavy_attn", HeavyAttention({.dim = options.dim,
                                    .dim_head = options.heavy_dim_head,
                                    .heads = options.heavy_heads,
                                    .multiply_keys_by_score = options.multiply_keys_by_score}));
  if (options.rotary_emb) {
    rotary_emb = register_module("rotary_emb", RotaryFrequencies(options.heavy_dim_head));
  }
}

at::Tensor ConditionalRoutedAttentionImpl::forward(const at::Tensor& x,
                                                   const ConditionalRoutedAttentionInputs& inputs) {
  check_tokens(kName, x, options.dim);
  check_padding(kName, inputs.mask, x);
  HeavyBranch branch = {.q_router = q_router,
                        .kv_router = kv_router,
                        .attention = heavy_attn,
                        .null_q_token = null_q_token,
                        .multiply_queries_by_score = options.multiply_queries_by_score};
  if (rotary_emb) branch.inv_freq = rotary_emb->frequencies();
  const at::Tensor out = branch.forward(
      {x, inputs.num_heavy_tokens_q.value_or(options.num_heavy_tokens_q), {.mask = inputs.mask}},
      {x, inputs.num_heavy_tokens_kv.value_or(options.num_heavy_tokens_kv), {.mask = inputs.mask}});
  return light_attn ? light_attn->forward(x, {.mask = inputs.mask}) + out : out;
}

void ConditionalRoutedAttentionImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::" << kName << "(dim=" << options.dim
         << ", num_heavy_tokens_q=" << options.num_heavy_tokens_q
         << ", num_heavy_tokens_kv=" << options.num_heavy_tokens_kv
         << ", num_routed_kv=" << options.num_routed_kv << ")";
}

}  // namespace weir::nn
