// SPDX-License-Identifier: Apache-2.0
// Causal multi-head attention whose rows are softmax or coordinate-descent weights.
//
//   x (batch, n, dim) -> LayerNorm -> q, k, v (batch, heads, n, dim_head) -> weights (n, nulls + n)
//   -> weights @ v -> Linear -> (batch, n, dim)
//
// Key slots 0 ... nulls - 1 are learned and seen by every query; slot nulls + j is token j.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <array>
#include <cstdint>
#include <optional>
#include <ostream>
#include <string>

#include "weir/export.h"
#include "weir/nn/key_values.h"
#include "weir/nn/module.h"
#include "weir/ops/coordinate_descent.h"

namespace weir::nn {

/// The arguments of the published `Attention`, and the solver.
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

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = CoordinateDescentAttentionOptions;
    field("dim", &Self::dim, "Feature size of the tokens; required.");
    field("dim_head", &Self::dim_head, "Feature size of one head.");
    field("heads", &Self::heads, "Number of heads.");
    field("use_coor_descent", &Self::use_coor_descent,
          "Coordinate descent in place of the softmax.");
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

/// Not normalised by k: in coordinate-descent mode a row of weights sums to about k, not to 1.
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
  /// `past`. Writes their keys and values into `past`; a query sees every slot up to its own
  /// position. `length` is the largest position plus 1. Not differentiable.
  at::Tensor step(const at::Tensor& x, const at::Tensor& positions, std::int64_t length,
                  KeyValues& past);

  /// Room for `max_length` tokens per row, of the dtype and on the device of the parameters.
  KeyValues make_cache(std::int64_t batch, std::int64_t max_length) const;

  CoordinateDescentAttentionOptions options;
  torch::nn::LayerNorm norm{nullptr};
  torch::nn::Linear to_learned_k{nullptr};  ///< empty unless learned_sparsity_k
  torch::nn::Linear to_qkv{nullptr};
  torch::nn::Linear to_out{nullptr};
  at::Tensor null_kv;  ///< (2, heads, attn_null_kv, dim_head)

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(CoordinateDescentAttentionInputs())})

 private:
  std::array<at::Tensor, 3> project(const at::Tensor& normed);
  at::Tensor with_nulls(std::int64_t part, const at::Tensor& slots);
  at::Tensor attend(const at::Tensor& normed, const at::Tensor& queries, const KeyValues& seen,
                    const std::optional<at::Tensor>& visible);
  at::Tensor choose(const at::Tensor& normed, const at::Tensor& queries, const at::Tensor& keys,
                    const at::Tensor& visible);
  ops::CoordinateDescentOptions solver_;
};

WEIR_MODULE(CoordinateDescentAttention);

}  // namespace weir::nn
