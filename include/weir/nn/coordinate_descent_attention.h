// SPDX-License-Identifier: Apache-2.0
// Causal multi-head attention of four kinds, which choose their keys ever more sharply.
//
//   x (batch, n, dim) -> LayerNorm -> q, k, v (batch, heads, n, dim_head) -> weights (n, nulls + n)
//   -> weights @ v -> Linear -> (batch, n, dim)
//
//   softmax               all keys, weights that sum to 1
//   coordinate_descent    a soft top-k: weights in [0, 1] that sum to about k
//   top_k                 softmax over the attn_top_k largest logits of a query
//   low_rank              softmax over the attn_top_k keys that narrow routing heads choose
//
// Key slots 0 ... nulls - 1 are learned and seen by every query; slot nulls + j is token j.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <vector>

#include "weir/export.h"
#include "weir/nn/key_values.h"
#include "weir/nn/module.h"
#include "weir/ops/attention_masks.h"
#include "weir/ops/coordinate_descent.h"

namespace weir::nn {

/// The arguments of the published `Attention`, the solver, and the other kinds.
struct CoordinateDescentAttentionOptions {
  std::int64_t dim = 0;
  std::int64_t dim_head = 64;
  std::int64_t heads = 8;
  bool use_coor_descent = false;
  std::int64_t coor_descent_iters = 20;
  double coor_descent_sparsity_k = 1;
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

  /// attn_kind, or what the published switch says.
  std::string kind() const { return use_coor_descent ? "coordinate_descent" : attn_kind; }
  std::int64_t route_heads() const { return attn_route_heads.value_or(heads); }

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = CoordinateDescentAttentionOptions;
    field("dim", &Self::dim, "Feature size of the tokens; required.");
    field("dim_head", &Self::dim_head, "Feature size of one head.");
    field("heads", &Self::heads, "Number of heads.");
    field("use_coor_descent", &Self::use_coor_descent,
          "The published switch: attn_kind coordinate_descent.");
    field("coor_descent_iters", &Self::coor_descent_iters, "Iterations of the iterative solver.");
    field("coor_descent_sparsity_k", &Self::coor_descent_sparsity_k,
          "Sum that the weights of a row approach: the k of soft top-k, any number > 0.");
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
          "Predict k per query and head, between 1 and coor_descent_sparsity_k.");
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
  }
};

/// Optional tensors of `forward`.
struct CoordinateDescentAttentionInputs {
  std::optional<at::Tensor> mask;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = CoordinateDescentAttentionInputs;
    field("mask", &Self::mask, "Padding: bool (batch, n), true = a token. Padding is never read.");
  }
};

/// The weights of coordinate descent sum to about k, not to 1, unless they are normalized.
class WEIR_API CoordinateDescentAttentionImpl
    : public torch::nn::Cloneable<CoordinateDescentAttentionImpl> {
 public:
  /// Throws c10::ValueError on options that do not fit.
  explicit CoordinateDescentAttentionImpl(const CoordinateDescentAttentionOptions& options);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// (batch, n, dim) -> (batch, n, dim). A query that sees no key gives 0; what comes out at padded
  /// positions has no meaning. Throws c10::Error on shapes that do not fit.
  at::Tensor forward(const at::Tensor& x, const CoordinateDescentAttentionInputs& inputs = {});

  /// The same for `x` (batch, m, dim), tokens that stand at `positions` (batch, m) behind those in
  /// `past`, the entries of `make_cache`. Writes their keys and values there; a query sees every
  /// slot up to its own position. `length` is the largest position plus 1. Not differentiable.
  at::Tensor step(const at::Tensor& x, const at::Tensor& positions, std::int64_t length,
                  std::span<KeyValues> past);

  /// Room for `max_length` tokens per row, of the dtype and on the device of the parameters: one
  /// entry, and for low_rank a second, whose keys are those of the routing heads.
  std::vector<KeyValues> make_cache(std::int64_t batch, std::int64_t max_length) const;

  /// How many entries `make_cache` gives.
  std::size_t cache_entries() const { return options.kind() == "low_rank" ? 2 : 1; }

  CoordinateDescentAttentionOptions options;
  torch::nn::LayerNorm norm{nullptr};
  torch::nn::Linear to_learned_k{nullptr};  ///< empty unless learned_sparsity_k
  torch::nn::Linear to_qkv{nullptr};
  torch::nn::Linear to_out{nullptr};
  torch::nn::Linear to_route_qk{nullptr};  ///< empty unless low_rank
  at::Tensor null_kv;                      ///< (2, heads, attn_null_kv, dim_head)
  at::Tensor null_route_k;  ///< (route heads, attn_null_kv, attn_route_dim_head), if low_rank

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(CoordinateDescentAttentionInputs())})

 private:
  /// What the tokens ask, and what they are asked for: (batch, heads, n, features).
  struct Projected {
    at::Tensor queries, keys, values;
    at::Tensor route_queries = {}, route_keys = {};  // undefined unless low_rank
  };

  /// The keys that queries see: all up to their own position, or what the masks keep.
  struct Visible {
    bool causal = true;
    ops::AttentionMasks masks = {};
  };

  Projected project(const at::Tensor& normed);
  void prepend_nulls(Projected& p) const;
  at::Tensor attend(const at::Tensor& normed, const Projected& p, const Visible& visible);
  at::Tensor budget(const at::Tensor& normed);
  ops::CoordinateDescentOptions solver_;
};

WEIR_MODULE(CoordinateDescentAttention);

}  // namespace weir::nn
