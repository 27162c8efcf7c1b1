// SPDX-License-Identifier: Apache-2.0
// Small models that the tests of this folder share, and how close two ways to the same logits must
// be.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <vector>

#include "nn/module_contract.h"
#include "weir/models/coordinate_descent_transformer.h"
#include "weir/models/sparse_transformer.h"

namespace weir::models {

// With and without a cache, matrices of other shapes sum in another order; two layers carry that
// on.
inline constexpr double kCachedFloat64 = 1e-10;
inline constexpr double kCachedFloat32 = 1e-5;

/// Every kind of attention, both solvers, null keys and learned k; room for 12 tokens out of 23.
inline std::vector<nn::Named<CoordinateDescentTransformerOptions>> small_cases() {
  const CoordinateDescentTransformerOptions softmax = {.num_tokens = 23,
                                                       .dim = 12,
                                                       .seq_len = 12,
                                                       .depth = 2,
                                                       .dim_head = 6,
                                                       .heads = 2,
                                                       .ff_mult = 2};
  auto iterative = softmax;
  iterative.attn_use_coor_descent = iterative.ff_use_coor_descent = true;
  auto exact = iterative;
  exact.coor_descent_solver = "exact";
  auto learned = iterative;
  learned.learned_sparsity_k = true;
  learned.attn_null_kv = 2;
  auto gated = softmax;
  gated.attn_kind = "coordinate_descent";
  gated.coor_descent_normalize = gated.ff_use_coor_descent = gated.ff_coor_descent_gate = true;
  auto top_k = softmax;
  top_k.attn_kind = "top_k";
  top_k.attn_top_k = 4;
  auto low_rank = top_k;
  low_rank.attn_kind = "low_rank";
  low_rank.attn_route_dim_head = 3;
  low_rank.attn_route_heads = 1;
  low_rank.attn_null_kv = 1;
  return {{"softmax", softmax},  {"iterative", iterative}, {"exact", exact},
          {"learned", learned},  {"gated", gated},         {"top_k", top_k},
          {"low_rank", low_rank}};
}

/// A model of these options whose weights are away from their initial values.
inline CoordinateDescentTransformer small_model(
    const CoordinateDescentTransformerOptions& options) {
  torch::manual_seed(1);
  CoordinateDescentTransformer model(options);
  nn::randomise(*model);
  return model;
}

/// Every mode, union and mixture of the Sparse Transformer; room for 24 tokens out of 23.
inline std::vector<nn::Named<SparseTransformerOptions>> sparse_cases() {
  const auto with = [](const char* mode, std::optional<std::int64_t> ctx, std::int64_t num_verts,
                       std::vector<std::string> layout) {
    return SparseTransformerOptions{.num_tokens = 23,
                                    .dim = 12,
                                    .seq_len = 24,
                                    .depth = 2,
                                    .heads = 4,
                                    .ff_mult = 2,
                                    .attn_mode = mode,
                                    .local_attn_ctx = ctx,
                                    .block_size = 2,
                                    .num_verts = num_verts,
                                    .layout = std::move(layout)};
  };
  const std::vector<std::string> rows = {"1.....", "11....", "1.1...",
                                         "......", ".1..1.", "1.1..1"};
  auto per_head = rows;
  for (const char* row : {"1.....", ".1....", "..1...", "...1..", "....1.", ".....1"}) {
    per_head.push_back(row);
  }
  for (const auto& row : rows) per_head.push_back(row);
  for (int i = 0; i < 6; ++i) per_head.push_back("111111");
  auto custom = with("custom", std::nullopt, 1, rows);
  auto heads = with("custom", std::nullopt, 1, per_head);
  auto both = with("local+custom", 3, 1, rows);
  custom.block_size = heads.block_size = both.block_size = 4;
  return {{"all", with("all", std::nullopt, 1, {})},
          {"local", with("local", 5, 1, {})},
          {"strided", with("strided", 5, 1, {})},
          {"fixed", with("fixed", 6, 1, {})},
          {"fixed_verts", with("fixed", 8, 2, {})},
          {"local_and_strided", with("local+strided", 4, 1, {})},
          {"local_and_fixed", with("local+fixed", 6, 1, {})},
          {"heads", with("local,strided", 5, 1, {})},
          {"many_heads", with("local,all,strided,local+fixed", 6, 1, {})},
          {"layers", with("local;local+strided", 4, 1, {})},
          {"custom", custom},
          {"custom_heads", heads},
          {"local_and_custom", both}};
}

inline SparseTransformer small_model(const SparseTransformerOptions& options) {
  torch::manual_seed(1);
  SparseTransformer model(options);
  nn::randomise(*model);
  return model;
}

}  // namespace weir::models
