// SPDX-License-Identifier: Apache-2.0
// Attention over a pattern of positions: all, local, strided, fixed, or a layout of one's own.
//
//   mode      a query at i sees the keys j with (causal: and j <= i)
//   all       every j
//   local     |i - j| < ctx
//   strided   i = j mod ctx
//   fixed     j in the chunk of ctx positions of i, or in one of the blocks of summaries that each
//   chunk ends with
//
// Child et al. 2019, "Generating Long Sequences with Sparse Transformers", arXiv:1904.10509.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/any.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>

#include "weir/export.h"
#include "weir/nn/module.h"
#include "weir/ops/block_sparse_attention.h"

namespace weir::nn {

struct SparseAttentionOptions {
  std::int64_t block_size = 32;
  std::int64_t heads = 1;
  std::string attn_mode = "all";
  std::optional<std::int64_t> local_attn_ctx = std::nullopt;
  std::int64_t num_verts = 1;
  std::int64_t vertsize = 1;
  bool causal = true;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = SparseAttentionOptions;
    field("block_size", &Self::block_size, "Positions per block of a layout, 1 to 128.");
    field("heads", &Self::heads, "Number of heads; the features of q, k and v split among them.");
    field("attn_mode", &Self::attn_mode, "all, local, strided or fixed.");
    field("local_attn_ctx", &Self::local_attn_ctx,
          "The ctx of local (keys that a query sees), strided (distance) and fixed (chunk).");
    field("num_verts", &Self::num_verts,
          "fixed: groups of heads that see different summaries of a chunk; divides heads.");
    field("vertsize", &Self::vertsize, "fixed: blocks per summary.");
    field("causal", &Self::causal, "Only keys up to the query's position.");
  }
};

/// Optional tensors of `forward`, bool, true = keep.
struct SparseAttentionInputs {
  std::optional<at::Tensor> mask;
  std::optional<at::Tensor> key_mask;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = SparseAttentionInputs;
    field("mask", &Self::mask,
          "Pattern besides the mode's: a layout (blocks, blocks) or (heads, blocks, blocks), or "
          "positions, broadcasting to (batch, heads, n, n).");
    field("key_mask", &Self::key_mask, "Padding: (batch, n). Padding is never read.");
  }
};

/// What a mode means for `n` positions: the layout and options of ops::block_sparse_attention.
/// Throws c10::ValueError on options that do not fit.
struct SparsePattern {
  std::optional<at::Tensor> layout;
  ops::BlockSparseAttentionOptions options;
};
WEIR_API SparsePattern sparse_pattern(const SparseAttentionOptions& options, std::int64_t n);

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
