// SPDX-License-Identifier: Apache-2.0
// The local transformers that their tests share: windows of 3 tokens, room for many windows.
#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cstdint>
#include <vector>

#include "nn/module_contract.h"
#include "weir/models/local_transformer.h"

namespace weir::models {

inline constexpr std::int64_t kLocalLength = 40;  // many windows

inline const LocalTransformerOptions kSmallLocal = {.num_tokens = 23,
                                                    .max_seq_len = kLocalLength,
                                                    .dim = 12,
                                                    .depth = 2,
                                                    .local_attn_window_size = 3,
                                                    .dim_head = 6,
                                                    .heads = 2,
                                                    .ff_mult = 2,
                                                    .num_residual_streams = 3};

inline std::vector<nn::Named<LocalTransformerOptions>> small_local_cases() {
  using Options = LocalTransformerOptions;
  const auto with = [](auto change) {
    Options options = kSmallLocal;
    change(options);
    return options;
  };
  return {
      {"streams", kSmallLocal},
      {"plain", with([](Options& o) { o.num_residual_streams = 1; })},
      {"bias", with([](Options& o) { o.use_dynamic_pos_bias = true; })},
      {"bias_buckets", with([](Options& o) {
         o.use_dynamic_pos_bias = true, o.exact_windowsize = false, o.look_backward = 2;
       })},
      {"all", with([](Options& o) {
         o.qk_rmsnorm = o.gate_values_per_head = o.use_xpos = true, o.exact_windowsize = false;
       })},
  };
}

inline LocalTransformer small_local(const LocalTransformerOptions& options) {
  torch::manual_seed(1);
  LocalTransformer model(options);
  nn::randomise(*model);
  return model;
}

inline at::Tensor random_tokens(std::int64_t batch, std::int64_t n) {
  return at::randint(23, {batch, n}, at::kLong);
}

class LocalMode : public ::testing::TestWithParam<nn::Named<LocalTransformerOptions>> {
 protected:
  LocalTransformer model_ = small_local(GetParam().options);
};

}  // namespace weir::models
