// SPDX-License-Identifier: Apache-2.0
// What local_attention hands to _block_sparse_attention, and how xPos cuts it into chunks.
//
// xPos scales queries and keys by zeta^(+-position / base), which only a stretch of some buckets
// can represent: a longer sequence is cut into overlapping chunks, the entries of a larger batch.
// Their number is a property of the length, which is specialised when traced.
#pragma once

#include "ops/block_sparse_attention.h"
#include "weir/ops/local_attention.h"

namespace weir::ops {

/// What the private operator is called with.
struct LocalAttentionCall {
  at::Tensor query, key, value;
  OptionalTensor bias;
  AttentionTensors tensors;
  AttentionRule rule;
};

std::int64_t forward_buckets(const LocalAttentionOptions& options);
double xpos_base(const LocalAttentionOptions& options);

/// In the dtype of the computation: what is done to operands or their gradients is not rounded.
LocalAttentionCall widened(const LocalAttentionCall& call);

/// A size, which is specialised when traced.
std::int64_t size_of(const at::Tensor& x, std::int64_t dimension);

/// Without the buckets of keys that no query reaches.
LocalAttentionCall nearby(const LocalAttentionCall& call, const LocalAttentionOptions& options);

/// Whether the factors of the whole sequence would overflow. Throws c10::NotImplementedError if
/// those of a single window would.
bool needs_chunks(const LocalAttentionCall& call, const LocalAttentionOptions& options);

/// The call over chunks, whose output `joined` puts together; at most as many queries as keys.
LocalAttentionCall in_chunks(const LocalAttentionCall& call, const LocalAttentionOptions& options);

/// (batch * chunks, h, step, d) -> (batch, h, n, d), the last n positions of m.
at::Tensor joined(const at::Tensor& x, std::int64_t batch, std::int64_t n, std::int64_t m);

}  // namespace weir::ops
