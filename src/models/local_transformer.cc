// SPDX-License-Identifier: Apache-2.0
// The local transformer: embeddings, layers in residual streams, head, and its cache. The names
// under which the parts are registered are those of the published state dict.
#include "weir/models/local_transformer.h"

#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include "config/options.h"
#include "nn/check.h"

namespace weir::models {
namespace {

constexpr auto kName = "LocalTransformer";

// What the parts would report under another name, or not at all.
void check(const LocalTransformerOptions& options) {
  nn::check_size(kName, "num_tokens", options.num_tokens);
  nn::check_size(kName, "max_seq_len", options.max_seq_len);
  nn::check_size(kName, "dim", options.dim, options.use_dynamic_pos_bias ? 2 : 1);
  nn::check_size(kName, "depth", options.depth);
  nn::check_size(kName, "local_attn_window_size", options.local_attn_window_size);
  nn::check_share(kName, "attn_dropout", options.attn_dropout);
  nn::check_share(kName, "ff_dropout", options.ff_dropout);
  TORCH_CHECK_VALUE(options.causal, "weir::", kName,
                    ": expected `causal` to be true: a language model predicts each token from "
                    "those before it.");
}

nn::LocalMHAOptions attention_options(const LocalTransformerOptions& options) {
  return {.dim = options.dim,
          .window_size = options.local_attn_window_size,
          .dim_head = options.dim_head,
          .heads = options.heads,
          .dropout = options.attn_dropout,
          .causal = options.causal,
          .prenorm = true,
          .qk_rmsnorm = options.qk_rmsnorm,
          .qk_scale = options.qk_scale,
          .use_xpos = options.use_xpos,
          .xpos_scale_base = options.xpos_scale_base,
          .exact_windowsize = options.exact_windowsize,
          .gate_values_per_head = options.gate_values_per_head,
          .look_backward = options.look_backward,
          .shared_qk = options.shared_qk,
          .use_rotary_pos_emb = !options.use_dynamic_pos_bias};
}

}  // namespace

LocalLayerImpl::LocalLayerImpl(nn::LocalMHAOptions attention_options_,
                               nn::LocalFeedForwardOptions feed_forward_options_,
                               std::int64_t streams_)
    : attention_options(std::move(attention_options_)),
      feed_forward_options(std::move(feed_forward_options_)),
      streams(streams_) {
  reset();
}

void LocalLayerImpl::reset() {
  const nn::HyperConnectionsOptions connection = {.num_residual_streams = streams,
                                                  .dim = attention_options.dim};
  attend =
      register_module("0", nn::HyperConnections(connection, nn::LocalMHA(attention_options).ptr()));
  feed = register_module(
      "1", nn::HyperConnections(connection, nn::LocalFeedForward(feed_forward_options).ptr()));
}

nn::LocalMHAImpl& LocalLayerImpl::attention() const { return *attend->branch->as<nn::LocalMHA>(); }

nn::LocalFeedForwardImpl& LocalLayerImpl::feed_forward() const {
  return *feed->branch->as<nn::LocalFeedForward>();
}

at::Tensor LocalLayerImpl::feed_around(const at::Tensor& x) {
  return feed->around(x, [&](const at::Tensor& input) { return feed_forward().forward(input); });
}

at::Tensor LocalLayerImpl::forward(const at::Tensor& x,
                                   const std::optional<at::Tensor>& attn_bias) {
  return feed_around(attend->around(x, [&](const at::Tensor& input) {
    return attention().forward(input, {.attn_bias = attn_bias});
  }));
}

at::Tensor LocalLayerImpl::step(const at::Tensor& x, const at::Tensor& positions,
                                nn::KeyValues& past,
                                const std::optional<at::Tensor>& distance_bias) {
  return feed_around(attend->around(x, [&](const at::Tensor& input) {
    return attention().step(input, positions, past, distance_bias);
  }));
}

LocalTransformerImpl::LocalTransformerImpl(const LocalTransformerOptions& options_)
    : options(options_) {
  check(options);
  token_emb = register_module("token_emb", torch::nn::Embedding(options.num_tokens, options.dim));
  pos_emb = register_module("pos_emb", torch::nn::Embedding(options.max_seq_len, options.dim));
  if (options.use_dynamic_pos_bias) {
    dynamic_pos_bias =
        register_module("dynamic_pos_bias",
                        nn::DynamicPositionBias({.dim = options.dim / 2, .heads = options.heads}));
  }
  layers = register_module("layers", torch::nn::ModuleList());
  for (std::int64_t layer = 0; layer < options.depth; ++layer) {
    const nn::LocalFeedForwardOptions feed_forward = {
        .dim = options.dim, .mult = options.ff_mult, .dropout = options.ff_dropout};
    layers->push_back(
        LocalLayer(attention_options(options), feed_forward, options.num_residual_streams));
  }
  to_logits = register_module(
      "to_logits", torch::nn::Sequential(
                       torch::nn::LayerNorm(torch::nn::LayerNormOptions({options.dim})),
                       torch::nn::Linear(
                           torch::nn::LinearOptions(options.dim, options.num_tokens).bias(false))));
}

// Keys of the longest window of a bucket.
std::int64_t LocalTransformerImpl::span() const {
  return (options.look_backward + 1) * options.local_attn_window_size;
}

at::Tensor LocalTransformerImpl::forward(const at::Tensor& tokens) {
  check_tokens(kName, tokens);
  std::optional<at::Tensor> attn_bias;
  if (options.use_dynamic_pos_bias) {
    attn_bias = dynamic_pos_bias->forward(options.local_attn_window_size, span());
  }
  const at::Tensor positions = at::arange(tokens.size(1), tokens.options());
  at::Tensor x = nn::expand_streams(token_emb(tokens) + pos_emb(positions),
                                    options.num_residual_streams);  // (batch * streams, n, dim)
  for (const auto& layer : *layers) x = layer->as<LocalLayer>()->forward(x, attn_bias);
  return to_logits->forward(nn::reduce_streams(x, options.num_residual_streams));
}

at::Tensor LocalTransformerImpl::step(const at::Tensor& tokens, Cache& cache) {
  at::NoGradGuard no_grad;
  check_step(kName, tokens, cache);
  if (options.use_dynamic_pos_bias && !cache.shared.defined()) {
    cache.shared = dynamic_pos_bias->by_distance(span());
  }
  const auto distance_bias = cache.shared.defined() ? std::optional(cache.shared) : std::nullopt;
  const at::Tensor positions = cache.next_positions(tokens.size(1));  // (batch, m)
  at::Tensor x =
      nn::expand_streams(token_emb(tokens) + pos_emb(positions), options.num_residual_streams);
  for (std::size_t i = 0; i < layers->size(); ++i) {
    x = layers->at<LocalLayerImpl>(i).step(x, positions, cache.layers.at(i), distance_bias);
  }
  cache.advance(tokens.size(1));
  return to_logits->forward(nn::reduce_streams(x, options.num_residual_streams));
}

Cache LocalTransformerImpl::make_cache(std::int64_t batch) const {
  std::vector<nn::KeyValues> entries;
  for (const auto& layer : *layers) {
    entries.push_back(layer->as<LocalLayer>()->attention().make_cache(batch));
  }
  return Cache(std::move(entries), batch, options.max_seq_len);
}

std::string LocalTransformerImpl::options_json() const { return config::to_json(options).dump(); }

void LocalTransformerImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::models::" << kName << "(num_tokens=" << options.num_tokens
         << ", dim=" << options.dim << ", max_seq_len=" << options.max_seq_len
         << ", depth=" << options.depth
         << ", local_attn_window_size=" << options.local_attn_window_size << ")";
}

}  // namespace weir::models
