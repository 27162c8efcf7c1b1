// SPDX-License-Identifier: Apache-2.0
// Light branch inside windows, heavy branch for what the routers choose. Windows become entries of
// a batch, for the light branch and, with routing by window, for the heavy one too.
#include "weir/nn/conditional_routed_image_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/randn.h>

#include "nn/check.h"
#include "nn/heavy_branch.h"
#include "nn/windows.h"

namespace weir::nn {
namespace {

constexpr auto kName = "ConditionalRoutedImageAttention";

void check(const ConditionalRoutedImageAttentionOptions& options) {
  check_size(kName, "dim", options.dim);
  check_size(kName, "num_heavy_tokens_q", options.num_heavy_tokens_q);
  check_size(kName, "num_heavy_tokens_kv", options.num_heavy_tokens_kv);
  check_size(kName, "num_routed_kv", options.num_routed_kv);
  check_size(kName, "light_dim_head", options.light_dim_head);
  check_size(kName, "light_heads", options.light_heads);
  check_size(kName, "light_window_size", options.light_window_size);
  check_size(kName, "heavy_dim_head", options.heavy_dim_head);
  check_size(kName, "heavy_heads", options.heavy_heads);
  check_routes(kName, "num_routed_kv", options.num_routed_kv, "heavy_heads", options.heavy_heads);
  TORCH_CHECK_VALUE(options.routing == "global" || options.routing == "window", "weir::", kName,
                    ": expected `routing` to be \"global\" or \"window\", but got \"",
                    options.routing, "\".");
}

// `x` (batch, height, width, dim), whatever it was given as.
at::Tensor checked_map(const at::Tensor& x, const ConditionalRoutedImageAttentionOptions& options) {
  const auto [dim, w] = std::pair(options.dim, options.light_window_size);
  if (options.channel_first) {
    TORCH_CHECK_VALUE(x.dim() == 4 && x.size(1) == dim, "weir::", kName,
                      ": expected `x` to have shape [batch, ", dim, ", height, width], but got ",
                      x.sizes(), ".");
  } else {
    TORCH_CHECK_VALUE(x.dim() == 4 && x.size(3) == dim, "weir::", kName,
                      ": expected `x` to have shape [batch, height, width, ", dim, "], but got ",
                      x.sizes(), ".");
  }
  const at::Tensor map = options.channel_first ? x.permute({0, 2, 3, 1}) : x;
  TORCH_CHECK_VALUE(map.size(1) % w == 0 && map.size(2) % w == 0, "weir::", kName,
                    ": expected height and width of `x` to be multiples of `light_window_size`, ",
                    w, ", but got ", map.size(1), " and ", map.size(2), ".");
  return map.contiguous();
}

// Numbers per entry of the batch, for each of its windows.
NumTokens for_windows(const NumTokens& number, std::int64_t windows) {
  return number.per_entry.defined() ? NumTokens(number.per_entry.repeat_interleave(windows))
                                    : number;
}

}  // namespace

ConditionalRoutedImageAttentionImpl::ConditionalRoutedImageAttentionImpl(
    const ConditionalRoutedImageAttentionOptions& options_)
    : options(options_) {
  check(options);
  reset();
}

void ConditionalRoutedImageAttentionImpl::reset() {
  if (options.use_null_q_tokens) {
    null_q_token = register_parameter("null_q_token", at::randn({options.dim}));
  }
  light_attn = register_module("light_attn", SelfAttention({.dim = options.dim,
                                                            .dim_head = options.light_dim_head,
                                                            .heads = options.light_heads,
                                                            .prenorm = true}));
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
}

at::Tensor ConditionalRoutedImageAttentionImpl::forward(
    const at::Tensor& x, const ConditionalRoutedImageAttentionInputs& inputs) {
  const at::Tensor map = checked_map(x, options);
  check_padding(kName, inputs.mask, map);
  const std::int64_t w = options.light_window_size;
  const at::Tensor windows = to_windows(map, w);
  std::optional<at::Tensor> mask;
  if (inputs.mask) mask = to_windows(*inputs.mask, w);
  const at::Tensor light = light_attn->forward(windows, {.mask = mask});

  HeavyBranch branch = {.q_router = q_router,
                        .kv_router = kv_router,
                        .attention = heavy_attn,
                        .null_q_token = null_q_token,
                        .multiply_queries_by_score = options.multiply_queries_by_score};
  const NumTokens num_q = inputs.num_heavy_tokens_q.value_or(options.num_heavy_tokens_q),
                  num_kv = inputs.num_heavy_tokens_kv.value_or(options.num_heavy_tokens_kv);
  at::Tensor out;
  if (options.routing == "window") {
    const std::int64_t count = map.size(1) / w * (map.size(2) / w);
    const at::Tensor heavy = branch.forward({windows, for_windows(num_q, count), {.mask = mask}},
                                            {windows, for_windows(num_kv, count), {.mask = mask}});
    out = from_windows(light + heavy, map.sizes(), w);
  } else {
    if (inputs.mask) mask = inputs.mask->flatten(1);
    const at::Tensor places = map.flatten(1, 2);
    const at::Tensor heavy =
        branch.forward({places, num_q, {.mask = mask}}, {places, num_kv, {.mask = mask}});
    out = from_windows(light, map.sizes(), w) + heavy.view(map.sizes());
  }
  return options.channel_first ? out.permute({0, 3, 1, 2}) : out;
}

void ConditionalRoutedImageAttentionImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::" << kName << "(dim=" << options.dim
         << ", num_heavy_tokens_q=" << options.num_heavy_tokens_q
         << ", num_heavy_tokens_kv=" << options.num_heavy_tokens_kv
         << ", num_routed_kv=" << options.num_routed_kv
         << ", light_window_size=" << options.light_window_size << ", routing=" << options.routing
         << ")";
}

}  // namespace weir::nn
