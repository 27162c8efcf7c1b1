// SPDX-License-Identifier: Apache-2.0
// Small models that the tests of this folder share, and how close two ways to the same logits must
// be.
#pragma once

#include <torch/torch.h>

#include <cstdint>
#include <vector>

#include "nn/module_contract.h"
#include "weir/models/coordinate_descent_transformer.h"

namespace weir::models {

// With and without a cache, matrices of other shapes sum in another order; two layers carry that
// on.
inline constexpr double kCachedFloat64 = 1e-10;
inline constexpr double kCachedFloat32 = 1e-5;

/// Softmax, both solvers, null keys and learned k; room for 12 tokens out of 23.
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
  return {{"softmax", softmax}, {"iterative", iterative}, {"exact", exact}, {"learned", learned}};
}

/// A model of these options whose weights are away from their initial values.
inline CoordinateDescentTransformer small_model(
    const CoordinateDescentTransformerOptions& options) {
  torch::manual_seed(1);
  CoordinateDescentTransformer model(options);
  nn::randomise(*model);
  return model;
}

}  // namespace weir::models
