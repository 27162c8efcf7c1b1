// SPDX-License-Identifier: Apache-2.0
// Causal self-attention over a sparse pattern, with projections and a cache that forgets.
//
//   x (batch, n, dim) -> Linear -> q, k, v (batch, heads, n, dim_head)
//   -> block-sparse attention, each group of heads over its own pattern -> Linear -> (batch, n,
//   dim)
//
// sparse_pattern.h has the patterns; Child et al. 2019, arXiv:1904.10509, section 5.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/linear.h>

#include <array>
#include <cstdint>
#include <optional>
#include <ostream>
#include <span>
#include <string>
#include <vector>

#include "weir/export.h"
#include "weir/nn/key_values.h"
#include "weir/nn/module.h"
#include "weir/nn/sparse_pattern.h"

namespace weir::nn {

struct SparseSelfAttentionOptions {
  std::int64_t dim = 0;
  std::int64_t seq_len = 0;
  std::int64_t heads = 8;
  std::optional<std::int64_t> dim_head = std::nullopt;
  std::string attn_mode = "all";
  std::optional<std::int64_t> local_attn_ctx = std::nullopt;
  std::int64_t block_size = 32;
  std::int64_t num_verts = 1;
  std::int64_t vertsize = 1;
  std::vector<std::string> layout = {};

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = SparseSelfAttentionOptions;
    field("dim", &Self::dim, "Feature size of the tokens; required.");
    field("seq_len", &Self::seq_len, "Longest sequence, in tokens; required.");
    field("heads", &Self::heads, "Number of heads.");
    field("dim_head", &Self::dim_head, "Feature size of one head; none: dim / heads.");
    field("attn_mode", &Self::attn_mode, "As of SparseAttention: all, local, strided, ...");
    field("local_attn_ctx", &Self::local_attn_ctx, "As of SparseAttention.");
    field("block_size", &Self::block_size, "As of SparseAttention.");
    field("num_verts", &Self::num_verts, "As of SparseAttention.");
    field("vertsize", &Self::vertsize, "As of SparseAttention.");
    field("layout", &Self::layout, "As of SparseAttention.");
  }
};

class WEIR_API SparseSelfAttentionImpl : public torch::nn::Cloneable<SparseSelfAttentionImpl> {
 public:
  /// Throws c10::ValueError on options that do not fit.
  explicit SparseSelfAttentionImpl(const SparseSelfAttentionOptions& options);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// (batch, n, dim) -> (batch, n, dim), n at most seq_len. A head whose pattern shows a query no
  /// key gives it 0. Throws c10::Error on shapes that do not fit.
  at::Tensor forward(const at::Tensor& x);

  /// The same for `x` (batch, m, dim), tokens that stand at `positions` (batch, m) behind those in
  /// `past`, one entry per group of heads. Drops from `past` what neither they nor any later
  /// position can see, and appends their keys and values. `length` is the largest position plus 1.
  /// Not differentiable.
  at::Tensor step(const at::Tensor& x, const at::Tensor& positions, std::int64_t length,
                  std::span<KeyValues> past);

  /// No slots, of the dtype and on the device of the parameters: one entry per group of heads.
  std::vector<KeyValues> make_cache(std::int64_t batch) const;

  /// Groups of heads: how many entries `make_cache` gives.
  std::size_t groups() const { return groups_.size(); }

  SparseSelfAttentionOptions options;
  torch::nn::Linear to_qkv{nullptr};
  torch::nn::Linear to_out{nullptr};

 private:
  struct Group {
    SparsePattern pattern;  // of seq_len positions
    SparseReach reach;
  };

  std::int64_t dim_head() const;
  std::array<at::Tensor, 3> project(const at::Tensor& x);
  at::Tensor attend(const Group& group, const std::array<at::Tensor, 3>& qkv) const;
  at::Tensor merge(const std::vector<at::Tensor>& parts);

  std::vector<Group> groups_;
};

WEIR_MODULE(SparseSelfAttention);

}  // namespace weir::nn
