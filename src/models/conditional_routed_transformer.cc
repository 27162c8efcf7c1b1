// SPDX-License-Identifier: Apache-2.0
// The CoLT5 language model: embedding, layers, head, and its cache.
#include "weir/models/conditional_routed_transformer.h"

#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <utility>

#include "config/options.h"
#include "nn/check.h"

namespace weir::models {
namespace {

constexpr auto kName = "ConditionalRoutedTransformer";

// What the parts would report under another name, or not at all.
void check(const ConditionalRoutedTransformerOptions& options) {
  nn::check_size(kName, "num_tokens", options.num_tokens);
  nn::check_size(kName, "max_seq_len", options.max_seq_len);
  nn::check_size(kName, "dim", options.dim);
  nn::check_size(kName, "depth", options.depth);
  nn::check_size(kName, "num_heavy_attn_tokens_q", options.num_heavy_attn_tokens_q);
  nn::check_size(kName, "num_heavy_attn_tokens_kv", options.num_heavy_attn_tokens_kv);
  nn::check_size(kName, "num_heavy_ff_tokens", options.num_heavy_ff_tokens);
}

nn::ConditionalRoutedAutoregressiveAttentionOptions attention_options(
    const ConditionalRoutedTransformerOptions& options) {
  return {.dim = options.dim,
          .num_heavy_tokens_q = options.num_heavy_attn_tokens_q,
          .num_heavy_tokens_kv = options.num_heavy_attn_tokens_kv,
          .num_routed_kv = options.num_routed_kv,
          .light_dim_head = options.light_dim_head,
          .light_heads = options.light_heads,
          .light_window_size = options.light_window_size,
          .heavy_window_size = options.heavy_window_size,
          .heavy_dim_head = options.heavy_dim_head,
          .heavy_heads = options.heavy_heads,
          .router_straight_through = options.router_straight_through,
          .router_kwargs = options.router_kwargs,
          .use_null_q_tokens = options.use_null_q_tokens,
          .rotary_emb = options.rotary_emb,
          .light_rotary = options.light_rotary,
          .autoregressive_routing = options.autoregressive_routing,
          .threshold_solver = options.threshold_solver,
          .tau = options.tau};
}

nn::ConditionalRoutedFeedForwardOptions feed_forward_options(
    const ConditionalRoutedTransformerOptions& options) {
  return {.dim = options.dim,
          .num_heavy_tokens = options.num_heavy_ff_tokens,
          .light_ff_mult = options.light_ff_mult,
          .heavy_ff_mult = options.heavy_ff_mult,
          .router_straight_through = options.router_straight_through,
          .router_kwargs = options.router_kwargs,
          .heavy_window_size = options.heavy_window_size.value_or(options.light_window_size),
          .autoregressive_routing = options.autoregressive_routing,
          .threshold_solver = options.threshold_solver,
          .tau = options.tau};
}

// Of one layer: those of the attention, and that of the feed-forward.
constexpr std::size_t kEntries = 4;

}  // namespace

ConditionalRoutedLayerImpl::ConditionalRoutedLayerImpl(
    nn::ConditionalRoutedAutoregressiveAttentionOptions attention_options_,
    nn::ConditionalRoutedFeedForwardOptions feed_forward_options_)
    : attention_options(std::move(attention_options_)),
      feed_forward_options(std::move(feed_forward_options_)) {
  reset();
}

void ConditionalRoutedLayerImpl::reset() {
  conditional_attn = register_module(
      "conditional_attn", nn::ConditionalRoutedAutoregressiveAttention(attention_options));
  conditional_ff =
      register_module("conditional_ff", nn::ConditionalRoutedFeedForward(feed_forward_options));
}

at::Tensor ConditionalRoutedLayerImpl::forward(const at::Tensor& x) {
  const at::Tensor attended = x + conditional_attn->forward(x);
  return attended + conditional_ff->forward(attended);
}

at::Tensor ConditionalRoutedLayerImpl::step(const at::Tensor& x, const at::Tensor& positions,
                                            std::int64_t length, std::span<nn::KeyValues> past) {
  const at::Tensor attended =
      x + conditional_attn->step(x, positions, length, past.first(kEntries - 1));
  return attended + conditional_ff->step(attended, positions, length, past.back());
}

ConditionalRoutedTransformerImpl::ConditionalRoutedTransformerImpl(
    const ConditionalRoutedTransformerOptions& options_)
    : options(options_) {
  check(options);
  token_emb = register_module("token_emb", torch::nn::Embedding(options.num_tokens, options.dim));
  layers = register_module("layers", torch::nn::ModuleList());
  for (std::int64_t layer = 0; layer < options.depth; ++layer) {
    layers->push_back(
        ConditionalRoutedLayer(attention_options(options), feed_forward_options(options)));
  }
  to_logits = register_module(
      "to_logits",
      torch::nn::Sequential(torch::nn::LayerNorm(torch::nn::LayerNormOptions({options.dim})),
                            torch::nn::Linear(options.dim, options.num_tokens)));
}

at::Tensor ConditionalRoutedTransformerImpl::forward(const at::Tensor& tokens) {
  check_tokens(kName, tokens);
  at::Tensor x = token_emb(tokens);  // (batch, n, dim)
  for (const auto& layer : *layers) x = layer->as<ConditionalRoutedLayer>()->forward(x);
  return to_logits->forward(x);
}

at::Tensor ConditionalRoutedTransformerImpl::step(const at::Tensor& tokens, Cache& cache) {
  at::NoGradGuard no_grad;
  check_step(kName, tokens, cache);
  const at::Tensor positions = cache.next_positions(tokens.size(1));  // (batch, m)
  const std::int64_t length = cache.longest() + tokens.size(1);
  at::Tensor x = token_emb(tokens);  // (batch, m, dim)
  std::span<nn::KeyValues> entries = cache.layers;
  for (const auto& layer : *layers) {
    x = layer->as<ConditionalRoutedLayer>()->step(x, positions, length, entries.first(kEntries));
    entries = entries.subspan(kEntries);
  }
  cache.advance(tokens.size(1));
  return to_logits->forward(x);
}

Cache ConditionalRoutedTransformerImpl::make_cache(std::int64_t batch) const {
  std::vector<nn::KeyValues> entries;
  for (const auto& module : *layers) {
    const auto& layer = *module->as<ConditionalRoutedLayer>();
    for (auto& entry : layer.conditional_attn->make_cache(batch, options.max_seq_len)) {
      entries.push_back(std::move(entry));
    }
    entries.push_back(layer.conditional_ff->make_cache(batch, options.max_seq_len));
  }
  return Cache(std::move(entries), batch, options.max_seq_len, /*forgets=*/true);
}

std::string ConditionalRoutedTransformerImpl::options_json() const {
  return config::to_json(options).dump();
}

void ConditionalRoutedTransformerImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::models::" << kName << "(num_tokens=" << options.num_tokens
         << ", max_seq_len=" << options.max_seq_len << ", dim=" << options.dim
         << ", depth=" << options.depth << ")";
}

}  // namespace weir::models
