// SPDX-License-Identifier: Apache-2.0
// The Sparse Transformer: embeddings, pre-norm layers with a pattern each, the tied unembedding,
// and a cache of one entry per layer and group of heads.
#include "weir/models/sparse_transformer.h"

#include <torch/nn/init.h>

#include <cmath>

#include "config/options.h"
#include "nn/check.h"
#include "nn/sparse_mode.h"

namespace weir::models {
namespace {

constexpr auto kName = "SparseTransformer";
constexpr double kDeviation = 0.02, kPositionDeviation = 0.01;  // of the initial weights

bool uses_layout(const std::string& mode) { return mode.find("custom") != std::string::npos; }

/// The modes that the layers take in turn.
std::vector<std::string> layer_modes(const SparseTransformerOptions& options) {
  return nn::split_modes(options.attn_mode, ';');
}

void check(const SparseTransformerOptions& options) {
  nn::check_size(kName, "num_tokens", options.num_tokens);
  nn::check_size(kName, "dim", options.dim);
  nn::check_size(kName, "seq_len", options.seq_len);
  nn::check_size(kName, "depth", options.depth);
  const double hidden = static_cast<double>(options.dim) * options.ff_mult;
  TORCH_CHECK_VALUE(hidden >= 1 && hidden <= 1 << 30, "weir::", kName,
                    ": expected `dim` * `ff_mult` to lie in [1, ", 1 << 30, "], but got ",
                    options.dim, " * ", options.ff_mult, ".");
  TORCH_CHECK_VALUE(options.dropout >= 0 && options.dropout < 1, "weir::", kName,
                    ": expected `dropout` to lie in [0, 1), but got ", options.dropout, ".");
  const auto modes = std::ssize(layer_modes(options));
  TORCH_CHECK_VALUE(modes <= options.depth, "weir::", kName,
                    ": expected `attn_mode` to have modes for at most the ", options.depth,
                    " layers, but got ", modes, ".");
  TORCH_CHECK_VALUE(options.layout.empty() || uses_layout(options.attn_mode), "weir::", kName,
                    ": expected `layout` only with `attn_mode` \"custom\", but `attn_mode` is \"",
                    options.attn_mode, "\".");
}

nn::SparseSelfAttentionOptions attention_options(const SparseTransformerOptions& options,
                                                 const std::string& mode) {
  return {.dim = options.dim,
          .seq_len = options.seq_len,
          .heads = options.heads,
          .dim_head = options.dim_head,
          .attn_mode = mode,
          .local_attn_ctx = options.local_attn_ctx,
          .block_size = options.block_size,
          .num_verts = options.num_verts,
          .vertsize = options.vertsize,
          .layout = uses_layout(mode) ? options.layout : std::vector<std::string>()};
}

torch::nn::LayerNorm layer_norm(std::int64_t dim) {
  return torch::nn::LayerNorm(torch::nn::LayerNormOptions({dim}));
}

void initialise_linear(torch::nn::LinearImpl& linear, double deviation) {
  torch::nn::init::normal_(linear.weight, 0, deviation);
  torch::nn::init::zeros_(linear.bias);
}

}  // namespace

SparseTransformerFeedForwardImpl::SparseTransformerFeedForwardImpl(std::int64_t dim_,
                                                                   std::int64_t hidden_)
    : dim(dim_), hidden(hidden_) {
  reset();
}

void SparseTransformerFeedForwardImpl::reset() {
  proj_in = register_module("proj_in", torch::nn::Linear(dim, hidden));
  proj_out = register_module("proj_out", torch::nn::Linear(hidden, dim));
}

at::Tensor SparseTransformerFeedForwardImpl::forward(const at::Tensor& x) {
  const at::Tensor units = proj_in(x);  // (..., hidden)
  return proj_out(units * (1.702 * units).sigmoid());
}

SparseTransformerLayerImpl::SparseTransformerLayerImpl(
    nn::SparseSelfAttentionOptions attention_options_, std::int64_t hidden_, double dropout_)
    : attention_options(std::move(attention_options_)), hidden(hidden_), dropout(dropout_) {
  reset();
}

void SparseTransformerLayerImpl::reset() {
  const std::int64_t dim = attention_options.dim;
  attention_norm = register_module("attention_norm", layer_norm(dim));
  attention = register_module("attention", nn::SparseSelfAttention(attention_options));
  feed_forward_norm = register_module("feed_forward_norm", layer_norm(dim));
  feed_forward = register_module("feed_forward", SparseTransformerFeedForward(dim, hidden));
  drop = register_module("drop", torch::nn::Dropout(dropout));
}

at::Tensor SparseTransformerLayerImpl::forward(const at::Tensor& x) {
  const at::Tensor attended = x + drop(attention(attention_norm(x)));
  return attended + drop(feed_forward(feed_forward_norm(attended)));
}

at::Tensor SparseTransformerLayerImpl::step(const at::Tensor& x, const at::Tensor& positions,
                                            std::int64_t length, std::span<nn::KeyValues> past) {
  const at::Tensor attended = x + drop(attention->step(attention_norm(x), positions, length, past));
  return attended + drop(feed_forward(feed_forward_norm(attended)));
}

SparseTransformerImpl::SparseTransformerImpl(const SparseTransformerOptions& options_)
    : options(options_) {
  check(options);
  token_emb = register_module("token_emb", torch::nn::Embedding(options.num_tokens, options.dim));
  pos_emb = register_module("pos_emb", torch::nn::Embedding(options.seq_len, options.dim));
  drop = register_module("drop", torch::nn::Dropout(options.dropout));
  layers = register_module("layers", torch::nn::ModuleList());
  const auto modes = layer_modes(options);
  const auto hidden = static_cast<std::int64_t>(static_cast<double>(options.dim) * options.ff_mult);
  for (std::size_t layer = 0; std::ssize(*layers) < options.depth; ++layer) {
    layers->push_back(SparseTransformerLayer(
        attention_options(options, modes[layer % modes.size()]), hidden, options.dropout));
  }
  norm = register_module("norm", layer_norm(options.dim));
  initialise();
}

void SparseTransformerImpl::initialise() {
  torch::nn::init::normal_(token_emb->weight, 0, kDeviation);
  torch::nn::init::normal_(pos_emb->weight, 0, kPositionDeviation);
  const double branch = kDeviation / static_cast<double>(options.depth);
  for (const auto& module : *layers) {
    auto& layer = *module->as<SparseTransformerLayer>();
    initialise_linear(*layer.attention->to_qkv, kDeviation);
    initialise_linear(*layer.attention->to_out, branch);
    initialise_linear(*layer.feed_forward->proj_in, kDeviation);
    initialise_linear(*layer.feed_forward->proj_out, branch);
  }
}

at::Tensor SparseTransformerImpl::to_logits(const at::Tensor& x) {
  return at::linear(norm(x), token_emb->weight);
}

at::Tensor SparseTransformerImpl::forward(const at::Tensor& tokens) {
  check_tokens(kName, tokens);
  const at::Tensor positions = at::arange(tokens.size(1), tokens.options());
  at::Tensor x = drop(token_emb(tokens) + pos_emb(positions));  // (batch, n, dim)
  for (const auto& layer : *layers) x = layer->as<SparseTransformerLayer>()->forward(x);
  return to_logits(x);
}

at::Tensor SparseTransformerImpl::step(const at::Tensor& tokens, Cache& cache) {
  at::NoGradGuard no_grad;
  check_step(kName, tokens, cache);
  const at::Tensor positions = cache.next_positions(tokens.size(1));  // (batch, m)
  const std::int64_t length = cache.longest() + tokens.size(1);
  at::Tensor x = drop(token_emb(tokens) + pos_emb(positions));  // (batch, m, dim)
  std::span<nn::KeyValues> entries = cache.layers;
  for (const auto& module : *layers) {
    auto& layer = *module->as<SparseTransformerLayer>();
    const std::size_t groups = layer.attention->groups();
    x = layer.step(x, positions, length, entries.first(groups));
    entries = entries.subspan(groups);
  }
  cache.advance(tokens.size(1));
  return to_logits(x);
}

Cache SparseTransformerImpl::make_cache(std::int64_t batch) const {
  std::vector<nn::KeyValues> entries;
  for (const auto& layer : *layers) {
    for (auto& entry : layer->as<SparseTransformerLayer>()->attention->make_cache(batch)) {
      entries.push_back(std::move(entry));
    }
  }
  return Cache(std::move(entries), batch, options.seq_len, /*forgets=*/true);
}

std::string SparseTransformerImpl::options_json() const { return config::to_json(options).dump(); }

void SparseTransformerImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::models::" << kName << "(num_tokens=" << options.num_tokens
         << ", dim=" << options.dim << ", seq_len=" << options.seq_len
         << ", depth=" << options.depth << ", attn_mode=" << options.attn_mode << ")";
}

}  // namespace weir::models
