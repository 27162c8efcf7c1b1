// SPDX-License-Identifier: Apache-2.0
// The language model of the coordinate-descent attention package.
//
//   x = token_emb(tokens) + pos_emb(positions)
//   depth times:  x += attention(x);  x += feed_forward(x)
//   logits = Linear(LayerNorm(x))
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/embedding.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <span>
#include <string>

#include "weir/export.h"
#include "weir/models/language_model.h"
#include "weir/nn/coordinate_descent_attention.h"
#include "weir/nn/coordinate_descent_feed_forward.h"
#include "weir/nn/module.h"

namespace weir::models {

/// The arguments of the published `Transformer`, the solver with its schedule, and the other kinds
/// of attention.
struct CoordinateDescentTransformerOptions {
  std::int64_t num_tokens = 0;
  std::int64_t dim = 0;
  std::int64_t seq_len = 0;
  std::int64_t depth = 0;
  std::int64_t dim_head = 64;
  std::int64_t heads = 8;
  double ff_mult = 4;
  bool attn_use_coor_descent = false;
  bool ff_use_coor_descent = false;
  double attn_coor_descent_sparsity_k = 2;
  std::optional<double> ff_coor_descent_sparsity_k = std::nullopt;
  std::int64_t coor_descent_iters = 15;
  double coor_descent_eps = 0.1;
  std::optional<double> coor_descent_eps_init = 4.0;
  double coor_descent_eps_decay = 0.7;
  std::string coor_descent_solver = "iterative";
  std::int64_t attn_null_kv = 0;
  bool learned_sparsity_k = false;
  bool coor_descent_normalize = false;
  std::string attn_kind = "softmax";
  std::int64_t attn_top_k = 32;
  std::int64_t attn_route_dim_head = 16;
  std::optional<std::int64_t> attn_route_heads = std::nullopt;
  std::string attn_route_score = "softmax";
  bool ff_coor_descent_gate = false;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = CoordinateDescentTransformerOptions;
    field("num_tokens", &Self::num_tokens, "Size of the vocabulary; required.");
    field("dim", &Self::dim, "Feature size of the tokens; required.");
    field("seq_len", &Self::seq_len, "Longest sequence, in tokens; required.");
    field("depth", &Self::depth, "Number of layers; required.");
    field("dim_head", &Self::dim_head, "Feature size of one attention head.");
    field("heads", &Self::heads, "Number of attention heads.");
    field("ff_mult", &Self::ff_mult, "Hidden units of the feed-forward as a multiple of dim.");
    field("attn_use_coor_descent", &Self::attn_use_coor_descent,
          "The published switch: attn_kind coordinate_descent.");
    field("ff_use_coor_descent", &Self::ff_use_coor_descent,
          "Coordinate descent in place of the feed-forward's GELU.");
    field("attn_coor_descent_sparsity_k", &Self::attn_coor_descent_sparsity_k,
          "Sum that the weights of a query approach: the k of soft top-k, any number > 0.");
    field("ff_coor_descent_sparsity_k", &Self::ff_coor_descent_sparsity_k,
          "Sum that the hidden values approach; none: a tenth of the hidden units.");
    field("coor_descent_iters", &Self::coor_descent_iters, "Iterations of the iterative solver.");
    field("coor_descent_eps", &Self::coor_descent_eps,
          "Entropy of the weights; smaller is harder.");
    field("coor_descent_eps_init", &Self::coor_descent_eps_init,
          "Entropy of the first iteration; none: coor_descent_eps.");
    field("coor_descent_eps_decay", &Self::coor_descent_eps_decay,
          "Factor on the entropy from one iteration to the next.");
    field("coor_descent_solver", &Self::coor_descent_solver,
          "iterative (coor_descent_iters steps) or exact (rows sum to k).");
    field("attn_null_kv", &Self::attn_null_kv, "Learned keys and values that every query may see.");
    field("learned_sparsity_k", &Self::learned_sparsity_k,
          "Predict k per query and head, between 1 and attn_coor_descent_sparsity_k.");
    field("coor_descent_normalize", &Self::coor_descent_normalize,
          "Divide by the sum of the weights, so that they average like a softmax.");
    field("attn_kind", &Self::attn_kind, "softmax, coordinate_descent, top_k or low_rank.");
    field("attn_top_k", &Self::attn_top_k, "Keys that a query keeps: top_k and low_rank.");
    field("attn_route_dim_head", &Self::attn_route_dim_head,
          "Feature size of a routing head: low_rank.");
    field("attn_route_heads", &Self::attn_route_heads,
          "Routing heads, each choosing for heads / attn_route_heads heads; none: one per head.");
    field("attn_route_score", &Self::attn_route_score,
          "How routing heads learn: softmax or coordinate_descent over the keys they chose.");
    field("ff_coor_descent_gate", &Self::ff_coor_descent_gate,
          "Multiply the hidden values with the weights instead of replacing them.");
  }
};

/// One layer: attention, then feed-forward, each around a residual. (batch, n, dim) -> the same.
class WEIR_API CoordinateDescentLayerImpl
    : public torch::nn::Cloneable<CoordinateDescentLayerImpl> {
 public:
  CoordinateDescentLayerImpl(nn::CoordinateDescentAttentionOptions attention_options,
                             nn::CoordinateDescentFeedForwardOptions feed_forward_options);

  void reset() override;

  at::Tensor forward(const at::Tensor& x);

  /// As nn::CoordinateDescentAttention::step.
  at::Tensor step(const at::Tensor& x, const at::Tensor& positions, std::int64_t length,
                  std::span<nn::KeyValues> past);

  nn::CoordinateDescentAttentionOptions attention_options;
  nn::CoordinateDescentFeedForwardOptions feed_forward_options;
  nn::CoordinateDescentAttention attention{nullptr};
  nn::CoordinateDescentFeedForward feed_forward{nullptr};
};

TORCH_MODULE(CoordinateDescentLayer);

class WEIR_API CoordinateDescentTransformerImpl : public LanguageModel {
 public:
  static constexpr const char* kKind = "coordinate_descent";

  /// Throws c10::ValueError on options that do not fit.
  explicit CoordinateDescentTransformerImpl(const CoordinateDescentTransformerOptions& options);

  at::Tensor forward(const at::Tensor& tokens) override;
  Cache make_cache(std::int64_t batch) const override;
  at::Tensor step(const at::Tensor& tokens, Cache& cache) override;
  std::int64_t max_length() const override { return options.seq_len; }
  std::int64_t num_tokens() const override { return options.num_tokens; }
  std::string kind() const override { return kKind; }
  std::string options_json() const override;
  void pretty_print(std::ostream& stream) const override;

  CoordinateDescentTransformerOptions options;
  torch::nn::Embedding token_emb{nullptr};
  torch::nn::Embedding pos_emb{nullptr};
  torch::nn::ModuleList layers{nullptr};  ///< depth times CoordinateDescentLayer
  torch::nn::Sequential to_logits{nullptr};
};

WEIR_MODULE(CoordinateDescentTransformer);

}  // namespace weir::models
