// SPDX-License-Identifier: Apache-2.0
// Attention over a pattern of positions, without parameters of its own: all, local, strided,
// fixed, a layout of one's own, unions of them, and others for other heads.
//
//   q, k, v (batch, n, features) -> heads -> softmax over the pairs of the pattern -> (batch, n,
//   features)
//
// sparse_pattern.h says what the modes mean.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/any.h>

#include <cstdint>
#include <optional>
#include <ostream>

#include "weir/export.h"
#include "weir/nn/module.h"
#include "weir/nn/sparse_pattern.h"

namespace weir::nn {

/// Optional tensors of `forward`; the masks are bool, true = keep, the others integers.
struct SparseAttentionInputs {
  std::optional<at::Tensor> mask = std::nullopt;
  std::optional<at::Tensor> key_mask = std::nullopt;
  std::optional<at::Tensor> cu_seqlens = std::nullopt;
  std::optional<at::Tensor> document_ids = std::nullopt;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = SparseAttentionInputs;
    field("mask", &Self::mask,
          "Pattern besides the mode's: a layout (blocks, blocks) or (heads, blocks, blocks), or "
          "positions, broadcasting to (batch, heads, n, n).");
    field("key_mask", &Self::key_mask, "Padding: (batch, n). Padding is never read.");
    field("cu_seqlens", &Self::cu_seqlens,
          "Packed sequences: (sequences + 1), where each starts and the last ends. They do not see "
          "each other, and the mode counts positions from their starts.");
    field("document_ids", &Self::document_ids,
          "The same per row: (batch, n), neighbours with equal ids are one sequence.");
  }
};

/// `q`, `k`, `v` (batch, n, features) -> (batch, n, features of v), scale 1 / sqrt(features /
/// heads). A query that sees no key gives 0. Throws c10::Error on shapes and options that do not
/// fit.
WEIR_API at::Tensor blocksparse_attention_impl(const at::Tensor& q, const at::Tensor& k,
                                               const at::Tensor& v,
                                               const SparseAttentionOptions& options = {},
                                               const SparseAttentionInputs& inputs = {});

/// The same from dense ATen operators: memory for n x n logits, differentiable any number of times.
WEIR_API at::Tensor attention_impl(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                   const SparseAttentionOptions& options = {},
                                   const SparseAttentionInputs& inputs = {});

/// blocksparse_attention_impl as a module, without parameters.
class WEIR_API SparseAttentionImpl : public torch::nn::Cloneable<SparseAttentionImpl> {
 public:
  explicit SparseAttentionImpl(const SparseAttentionOptions& options = {});

  void reset() override {}
  void pretty_print(std::ostream& stream) const override;

  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                     const SparseAttentionInputs& inputs = {});

  SparseAttentionOptions options;

 protected:
  FORWARD_HAS_DEFAULT_ARGS({3, torch::nn::AnyValue(SparseAttentionInputs())})
};

WEIR_MODULE(SparseAttention);

}  // namespace weir::nn
