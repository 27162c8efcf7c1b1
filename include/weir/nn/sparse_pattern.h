// SPDX-License-Identifier: Apache-2.0
// Patterns of attention by name: what SparseAttentionOptions mean, group of heads by group of
// heads.
//
//   mode      a query at i sees the keys j with (causal: and j <= i)
//   all       every j
//   local     |i - j| < ctx
//   strided   i = j mod ctx
//   fixed     j in the chunk of ctx positions of i, or in one of the blocks of summaries that each
//             chunk ends with
//   custom    layout[i / block_size, j / block_size]
//
//   a+b  what either allows, in one head: local+strided, local+fixed, local+custom
//   a,b  the heads split evenly among the patterns, in this order
//
// Child et al. 2019, "Generating Long Sequences with Sparse Transformers", arXiv:1904.10509.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "weir/export.h"
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
  std::vector<std::string> layout = {};

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = SparseAttentionOptions;
    field("block_size", &Self::block_size, "Positions per block of a layout, 1 to 128.");
    field("heads", &Self::heads, "Number of heads; the features of q, k and v split among them.");
    field("attn_mode", &Self::attn_mode,
          "all, local, strided, fixed or custom; local+strided for both in one head, "
          "local,strided for half of the heads each.");
    field("local_attn_ctx", &Self::local_attn_ctx,
          "The ctx of local (keys that a query sees), strided (distance) and fixed (chunk).");
    field("num_verts", &Self::num_verts,
          "fixed: groups of heads that see different summaries of a chunk; divides heads.");
    field("vertsize", &Self::vertsize, "fixed: blocks per summary.");
    field("causal", &Self::causal, "Only keys up to the query's position.");
    field("layout", &Self::layout,
          "custom: a string per block of queries, such as 11.1, with a 1 per block of keys to see; "
          "heads times as many strings for a layout per head.");
  }
};

/// The pattern of `heads` consecutive heads, in the words of ops::block_sparse_attention.
struct SparsePattern {
  std::int64_t first_head = 0;
  std::int64_t heads = 1;
  std::optional<at::Tensor> layout = std::nullopt;  ///< (blocks, blocks), (heads, blocks, blocks)
  ops::BlockSparseAttentionOptions options = {};
};

/// The patterns of all heads for `n` positions, in order: one, or as many as `attn_mode` has
/// commas and one. Throws c10::ValueError on options that do not fit.
WEIR_API std::vector<SparsePattern> sparse_patterns(const SparseAttentionOptions& options,
                                                    std::int64_t n);

/// Whether queries at `queries` (batch, m) see keys at `keys` (batch, slots), int64 positions, a
/// negative one being an empty slot: bool (batch, 1 or heads, m, slots).
WEIR_API at::Tensor allowed(const SparsePattern& pattern, const at::Tensor& queries,
                            const at::Tensor& keys);

/// Which keys a causal pattern lets any later query see.
class WEIR_API SparseReach {
 public:
  /// Of positions below `n`.
  SparseReach(SparsePattern pattern, std::int64_t n);

  /// Whether a query at `next` (batch) or behind it sees the keys at `keys` (batch, slots), which
  /// stand before `next`: bool (batch, slots). False for negative positions.
  at::Tensor operator()(const at::Tensor& next, const at::Tensor& keys) const;

 private:
  SparsePattern pattern_;
  std::int64_t n_;
  at::Tensor last_row_;  // (blocks): the last row of the layout, of any head, with a 1; else -1
};

}  // namespace weir::nn
