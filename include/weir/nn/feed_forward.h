// SPDX-License-Identifier: Apache-2.0
// The feed-forward layer of the CoLT5 modules.
//
//   x (..., dim) -> L2RMSNorm -> Linear -> GELU (..., dim * mult) -> Linear -> (..., dim)
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>

#include <cstdint>
#include <ostream>

#include "weir/export.h"
#include "weir/nn/l2_rms_norm.h"
#include "weir/nn/module.h"

namespace weir::nn {

struct FeedForwardOptions {
  std::int64_t dim = 0;
  double mult = 4;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = FeedForwardOptions;
    field("dim", &Self::dim, "Feature size of the tokens; required.");
    field("mult", &Self::mult, "Hidden units as a multiple of dim.");
  }
};

class WEIR_API FeedForwardImpl : public torch::nn::Cloneable<FeedForwardImpl> {
 public:
  /// Throws c10::ValueError on options that do not fit.
  explicit FeedForwardImpl(const FeedForwardOptions& options);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// (..., dim) -> (..., dim)
  at::Tensor forward(const at::Tensor& x);

  /// Hidden units: `dim * mult`, rounded down.
  std::int64_t hidden() const;

  FeedForwardOptions options;
  L2RMSNorm norm{nullptr};                                ///< "0" in the state dict
  torch::nn::Linear proj_in{nullptr}, proj_out{nullptr};  ///< "1" and "3"
};

WEIR_MODULE(FeedForward);

}  // namespace weir::nn
