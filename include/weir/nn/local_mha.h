// SPDX-License-Identifier: Apache-2.0
// Multi-head local attention with its projections.
//
//   x (batch, n, dim) -> [LayerNorm] -> q, k, v (batch, heads, n, dim_head) -> [normalised q, k]
//   -> LocalAttention -> [times a sigmoid per head] -> Linear -> (batch, n, dim)
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <array>
#include <cstdint>
#include <optional>
#include <ostream>

#include "weir/export.h"
#include "weir/nn/key_values.h"
#include "weir/nn/local_attention.h"
#include "weir/nn/module.h"

namespace weir::nn {

/// The arguments of the published `LocalMHA` and those it hands on to `LocalAttention`.
struct LocalMHAOptions {
  std::int64_t dim = 0;
  std::int64_t window_size = 0;
  std::int64_t dim_head = 64;
  std::int64_t heads = 8;
  double dropout = 0;
  bool causal = false;
  bool prenorm = false;
  bool qk_rmsnorm = false;
  double qk_scale = 8;
  bool use_xpos = false;
  std::optional<double> xpos_scale_base = std::nullopt;
  bool exact_windowsize = true;
  bool gate_values_per_head = false;
  std::int64_t look_backward = 1;
  std::optional<std::int64_t> look_forward = std::nullopt;
  bool shared_qk = false;
  bool use_rotary_pos_emb = true;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = LocalMHAOptions;
    field("dim", &Self::dim, "Feature size of the tokens; required.");
    field("window_size", &Self::window_size, "Positions per bucket; required.");
    field("dim_head", &Self::dim_head, "Feature size of one head.");
    field("heads", &Self::heads, "Number of heads.");
    field("dropout", &Self::dropout, "Share of the weights to drop in training, in [0, 1).");
    field("causal", &Self::causal, "Only keys up to the query's position.");
    field("prenorm", &Self::prenorm, "LayerNorm in front.");
    field("qk_rmsnorm", &Self::qk_rmsnorm, "Normalise queries and keys, with learned factors.");
    field("qk_scale", &Self::qk_scale, "Factor on the logits with qk_rmsnorm.");
    field("use_xpos", &Self::use_xpos, "Rotary embedding with the length scaling of xPos.");
    field("xpos_scale_base", &Self::xpos_scale_base,
          "Distance over which xPos decays; none: window_size / 2, rounded down.");
    field("exact_windowsize", &Self::exact_windowsize,
          "Windows of equal length around each query instead of whole buckets.");
    field("gate_values_per_head", &Self::gate_values_per_head,
          "Multiply what each head gives by a sigmoid of the token.");
    field("look_backward", &Self::look_backward, "Buckets, or window sizes, seen backward.");
    field("look_forward", &Self::look_forward, "The same forward; none: 0 if causal, else 1.");
    field("shared_qk", &Self::shared_qk,
          "Keys are normalised, and a query attends to itself only if nothing else is left.");
    field("use_rotary_pos_emb", &Self::use_rotary_pos_emb, "Rotary embedding.");
  }
};

/// Optional tensors of `forward`.
struct LocalMHAInputs {
  std::optional<at::Tensor> mask = std::nullopt;
  std::optional<at::Tensor> attn_bias = std::nullopt;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = LocalMHAInputs;
    field("mask", &Self::mask, "Padding: bool (batch, n), true = a token. Padding is never read.");
    field("attn_bias", &Self::attn_bias,
          "Added to the logits: (heads, window_size, (look_backward + 1 + look_forward) * "
          "window_size), by query of a bucket and key of its span.");
  }
};

class WEIR_API LocalMHAImpl : public torch::nn::Cloneable<LocalMHAImpl> {
 public:
  /// Throws c10::ValueError on options that do not fit.
  explicit LocalMHAImpl(const LocalMHAOptions& options);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// (batch, n, dim) -> (batch, n, dim), any n. A query that sees no key gives 0; what comes out at
  /// padded positions has no meaning. Throws c10::Error on shapes that do not fit.
  at::Tensor forward(const at::Tensor& x, const LocalMHAInputs& inputs = {});

  /// The same for `x` (batch, m, dim), the next tokens of rows of any lengths: `positions` (batch,
  /// m) counts up from the length of each row. Their keys and values enter `past`, which holds what
  /// a window can reach. `distance_bias` (heads, at least the largest distance in sight + 1) is
  /// added to the logits of the keys so many positions back. Not differentiable, no dropout. Throws
  /// c10::Error unless causal, and as KeyValues::prepare.
  at::Tensor step(const at::Tensor& x, const at::Tensor& positions, KeyValues& past,
                  const std::optional<at::Tensor>& distance_bias = std::nullopt);

  /// A `past` without tokens, of the dtype and on the device of the parameters.
  KeyValues make_cache(std::int64_t batch) const;

  LocalMHAOptions options;
  torch::nn::LayerNorm norm{nullptr};  ///< empty unless prenorm
  torch::nn::Linear to_qkv{nullptr};
  at::Tensor q_scale, k_scale;  ///< (dim_head), undefined unless qk_rmsnorm
  LocalAttention attn_fn{nullptr};
  torch::nn::Sequential to_v_gate{nullptr};  ///< empty unless gate_values_per_head
  torch::nn::Linear to_out{nullptr};

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(LocalMHAInputs())})

 private:
  std::array<at::Tensor, 3> project(const at::Tensor& normed);
  at::Tensor merge(const at::Tensor& normed, const at::Tensor& attended);
  at::Tensor stored_keys(const at::Tensor& keys, const at::Tensor& positions) const;
  at::Tensor attend(const at::Tensor& queries, const at::Tensor& positions, const KeyValues& seen,
                    const std::optional<at::Tensor>& distance_bias) const;
};

WEIR_MODULE(LocalMHA);

}  // namespace weir::nn
