// SPDX-License-Identifier: Apache-2.0
// The Sparse Transformer, a language model whose layers see only a pattern of positions.
//
//   x = dropout(token_emb(tokens) + pos_emb(positions))
//   depth times:  x += dropout(attention(LayerNorm(x)));  x += dropout(feed_forward(LayerNorm(x)))
//   logits = LayerNorm(x) token_emb^T
//
// Child et al. 2019, "Generating Long Sequences with Sparse Transformers", arXiv:1904.10509.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/dropout.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <vector>

#include "weir/export.h"
#include "weir/models/language_model.h"
#include "weir/nn/module.h"
#include "weir/nn/sparse_self_attention.h"

namespace weir::models {

struct SparseTransformerOptions {
  std::int64_t num_tokens = 0;
  std::int64_t dim = 0;
  std::int64_t seq_len = 0;
  std::int64_t depth = 0;
  std::int64_t heads = 8;
  std::optional<std::int64_t> dim_head = std::nullopt;
  double ff_mult = 4;
  std::string attn_mode = "all";
  std::optional<std::int64_t> local_attn_ctx = std::nullopt;
  std::int64_t block_size = 32;
  std::int64_t num_verts = 1;
  std::int64_t vertsize = 1;
  std::vector<std::string> layout = {};
  double dropout = 0;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = SparseTransformerOptions;
    field("num_tokens", &Self::num_tokens, "Size of the vocabulary; required.");
    field("dim", &Self::dim, "Feature size of the tokens; required.");
    field("seq_len", &Self::seq_len, "Longest sequence, in tokens; required.");
    field("depth", &Self::depth, "Number of layers; required.");
    field("heads", &Self::heads, "Number of attention heads.");
    field("dim_head", &Self::dim_head, "Feature size of one attention head; none: dim / heads.");
    field("ff_mult", &Self::ff_mult, "Hidden units of the feed-forward as a multiple of dim.");
    field("attn_mode", &Self::attn_mode,
          "all, local, strided, fixed or custom; local+strided for both in one head, local,strided "
          "for half of the heads each, local;strided for layers in turn.");
    field("local_attn_ctx", &Self::local_attn_ctx,
          "The ctx of local (keys that a query sees), strided (distance) and fixed (chunk).");
    field("block_size", &Self::block_size, "Positions per block of fixed and custom, 1 to 128.");
    field("num_verts", &Self::num_verts,
          "fixed: groups of heads that see different summaries of a chunk; divides heads.");
    field("vertsize", &Self::vertsize, "fixed: blocks per summary.");
    field("layout", &Self::layout,
          "custom: a string per block of queries, such as 11.1, with a 1 per block of keys to see; "
          "heads times as many strings for a layout per head.");
    field("dropout", &Self::dropout,
          "Share of the embeddings and of each layer's additions to drop in training, in [0, 1).");
  }
};

/// Linear, x sigmoid(1.702 x), Linear. (..., dim) -> the same.
class WEIR_API SparseTransformerFeedForwardImpl
    : public torch::nn::Cloneable<SparseTransformerFeedForwardImpl> {
 public:
  SparseTransformerFeedForwardImpl(std::int64_t dim, std::int64_t hidden);

  void reset() override;

  at::Tensor forward(const at::Tensor& x);

  std::int64_t dim, hidden;
  torch::nn::Linear proj_in{nullptr};
  torch::nn::Linear proj_out{nullptr};
};

TORCH_MODULE(SparseTransformerFeedForward);

/// One layer: attention, then feed-forward, each behind a norm and around a residual. (batch, n,
/// dim) -> the same.
class WEIR_API SparseTransformerLayerImpl
    : public torch::nn::Cloneable<SparseTransformerLayerImpl> {
 public:
  SparseTransformerLayerImpl(nn::SparseSelfAttentionOptions attention_options, std::int64_t hidden,
                             double dropout);

  void reset() override;

  at::Tensor forward(const at::Tensor& x);

  /// As nn::SparseSelfAttention::step.
  at::Tensor step(const at::Tensor& x, const at::Tensor& positions, std::int64_t length,
                  std::span<nn::KeyValues> past);

  nn::SparseSelfAttentionOptions attention_options;
  std::int64_t hidden;
  double dropout;
  torch::nn::LayerNorm attention_norm{nullptr};
  nn::SparseSelfAttention attention{nullptr};
  torch::nn::LayerNorm feed_forward_norm{nullptr};
  SparseTransformerFeedForward feed_forward{nullptr};
  torch::nn::Dropout drop{nullptr};
};

TORCH_MODULE(SparseTransformerLayer);

/// The weights start as in the enwik8 program published with the paper: linear layers N(0, 0.02),
/// token embeddings N(0, 0.02), position embeddings N(0, 0.01), biases 0. What adds to the residual
/// stream, to_out of attention and proj_out of feed_forward, starts as N(0, 0.02 / depth).
class WEIR_API SparseTransformerImpl : public LanguageModel {
 public:
  static constexpr const char* kKind = "sparse";

  /// Throws c10::ValueError on options that do not fit.
  explicit SparseTransformerImpl(const SparseTransformerOptions& options);

  at::Tensor forward(const at::Tensor& tokens) override;
  Cache make_cache(std::int64_t batch) const override;
  at::Tensor step(const at::Tensor& tokens, Cache& cache) override;
  std::int64_t max_length() const override { return options.seq_len; }
  std::int64_t num_tokens() const override { return options.num_tokens; }
  std::string kind() const override { return kKind; }
  std::string options_json() const override;
  void pretty_print(std::ostream& stream) const override;

  SparseTransformerOptions options;
  torch::nn::Embedding token_emb{nullptr};
  torch::nn::Embedding pos_emb{nullptr};
  torch::nn::Dropout drop{nullptr};
  torch::nn::ModuleList layers{nullptr};  ///< depth times SparseTransformerLayer
  torch::nn::LayerNorm norm{nullptr};

 private:
  void initialise();
  at::Tensor to_logits(const at::Tensor& x);
};

WEIR_MODULE(SparseTransformer);

}  // namespace weir::models
