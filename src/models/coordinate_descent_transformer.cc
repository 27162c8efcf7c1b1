// SPDX-License-Identifier: Apache-2.0
// The coordinate-descent transformer: embeddings, layers, head, and its cache. The names under
// which the parts are registered are those of the published state dict.
#include "weir/models/coordinate_descent_transformer.h"

#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <algorithm>

#include "config/options.h"
#include "nn/check.h"

namespace weir::models {
namespace {

constexpr auto kName = "CoordinateDescentTransformer";

// What the parts would report under another name, or not at all.
void check(const CoordinateDescentTransformerOptions& options) {
  nn::check_size(kName, "num_tokens", options.num_tokens);
  nn::check_size(kName, "dim", options.dim);
  nn::check_size(kName, "seq_len", options.seq_len);
  nn::check_size(kName, "depth", options.depth);
  nn::check_positive(kName, "attn_coor_descent_sparsity_k", options.attn_coor_descent_sparsity_k);
  if (options.ff_coor_descent_sparsity_k) {
    nn::check_positive(kName, "ff_coor_descent_sparsity_k", *options.ff_coor_descent_sparsity_k);
  }
}

nn::CoordinateDescentAttentionOptions attention_options(
    const CoordinateDescentTransformerOptions& options) {
  return {.dim = options.dim,
          .dim_head = options.dim_head,
          .heads = options.heads,
          .use_coor_descent = options.attn_use_coor_descent,
          .coor_descent_iters = options.coor_descent_iters,
          .coor_descent_sparsity_k = options.attn_coor_descent_sparsity_k,
          .coor_descent_eps = options.coor_descent_eps,
          .coor_descent_eps_init = options.coor_descent_eps_init,
          .coor_descent_eps_decay = options.coor_descent_eps_decay,
          .coor_descent_solver = options.coor_descent_solver,
          .attn_null_kv = options.attn_null_kv,
          .learned_sparsity_k = options.learned_sparsity_k,
          .coor_descent_normalize = options.coor_descent_normalize,
          .attn_kind = options.attn_kind,
          .attn_top_k = options.attn_top_k,
          .attn_route_dim_head = options.attn_route_dim_head,
          .attn_route_heads = options.attn_route_heads,
          .attn_route_score = options.attn_route_score};
}

nn::CoordinateDescentFeedForwardOptions feed_forward_options(
    const CoordinateDescentTransformerOptions& options) {
  return {.dim = options.dim,
          .mult = options.ff_mult,
          .use_coor_descent = options.ff_use_coor_descent,
          .coor_descent_iters = options.coor_descent_iters,
          .coor_descent_sparsity_k = options.ff_coor_descent_sparsity_k,
          .coor_descent_eps = options.coor_descent_eps,
          .coor_descent_eps_init = options.coor_descent_eps_init,
          .coor_descent_eps_decay = options.coor_descent_eps_decay,
          .coor_descent_solver = options.coor_descent_solver,
          .coor_descent_gate = options.ff_coor_descent_gate};
}

}  // namespace

CoordinateDescentLayerImpl::CoordinateDescentLayerImpl(
    nn::CoordinateDescentAttentionOptions attention_options_,
    nn::CoordinateDescentFeedForwardOptions feed_forward_options_)
    : attention_options(std::move(attention_options_)),
      feed_forward_options(std::move(feed_forward_options_)) {
  reset();
}

void CoordinateDescentLayerImpl::reset() {
  attention = register_module("0", nn::CoordinateDescentAttention(attention_options));
  feed_forward = register_module("1", nn::CoordinateDescentFeedForward(feed_forward_options));
}

at::Tensor CoordinateDescentLayerImpl::forward(const at::Tensor& x) {
  const at::Tensor attended = x + attention(x);
  return attended + feed_forward(attended);
}

at::Tensor CoordinateDescentLayerImpl::step(const at::Tensor& x, const at::Tensor& positions,
                                            std::int64_t length, std::span<nn::KeyValues> past) {
  const at::Tensor attended = x + attention->step(x, positions, length, past);
  return attended + feed_forward(attended);
}

CoordinateDescentTransformerImpl::CoordinateDescentTransformerImpl(
    const CoordinateDescentTransformerOptions& options_)
    : options(options_) {
  check(options);
  token_emb = register_module("token_emb", torch::nn::Embedding(options.num_tokens, options.dim));
  pos_emb = register_module("pos_emb", torch::nn::Embedding(options.seq_len, options.dim));
  layers = register_module("layers", torch::nn::ModuleList());
  for (std::int64_t layer = 0; layer < options.depth; ++layer) {
    layers->push_back(
        CoordinateDescentLayer(attention_options(options), feed_forward_options(options)));
  }
  to_logits = register_module(
      "to_logits",
      torch::nn::Sequential(torch::nn::LayerNorm(torch::nn::LayerNormOptions({options.dim})),
                            torch::nn::Linear(options.dim, options.num_tokens)));
}

at::Tensor CoordinateDescentTransformerImpl::forward(const at::Tensor& tokens) {
  check_tokens(kName, tokens);
  const at::Tensor positions = at::arange(tokens.size(1), tokens.options());
  at::Tensor x = token_emb(tokens) + pos_emb(positions);  // (batch, n, dim)
  for (const auto& layer : *layers) x = layer->as<CoordinateDescentLayer>()->forward(x);
  return to_logits->forward(x);
}

at::Tensor CoordinateDescentTransformerImpl::step(const at::Tensor& tokens, Cache& cache) {
  at::NoGradGuard no_grad;
  check_step(kName, tokens, cache);
  const at::Tensor positions = cache.next_positions(tokens.size(1));  // (batch, m)
  const std::int64_t length = cache.longest() + tokens.size(1);
  at::Tensor x = token_emb(tokens) + pos_emb(positions);  // (batch, m, dim)
  std::span<nn::KeyValues> entries = cache.layers;
  for (const auto& module : *layers) {
    auto& layer = *module->as<CoordinateDescentLayer>();
    const std::size_t count = layer.attention->cache_entries();
    x = layer.step(x, positions, length, entries.first(count));
    entries = entries.subspan(count);
  }
  cache.advance(tokens.size(1));
  return to_logits->forward(x);
}

Cache CoordinateDescentTransformerImpl::make_cache(std::int64_t batch) const {
  std::vector<nn::KeyValues> entries;
  for (const auto& layer : *layers) {
    for (auto& entry :
         layer->as<CoordinateDescentLayer>()->attention->make_cache(batch, options.seq_len)) {
      entries.push_back(std::move(entry));
    }
  }
  return Cache(std::move(entries), batch, options.seq_len);
}

std::string CoordinateDescentTransformerImpl::options_json() const {
  return config::to_json(options).dump();
}

void CoordinateDescentTransformerImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::models::" << kName << "(num_tokens=" << options.num_tokens
         << ", dim=" << options.dim << ", seq_len=" << options.seq_len
         << ", depth=" << options.depth << ")";
}

}  // namespace weir::models
