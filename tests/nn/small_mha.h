// SPDX-License-Identifier: Apache-2.0
// The LocalMHA that its tests share: one per option that changes what it computes.
#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <vector>

#include "nn/module_contract.h"
#include "weir/nn/local_mha.h"

namespace weir::nn {

inline const LocalMHAOptions kSmallMha = {
    .dim = 12, .window_size = 3, .dim_head = 6, .heads = 2, .causal = true, .prenorm = true};

inline std::vector<Named<LocalMHAOptions>> small_mha_cases() {
  using Options = LocalMHAOptions;
  const auto with = [](auto change) {
    Options options = kSmallMha;
    change(options);
    return options;
  };
  return {
      {"exact", kSmallMha},
      {"buckets", with([](Options& o) { o.exact_windowsize = false; })},
      {"far", with([](Options& o) { o.look_backward = 3, o.prenorm = false; })},
      {"own_bucket", with([](Options& o) { o.look_backward = 0, o.exact_windowsize = false; })},
      {"itself", with([](Options& o) { o.look_backward = 0; })},
      {"one", with([](Options& o) { o.window_size = 1, o.look_backward = 2; })},
      {"normalised", with([](Options& o) { o.qk_rmsnorm = true, o.qk_scale = 5; })},
      {"gated", with([](Options& o) { o.gate_values_per_head = true; })},
      {"xpos", with([](Options& o) { o.use_xpos = true, o.exact_windowsize = false; })},
      {"shared", with([](Options& o) { o.shared_qk = true, o.use_rotary_pos_emb = false; })},
      {"no_rotary", with([](Options& o) { o.use_rotary_pos_emb = false; })},
  };
}

class MhaMode : public ::testing::TestWithParam<Named<LocalMHAOptions>> {
 protected:
  MhaMode() {
    torch::manual_seed(1);
    module_ = LocalMHA(GetParam().options);
    randomise(*module_);
  }
  LocalMHA module_{nullptr};
};

}  // namespace weir::nn
