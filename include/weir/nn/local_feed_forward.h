// SPDX-License-Identifier: Apache-2.0
// Feed-forward layer gated by GELU, that of the package local-attention.
//
//   x (..., dim) -> LayerNorm -> Linear -> value, gate (..., hidden each) -> value * GELU(gate)
//   -> Linear -> (..., dim)
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <cstdint>
#include <ostream>

#include "weir/export.h"
#include "weir/nn/module.h"

namespace weir::nn {

/// The arguments of the published `FeedForward`.
struct LocalFeedForwardOptions {
  std::int64_t dim = 0;
  double mult = 4;
  double dropout = 0;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = LocalFeedForwardOptions;
    field("dim", &Self::dim, "Feature size of the tokens; required.");
    field("mult", &Self::mult, "Hidden units as a multiple of dim, before the factor 2 / 3.");
    field("dropout", &Self::dropout, "Share of the hidden units to drop in training, in [0, 1).");
  }
};

class WEIR_API LocalFeedForwardImpl : public torch::nn::Cloneable<LocalFeedForwardImpl> {
 public:
  /// Throws c10::ValueError on options that do not fit.
  explicit LocalFeedForwardImpl(const LocalFeedForwardOptions& options);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// (..., dim) -> (..., dim). Throws c10::Error on a shape that does not fit.
  at::Tensor forward(const at::Tensor& x);

  /// Hidden units: dim * mult * 2 / 3, rounded down.
  std::int64_t hidden() const;

  LocalFeedForwardOptions options;
  // Registered under their places in the published sequence: 0, 1, 4.
  torch::nn::LayerNorm norm{nullptr};
  torch::nn::Linear proj_in{nullptr};
  torch::nn::Linear proj_out{nullptr};
};

WEIR_MODULE(LocalFeedForward);

}  // namespace weir::nn
