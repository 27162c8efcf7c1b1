// SPDX-License-Identifier: Apache-2.0
// The language model of the local-attention package: attention over a window, in any number of
// residual streams. The cache holds what the windows reach, however long the text.
//
//   x = expand_streams(token_emb(tokens) + pos_emb(positions))
//   depth times, each around its hyper-connection:  LocalMHA, then LocalFeedForward
//   logits = Linear(LayerNorm(reduce_streams(x)))
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/embedding.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>

#include "weir/export.h"
#include "weir/models/language_model.h"
#include "weir/nn/dynamic_position_bias.h"
#include "weir/nn/hyper_connections.h"
#include "weir/nn/local_feed_forward.h"
#include "weir/nn/local_mha.h"
#include "weir/nn/module.h"

namespace weir::models {

/// The arguments of the published `LocalTransformer` and those it hands on to `LocalMHA`.
struct LocalTransformerOptions {
  std::int64_t num_tokens = 0;
  std::int64_t max_seq_len = 0;
  std::int64_t dim = 0;
  std::int64_t depth = 0;
  bool causal = true;
  std::int64_t local_attn_window_size = 512;
  std::int64_t dim_head = 64;
  std::int64_t heads = 8;
  double ff_mult = 4;
  double attn_dropout = 0;
  double ff_dropout = 0;
  bool use_xpos = false;
  std::optional<double> xpos_scale_base = std::nullopt;
  bool use_dynamic_pos_bias = false;
  std::int64_t num_residual_streams = 4;
  bool qk_rmsnorm = false;
  double qk_scale = 8;
  bool exact_windowsize = true;
  bool gate_values_per_head = false;
  std::int64_t look_backward = 1;
  bool shared_qk = false;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = LocalTransformerOptions;
    field("num_tokens", &Self::num_tokens, "Size of the vocabulary; required.");
    field("max_seq_len", &Self::max_seq_len, "Longest sequence, in tokens; required.");
    field("dim", &Self::dim, "Feature size of the tokens; required.");
    field("depth", &Self::depth, "Number of layers; required.");
    field("causal", &Self::causal, "Always true: a language model predicts from what came before.");
    field("local_attn_window_size", &Self::local_attn_window_size, "Positions per bucket.");
    field("dim_head", &Self::dim_head, "Feature size of one attention head.");
    field("heads", &Self::heads, "Number of attention heads.");
    field("ff_mult", &Self::ff_mult,
          "Hidden units of the feed-forward as a multiple of dim, before the factor 2 / 3.");
    field("attn_dropout", &Self::attn_dropout, "Share of attention weights to drop in training.");
    field("ff_dropout", &Self::ff_dropout, "Share of hidden units to drop in training.");
    field("use_xpos", &Self::use_xpos, "Rotary embedding with the length scaling of xPos.");
    field("xpos_scale_base", &Self::xpos_scale_base,
          "Distance over which xPos decays; none: half the window, rounded down.");
    field("use_dynamic_pos_bias", &Self::use_dynamic_pos_bias,
          "A learned bias by distance in place of the rotary embedding.");
    field("num_residual_streams", &Self::num_residual_streams,
          "Residual streams of the hyper-connections; 1: a plain residual.");
    field("qk_rmsnorm", &Self::qk_rmsnorm, "Normalise queries and keys, with learned factors.");
    field("qk_scale", &Self::qk_scale, "Factor on the logits with qk_rmsnorm.");
    field("exact_windowsize", &Self::exact_windowsize,
          "Windows of equal length behind each query instead of whole buckets.");
    field("gate_values_per_head", &Self::gate_values_per_head,
          "Multiply what each head gives by a sigmoid of the token.");
    field("look_backward", &Self::look_backward, "Buckets, or window sizes, seen backward.");
    field("shared_qk", &Self::shared_qk,
          "Keys are normalised, and a query attends to itself only if nothing else is left.");
  }
};

/// One layer: attention, then feed-forward, each in its hyper-connection.
class WEIR_API LocalLayerImpl : public torch::nn::Cloneable<LocalLayerImpl> {
 public:
  LocalLayerImpl(nn::LocalMHAOptions attention_options,
                 nn::LocalFeedForwardOptions feed_forward_options, std::int64_t streams);

  void reset() override;

  /// (batch * streams, n, dim) -> the same; `attn_bias` as nn::LocalMHAInputs.
  at::Tensor forward(const at::Tensor& x, const std::optional<at::Tensor>& attn_bias);

  /// As nn::LocalMHA::step.
  at::Tensor step(const at::Tensor& x, const at::Tensor& positions, nn::KeyValues& past,
                  const std::optional<at::Tensor>& distance_bias);

  nn::LocalMHAImpl& attention() const;
  nn::LocalFeedForwardImpl& feed_forward() const;

  nn::LocalMHAOptions attention_options;
  nn::LocalFeedForwardOptions feed_forward_options;
  std::int64_t streams;
  nn::HyperConnections attend{nullptr};
  nn::HyperConnections feed{nullptr};

 private:
  at::Tensor feed_around(const at::Tensor& x);
};

TORCH_MODULE(LocalLayer);

class WEIR_API LocalTransformerImpl : public LanguageModel {
 public:
  static constexpr const char* kKind = "local";

  /// Throws c10::ValueError on options that do not fit.
  explicit LocalTransformerImpl(const LocalTransformerOptions& options);

  at::Tensor forward(const at::Tensor& tokens) override;
  Cache make_cache(std::int64_t batch) const override;
  at::Tensor step(const at::Tensor& tokens, Cache& cache) override;
  std::int64_t max_length() const override { return options.max_seq_len; }
  std::int64_t num_tokens() const override { return options.num_tokens; }
  std::string kind() const override { return kKind; }
  std::string options_json() const override;
  void pretty_print(std::ostream& stream) const override;

  LocalTransformerOptions options;
  torch::nn::Embedding token_emb{nullptr};
  torch::nn::Embedding pos_emb{nullptr};
  nn::DynamicPositionBias dynamic_pos_bias{nullptr};  ///< empty unless use_dynamic_pos_bias
  torch::nn::ModuleList layers{nullptr};              ///< depth times LocalLayer
  torch::nn::Sequential to_logits{nullptr};

 private:
  std::int64_t span() const;
};

WEIR_MODULE(LocalTransformer);

}  // namespace weir::models
