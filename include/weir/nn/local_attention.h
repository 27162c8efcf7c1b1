// SPDX-License-Identifier: Apache-2.0
// Local attention of queries, keys and values that are there already: each query sees the keys of
// its bucket and its neighbours, or a window of fixed length around it
// (weir/ops/local_attention.h).
//
//   q, k, v (..., n, dim) -> (..., n, dim), rotary embedding included
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/any.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <vector>

#include "weir/export.h"
#include "weir/nn/module.h"

namespace weir::nn {

/// The arguments of the published `LocalAttention`.
struct LocalAttentionOptions {
  std::int64_t window_size = 0;
  bool causal = false;
  std::int64_t look_backward = 1;
  std::optional<std::int64_t> look_forward = std::nullopt;
  double dropout = 0;
  bool shared_qk = false;
  std::vector<std::int64_t> rel_pos_emb_config = {};
  std::optional<std::int64_t> dim = std::nullopt;
  bool autopad = false;
  bool exact_windowsize = false;
  std::optional<double> scale = std::nullopt;
  bool use_rotary_pos_emb = true;
  bool use_xpos = false;
  std::optional<double> xpos_scale_base = std::nullopt;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = LocalAttentionOptions;
    field("window_size", &Self::window_size, "Positions per bucket; required.");
    field("causal", &Self::causal, "Only keys up to the query's position.");
    field("look_backward", &Self::look_backward, "Buckets, or window sizes, seen backward.");
    field("look_forward", &Self::look_forward, "The same forward; none: 0 if causal, else 1.");
    field("dropout", &Self::dropout, "Share of the weights to drop in training, in [0, 1).");
    field("shared_qk", &Self::shared_qk,
          "Keys are normalised, and a query attends to itself only if nothing else is left.");
    field("rel_pos_emb_config", &Self::rel_pos_emb_config,
          "Of old: its first number stands for dim. Empty: dim.");
    field("dim", &Self::dim, "Feature size of one head, for the rotary embedding; none: no such.");
    field("autopad", &Self::autopad, "Take sequences that are no multiple of window_size.");
    field("exact_windowsize", &Self::exact_windowsize,
          "Windows of equal length around each query instead of whole buckets.");
    field("scale", &Self::scale, "Factor on the logits; none: 1 / sqrt(feature size).");
    field("use_rotary_pos_emb", &Self::use_rotary_pos_emb, "Rotary embedding, if dim is given.");
    field("use_xpos", &Self::use_xpos, "Rotary embedding with the length scaling of xPos.");
    field("xpos_scale_base", &Self::xpos_scale_base,
          "Distance over which xPos decays; none: window_size / 2, rounded down.");
  }
};

/// What `forward` takes besides queries, keys and values.
struct LocalAttentionInputs {
  std::optional<at::Tensor> mask = std::nullopt;
  std::optional<at::Tensor> input_mask = std::nullopt;
  std::optional<at::Tensor> attn_bias = std::nullopt;
  std::optional<std::int64_t> window_size = std::nullopt;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = LocalAttentionInputs;
    field("mask", &Self::mask,
          "Padding of the keys: bool (batch, n), true = keep; batch divides the leading sizes.");
    field("input_mask", &Self::input_mask, "Another name for mask.");
    field(
        "attn_bias", &Self::attn_bias,
        "Added to the logits: (heads, window_size, (look_backward + 1 + look_forward) * "
        "window_size), by query of a bucket and key of its span; the last leading size is heads.");
    field("window_size", &Self::window_size, "Another window_size for this call; with use_xpos.");
  }
};

/// The frequencies of the rotary embedding, 10000^(-2 i / dim).
class WEIR_API RotaryFrequenciesImpl : public torch::nn::Cloneable<RotaryFrequenciesImpl> {
 public:
  explicit RotaryFrequenciesImpl(std::int64_t dim_) : dim(dim_) { reset(); }

  void reset() override;

  /// (dim / 2), float32 at least: those of a 16-bit model are computed anew, since rounded ones
  /// would turn distant keys by the wrong angle.
  at::Tensor frequencies() const;

  std::int64_t dim;
  at::Tensor inv_freq;  ///< a buffer
};

TORCH_MODULE(RotaryFrequencies);

class WEIR_API LocalAttentionImpl : public torch::nn::Cloneable<LocalAttentionImpl> {
 public:
  /// Throws c10::ValueError on options that do not fit.
  explicit LocalAttentionImpl(const LocalAttentionOptions& options);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// `q`, `k`, `v` (..., n, dim) with equal leading sizes, none or several, say (batch, heads) ->
  /// (..., n, dim of v). A query that sees no key gives 0. Throws c10::Error on shapes that do not
  /// fit, and on n that is no multiple of window_size unless autopad.
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const LocalAttentionInputs& inputs = {});

  /// How many positions before its own a query may see, at most.
  std::int64_t reach() const;

  /// Distance over which xPos decays.
  double xpos_base() const;

  LocalAttentionOptions options;
  RotaryFrequencies rel_pos{nullptr};  ///< empty without rotary embedding

 protected:
  FORWARD_HAS_DEFAULT_ARGS({3, torch::nn::AnyValue(LocalAttentionInputs())})
};

WEIR_MODULE(LocalAttention);

}  // namespace weir::nn
