// SPDX-License-Identifier: Apache-2.0
// A learned bias on attention logits that depends on the distance of two positions: an MLP of the
// distance, one output per head.
//
//   bias[h, a, p] = MLP(|j - i + a - p|)[h]: the queries a are the last i of the j positions p
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/sequential.h>

#include <cstdint>
#include <ostream>

#include "weir/export.h"
#include "weir/nn/module.h"

namespace weir::nn {

/// The arguments of the `DynamicPositionBias` of the package local-attention.
struct DynamicPositionBiasOptions {
  std::int64_t dim = 0;
  std::int64_t heads = 0;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = DynamicPositionBiasOptions;
    field("dim", &Self::dim, "Hidden units; required.");
    field("heads", &Self::heads, "Number of heads; required.");
  }
};

class WEIR_API DynamicPositionBiasImpl : public torch::nn::Cloneable<DynamicPositionBiasImpl> {
 public:
  /// Throws c10::ValueError on options that do not fit.
  explicit DynamicPositionBiasImpl(const DynamicPositionBiasOptions& options);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// (heads, i, j). Throws c10::ValueError unless 0 <= i <= j.
  at::Tensor forward(std::int64_t i, std::int64_t j);

  /// The bias of the distances 0 ... count - 1: (heads, count).
  at::Tensor by_distance(std::int64_t count);

  DynamicPositionBiasOptions options;
  torch::nn::Sequential mlp{nullptr};
};

WEIR_MODULE(DynamicPositionBias);

/// A table by distance (heads, at least j) laid out as (heads, i, j), the queries the last i of j
/// positions.
WEIR_API at::Tensor position_bias(const at::Tensor& by_distance, std::int64_t i, std::int64_t j);

}  // namespace weir::nn
