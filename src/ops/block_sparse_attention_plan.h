// SPDX-License-Identifier: Apache-2.0
// A checked problem as the CPU kernel takes it: segments, lists of active blocks, pointers to
// masks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "kernels/block_sparse_attention.h"
#include "ops/block_sparse_attention.h"

namespace weir::ops {

/// What the kernel reads, and what keeps it alive: memory that stays where it is when a plan moves.
struct AttentionPlan {
  kernels::BlockSparseAttentionShape shape;
  std::int64_t batches = 0;  ///< batch entries, or 1 when the segments name their own
  std::vector<kernels::AttentionSegment> segments;
  std::vector<std::int64_t> first_blocks, blocks;
  at::Tensor key_mask, mask;
};

/// One plan, or two for a union with a local window: the window, and the rest without it. Their
/// sets of pairs are disjoint. Throws c10::ValueError on cu_seqlens that do not fit.
std::vector<AttentionPlan> attention_plans(const BlockSparseAttentionProblem& problem);

}  // namespace weir::ops
