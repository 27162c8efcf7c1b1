// SPDX-License-Identifier: Apache-2.0
// The kernel of block_sparse_attention on every instruction set of this CPU, against the textbook.
#define HWY_DISABLED_TARGETS HWY_SSSE3  // as the kernels are built
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "support/block_sparse_attention_cases.h"
#include "support/instruction_sets.h"

namespace weir::tests {
namespace {

TEST(BlockSparseAttentionInstructionSets, AllEqualTheTextbook) {
  for_each_instruction_set([&] {
    for (unsigned seed = 9000; seed < 9030; ++seed) {
      for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
        check_case(random_case(seed, dtype));
        if (::testing::Test::HasFailure()) return;
      }
    }
  });
}

}  // namespace
}  // namespace weir::tests
