// SPDX-License-Identifier: Apache-2.0
// Causal routed attention. `forward` treats all windows at once, `step` a token per row; both
// attend to rows of one table of keys and values, into which every token is projected once.
#include "weir/nn/conditional_routed_autoregressive_attention.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/randn_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include "nn/causal_routing.h"
#include "nn/check.h"
#include "nn/heavy_branch.h"
#include "nn/tokens_at.h"
#include "weir/nn/route_back.h"

namespace weir::nn {
namespace {

constexpr auto kName = "ConditionalRoutedAutoregressiveAttention";

using Options = ConditionalRoutedAutoregressiveAttentionOptions;
using Inputs = ConditionalRoutedAutoregressiveAttentionInputs;

void check(const Options& options) {
  check_size(kName, "dim", options.dim);
  check_size(kName, "num_heavy_tokens_q", options.num_heavy_tokens_q);
  check_size(kName, "num_heavy_tokens_kv", options.num_heavy_tokens_kv);
  check_size(kName, "num_routed_kv", options.num_routed_kv);
  check_size(kName, "light_dim_head", options.light_dim_head);
  check_size(kName, "light_heads", options.light_heads);
  check_size(kName, "light_window_size", options.light_window_size);
  check_size(kName, "heavy_window_size", options.window());
  check_size(kName, "heavy_dim_head", options.heavy_dim_head);
  check_size(kName, "heavy_heads", options.heavy_heads);
  check_routes(kName, "num_routed_kv", options.num_routed_kv, "heavy_heads", options.heavy_heads);
  TORCH_CHECK_VALUE(!options.rotary_emb || options.heavy_dim_head % 2 == 0, "weir::", kName,
                    ": expected `heavy_dim_head` to be even with `rotary_emb`, but got ",
                    options.heavy_dim_head, ".");
  check_causal_routing(kName, options.router_kwargs.router(options.dim, true),
                       options.autoregressive_routing, options.threshold_solver, options.tau);
}

LocalMHAOptions light_options(const Options& options) {
  return {.dim = options.dim,
          .window_size = options.light_window_size,
          .dim_head = options.light_dim_head,
          .heads = options.light_heads,
          .causal = true,
          .prenorm = true,
          .exact_windowsize = false,
          .use_rotary_pos_emb = options.light_rotary};
}

CausalRoutes without_first_window(const CausalRoutes& all) {
  const auto later = [](const at::Tensor& x) { return x.narrow(1, 1, x.size(1) - 1); };
  return {later(all.positions), later(all.scores), later(all.mask)};
}

}  // namespace

ConditionalRoutedAutoregressiveAttentionImpl::ConditionalRoutedAutoregressiveAttentionImpl(
    const Options& options_)
    : options(options_) {
  check(options);
  reset();
}

void ConditionalRoutedAutoregressiveAttentionImpl::reset() {
  if (options.use_null_q_tokens) {
    null_q_token = register_parameter("null_q_token", at::randn({options.dim}));
  }
  light_attn = register_module("light_attn", LocalMHA(light_options(options)));
  const auto router = [this](std::int64_t routes) {
    return CoordinateDescentRouter(
        options.router_kwargs.router(options.dim, options.router_straight_through, routes));
  };
  q_router = register_module("q_router", router(1));
  kv_router = register_module("kv_router", router(options.num_routed_kv));
  heavy_attn = register_module(
      "heavy_attn", HeavyAttention({.dim = options.dim,
                                    .dim_head = options.heavy_dim_head,
                                    .heads = options.heavy_heads,
                                    .multiply_keys_by_score = options.multiply_keys_by_score}));
  if (options.rotary_emb) {
    rotary_emb = register_module("rotary_emb", RotaryFrequencies(options.heavy_dim_head));
  }
}

at::Tensor ConditionalRoutedAutoregressiveAttentionImpl::forward(const at::Tensor& x,
                                                                 const Inputs& inputs) {
  check_tokens(kName, x, options.dim);
  check_size(kName, "num_heavy_tokens_q", inputs.num_heavy_tokens_q.value_or(1));
  check_size(kName, "num_heavy_tokens_kv", inputs.num_heavy_tokens_kv.value_or(1));
  const at::Tensor light = light_attn->forward(x);
  const std::int64_t n = x.size(1), w = options.window();
  if (n <= w) return light;
  const at::Tensor positions =
      at::arange(n, x.options().dtype(at::kLong).requires_grad(false)).expand({x.size(0), n});
  const at::Tensor later = heavy(x, similarities(x), project(x, positions), inputs);
  return at::cat({light.narrow(1, 0, w), light.narrow(1, w, n - w) + later}, 1);
}

at::Tensor ConditionalRoutedAutoregressiveAttentionImpl::step(const at::Tensor& x,
                                                              const at::Tensor& positions,
                                                              std::int64_t length,
                                                              std::span<KeyValues> past) {
  at::NoGradGuard no_grad;
  check_tokens(kName, x, options.dim);
  TORCH_CHECK_VALUE(options.autoregressive_routing == "strict", "weir::", kName,
                    ": expected `autoregressive_routing` \"strict\" for a step: \"window\" looks "
                    "at later tokens.");
  const std::int64_t count = x.size(1), n = x.size(0) == 0 ? 0 : length, w = options.window();
  const at::Tensor light = light_attn->step(x, positions, past[0]);
  if (n == 0 || count == 0) return light;
  const at::Tensor s = similarities(x), table = project(x, positions);
  const at::Tensor seen_s = write_slots(past[2].keys, s.unsqueeze(-1), positions, n).squeeze(-1);
  write_slots(past[1].keys, table.narrow(1, 1, count).flatten(2).unsqueeze(1), positions + 1, n);
  if (length == count && n > w) {  // all rows begin here
    const at::Tensor later = heavy(x, s, table, {});
    return at::cat({light.narrow(1, 0, w), light.narrow(1, w, n - w) + later}, 1);
  }
  std::vector<at::Tensor> parts;  // (batch, 1, dim)
  for (std::int64_t i = 0; i < count; ++i) {
    parts.push_back(
        heavy_of_token(x.narrow(1, i, 1), positions.select(1, i), seen_s, past[1].keys.squeeze(1)));
  }
  return light + at::cat(parts, 1);
}

std::vector<KeyValues> ConditionalRoutedAutoregressiveAttentionImpl::make_cache(
    std::int64_t batch, std::int64_t max_length) const {
  const auto options_of_rows = heavy_attn->null_kv.options();
  const at::Tensor null = heavy_attn->null_row().detach();
  const at::ScalarType wide = null.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const auto room = [batch](std::int64_t heads, std::int64_t slots, std::int64_t features,
                            const at::TensorOptions& of) {
    KeyValues entry = blank_key_values(batch, heads, slots, features, of);
    entry.values = entry.keys.narrow(-1, 0, 0);
    return entry;
  };
  std::vector<KeyValues> entries = {
      light_attn->make_cache(batch), room(1, 1 + max_length, null.numel(), options_of_rows),
      room(1 + options.num_routed_kv, max_length, 1, options_of_rows.dtype(wide))};
  entries[1].keys.narrow(2, 0, 1).copy_(null.flatten());
  return entries;
}

CausalRoutingRule ConditionalRoutedAutoregressiveAttentionImpl::rule(
    std::int64_t num_heavy_tokens_q) const {
  return {q_router->options, options.window(), num_heavy_tokens_q, options.threshold_solver,
          options.tau};
}

// (batch, 1 + num_routed_kv, n): of the router of queries, then of those of keys.
at::Tensor ConditionalRoutedAutoregressiveAttentionImpl::similarities(const at::Tensor& x) const {
  return at::cat({q_router->similarities(x), kv_router->similarities(x)}, 1);
}

// (batch, 1 + n, heads, 2, dim_head): the null row of HeavyAttention, then those of the tokens.
at::Tensor ConditionalRoutedAutoregressiveAttentionImpl::project(const at::Tensor& x,
                                                                 const at::Tensor& positions) {
  const auto inv_freq = rotary_emb ? std::optional(rotary_emb->frequencies()) : std::nullopt;
  const at::Tensor rows = heavy_attn->project(x, positions, inv_freq);
  const at::Tensor null = heavy_attn->null_row().to(rows.scalar_type());
  return at::cat({null.expand({x.size(0), 1, -1, -1, -1}), rows}, 1);
}

// What the heavy branch gives for tokens that it did not get, (dim).
at::Tensor ConditionalRoutedAutoregressiveAttentionImpl::rest() const {
  return null_q_token.defined()
             ? null_q_token
             : at::zeros({options.dim}, heavy_attn->null_kv.options().requires_grad(false));
}

// Queries `q` (batch, windows, k) of `x` over keys `kv` (batch, routes, windows, m), times the
// scores of the queries: (batch, windows * k, dim).
at::Tensor ConditionalRoutedAutoregressiveAttentionImpl::attend(const at::Tensor& x,
                                                                const at::Tensor& table,
                                                                const CausalRoutes& q,
                                                                const CausalRoutes& kv) {
  const auto of_windows = [](const at::Tensor& all) { return all.transpose(1, 2).flatten(0, 1); };
  const at::Tensor first = at::arange(x.size(0), kv.positions.options()) * table.size(1) + 1;
  // Straight-through scores are 1 where there is a mask, and matter to a gradient alone.
  const bool are_one = options.router_straight_through && !kv.scores.requires_grad();
  const HeavyAttentionRoutes routes = {.rows = of_windows(kv.positions + first.view({-1, 1, 1, 1})),
                                       .mask = of_windows(kv.mask),
                                       .scores = are_one ? at::Tensor() : of_windows(kv.scores)};
  HeavyAttentionInputs inputs;
  if (options.multiply_queries_by_score) inputs.normalized_scores_q = q.scores.flatten(0, 1);
  if (rotary_emb) {
    inputs.inv_freq = rotary_emb->frequencies();
    inputs.positions_q = q.positions.flatten(0, 1);
  }
  const std::int64_t batch = x.size(0), windows = q.positions.size(1), k = q.positions.size(2);
  const at::Tensor tokens = tokens_at(x, q.positions).flatten(0, 1);
  const at::Tensor out = heavy_attn->forward_rows(tokens, table, routes, inputs);
  return (out * q.scores.flatten(0, 1).unsqueeze(-1)).view({batch, windows * k, options.dim});
}

// Of all windows but the first: (batch, n - window, dim).
at::Tensor ConditionalRoutedAutoregressiveAttentionImpl::heavy(const at::Tensor& x,
                                                               const at::Tensor& similarities,
                                                               const at::Tensor& table,
                                                               const Inputs& inputs) {
  const auto routing = rule(inputs.num_heavy_tokens_q.value_or(options.num_heavy_tokens_q));
  const bool random = inputs.random_route;
  const at::Tensor s = random ? at::randn_like(similarities) : similarities;
  const at::Tensor of_q = s.select(1, 0), of_kv = s.narrow(1, 1, options.num_routed_kv);
  const CausalRoutes q = without_first_window(options.autoregressive_routing == "strict" && !random
                                                  ? route_strictly(of_q, routing)
                                                  : route_whole_windows(of_q, routing, random));
  const CausalRoutes kv = route_prefixes(
      of_kv, routing, inputs.num_heavy_tokens_kv.value_or(options.num_heavy_tokens_kv), random);
  const at::Tensor out = attend(x, table, q, kv);
  const std::int64_t w = routing.window;
  const at::Tensor others =
      rest().to(x.scalar_type()).expand({x.size(0), x.size(1) - w, options.dim});
  return route_back(others, out, q.positions.flatten(1) - w, q.mask.flatten(1));
}

// Of one token per row, `x` (batch, 1, dim) at `position` (batch); `similarities` (batch, routers,
// slots) and `table` (batch, 1 + slots or more, ...) hold all tokens up to it.
at::Tensor ConditionalRoutedAutoregressiveAttentionImpl::heavy_of_token(
    const at::Tensor& x, const at::Tensor& position, const at::Tensor& similarities,
    const at::Tensor& table) {
  const auto routing = rule(options.num_heavy_tokens_q);
  const auto [routed, score] = route_token(similarities.select(1, 0), position, routing);
  const CausalRoutes kv = route_prefix_of_token(similarities.narrow(1, 1, options.num_routed_kv),
                                                position, routing, options.num_heavy_tokens_kv);
  // The token is the only one of `x`, wherever it stands.
  const at::Tensor out = attend(x, table,
                                {.positions = position.view({-1, 1, 1}),
                                 .scores = score.view({-1, 1, 1}),
                                 .mask = routed.view({-1, 1, 1})},
                                kv);
  const at::Tensor given = at::where(routed.view({-1, 1, 1}), out, rest().to(out.scalar_type()));
  return given.masked_fill((position < routing.window).view({-1, 1, 1}), 0).to(x.scalar_type());
}

void ConditionalRoutedAutoregressiveAttentionImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::" << kName << "(dim=" << options.dim
         << ", num_heavy_tokens_q=" << options.num_heavy_tokens_q
         << ", num_heavy_tokens_kv=" << options.num_heavy_tokens_kv
         << ", num_routed_kv=" << options.num_routed_kv
         << ", heavy_window_size=" << options.window()
         << ", autoregressive_routing=" << options.autoregressive_routing << ")";
}

}  // namespace weir::nn
