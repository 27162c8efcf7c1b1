// SPDX-License-Identifier: Apache-2.0
// The kernel of block_sparse_attention and local_attention on every instruction set of this CPU,
// against the textbooks, and with dropout against the composite.
#define HWY_DISABLED_TARGETS HWY_SSSE3  // as the kernels are built
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "support/block_sparse_attention_cases.h"
#include "support/instruction_sets.h"
#include "support/local_attention_cases.h"

namespace weir::tests {
namespace {

constexpr torch::Dtype kDtypes[] = {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf};

/// check(seed, dtype) for `count` seeds on every instruction set.
template <class Check>
void on_all(unsigned first, unsigned count, const Check& check) {
  for_each_instruction_set([&] {
    for (unsigned seed = first; seed < first + count; ++seed) {
      for (const torch::Dtype dtype : kDtypes) {
        check(seed, dtype);
        if (::testing::Test::HasFailure()) return;
      }
    }
  });
}

TEST(BlockSparseAttentionInstructionSets, AllEqualTheTextbook) {
  on_all(9000, 30, [](unsigned seed, torch::Dtype dtype) { check_case(random_case(seed, dtype)); });
}

TEST(BlockSparseAttentionInstructionSets, UnionsAndPackedSequences) {
  on_all(9100, 12, [](unsigned seed, torch::Dtype dtype) {
    AttentionCase c = random_case(seed, dtype);
    AttentionDraw draw{std::mt19937(seed)};
    if (seed % 3 != 0) c.options.local = draw.of({1, 3, 9, 17, 64});
    if (seed % 3 != 1 && !c.masks.cu_seqlens && !c.masks.document_ids) random_packing(draw, c);
    check_case(c);
  });
}

TEST(LocalAttentionInstructionSets, AllEqualTheTextbook) {
  on_all(9200, 20,
         [](unsigned seed, torch::Dtype dtype) { check_case(random_local_case(seed, dtype)); });
}

TEST(LocalAttentionInstructionSets, BiasRotationAndBucketsTogether) {
  on_all(9300, 8, [](unsigned seed, torch::Dtype dtype) {
    LocalCase c = random_local_case(seed, dtype);
    c.options.exact_windowsize = seed % 4 == 3;
    if (!c.inputs.inv_freq) c.inputs.inv_freq = rotary(c.query.size(3));
    if (!c.inputs.attn_bias) c.inputs.attn_bias = random_bias(c, dtype);
    check_case(c);
  });
}

TEST(LocalAttentionInstructionSets, DropTheSameWeights) {
  on_all(9400, 10, [](unsigned seed, torch::Dtype dtype) {
    LocalCase c = random_local_case(seed, dtype);
    c.options.dropout = 0.3;
    c.seed = seed;
    check_backends(c);
  });
}

}  // namespace
}  // namespace weir::tests
