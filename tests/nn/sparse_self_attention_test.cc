// SPDX-License-Identifier: Apache-2.0
// SparseSelfAttention: its parts, gradients, copies, messages. Its steps are tested with the model,
// tests/models/sparse_transformer_cache_test.cc.
#include "weir/nn/sparse_self_attention.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "nn/module_contract.h"
#include "support/tolerance.h"
#include "weir/nn/sparse_attention.h"

namespace weir::nn {
namespace {

const SparseSelfAttentionOptions kOptions = {.dim = 10,
                                             .seq_len = 20,
                                             .heads = 4,
                                             .dim_head = 3,
                                             .attn_mode = "local,custom",
                                             .local_attn_ctx = 4,
                                             .block_size = 8,
                                             .layout = {"1..", "...", "11."}};

TEST(SparseSelfAttention, IsTheSumOfItsParts) {
  torch::manual_seed(0);
  SparseSelfAttention module(kOptions);
  for (const std::int64_t n : {20, 9, 0}) {
    const at::Tensor x = at::randn({2, n, 10});
    const auto qkv = module->to_qkv(x).chunk(3, -1);
    const at::Tensor expected = module->to_out(attention_impl(qkv[0], qkv[1], qkv[2],
                                                              {.block_size = 8,
                                                               .heads = 4,
                                                               .attn_mode = "local,custom",
                                                               .local_attn_ctx = 4,
                                                               .layout = kOptions.layout}));
    EXPECT_LE(distance(module(x), expected), tests::kFloat32.weights);
  }
  module(at::randn({2, 20, 10})).square().sum().backward();
  expect_gradients_everywhere(*module);
}

TEST(SparseSelfAttention, CopiesAgree) {
  expect_copies_agree(SparseSelfAttention(kOptions), SparseSelfAttention(kOptions),
                      at::randn({2, 15, 10}));
}

TEST(SparseSelfAttention, Messages) {
  const auto refuses = [](void (*change)(SparseSelfAttentionOptions&), const std::string& words) {
    auto options = kOptions;
    change(options);
    expect_refusal([&] { SparseSelfAttention module(options); },
                   "weir::SparseSelfAttention: " + words);
  };
  using Options = SparseSelfAttentionOptions;
  refuses([](Options& o) { o.dim = 0; }, "expected `dim` to be at least 1, but got 0.");
  refuses([](Options& o) { o.seq_len = 0; }, "expected `seq_len` to be at least 1, but got 0.");
  refuses([](Options& o) { o.heads = 0; }, "expected `heads` to be at least 1, but got 0.");
  refuses([](Options& o) { o.dim_head = 0; }, "expected `dim_head` to be at least 1, but got 0.");
  refuses([](Options& o) { o.dim_head.reset(); },
          "expected `heads` to divide `dim`, 10, but got 4; `dim_head` sets the size of a head "
          "freely.");
  SparseSelfAttention module(kOptions);
  expect_refusal(
      [&] {
        module(at::randn({2, 21, 10}));
      },
      "weir::SparseSelfAttention: expected at most 20 tokens per row, but got 21.");
  EXPECT_EQ(printed(module).substr(0, printed(module).find('(') + 1),
            "weir::nn::SparseSelfAttention(");
}

}  // namespace
}  // namespace weir::nn
