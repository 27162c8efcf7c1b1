// SPDX-License-Identifier: Apache-2.0
// Multi-head attention of all tokens to all: what CoLT5's image attention does inside windows.
//
//   x (batch, n, dim) -> norm -> q, k, v (batch, heads, n, dim_head) -> softmax(q k^T /
//   sqrt(dim_head)) v -> (batch, n, dim)
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/linear.h>

#include <cstdint>
#include <optional>
#include <ostream>

#include "weir/export.h"
#include "weir/nn/l2_rms_norm.h"
#include "weir/nn/module.h"

namespace weir::nn {

/// The arguments of the published `SelfAttention`.
struct SelfAttentionOptions {
  std::int64_t dim = 0;
  std::int64_t dim_head = 64;
  std::int64_t heads = 8;
  bool prenorm = false;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = SelfAttentionOptions;
    field("dim", &Self::dim, "Feature size of the tokens; required.");
    field("dim_head", &Self::dim_head, "Feature size of one head.");
    field("heads", &Self::heads, "Number of heads.");
    field("prenorm", &Self::prenorm, "L2RMSNorm in front.");
  }
};

/// Optional tensors of `forward`.
struct SelfAttentionInputs {
  std::optional<at::Tensor> mask = std::nullopt;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = SelfAttentionInputs;
    field("mask", &Self::mask, "Padding: bool (batch, n), true = a token. Padding is never read.");
  }
};

class WEIR_API SelfAttentionImpl : public torch::nn::Cloneable<SelfAttentionImpl> {
 public:
  /// Throws c10::ValueError on options that do not fit.
  explicit SelfAttentionImpl(const SelfAttentionOptions& options);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// (batch, n, dim) -> (batch, n, dim). Rows without a token give 0; what comes out at padded
  /// positions of others has no meaning. Throws c10::Error on shapes that do not fit.
  at::Tensor forward(const at::Tensor& x, const SelfAttentionInputs& inputs = {});

  SelfAttentionOptions options;
  L2RMSNorm norm{nullptr};  ///< empty unless prenorm
  torch::nn::Linear to_qkv{nullptr};
  torch::nn::Linear to_out{nullptr};

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(SelfAttentionInputs())})
};

WEIR_MODULE(SelfAttention);

}  // namespace weir::nn
