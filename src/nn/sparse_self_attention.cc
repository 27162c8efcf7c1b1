// SPDX-License-Identifier: Apache-2.0
// Projections around block_sparse_attention, and steps over what a cache has kept. Both take the
// heads group by group.
#include "weir/nn/sparse_self_attention.h"

#include "nn/check.h"

namespace weir::nn {
namespace {

constexpr auto kName = "SparseSelfAttention";

void check(const SparseSelfAttentionOptions& options) {
  check_size(kName, "dim", options.dim);
  check_size(kName, "seq_len", options.seq_len);
  check_size(kName, "heads", options.heads);
  if (options.dim_head) {
    check_size(kName, "dim_head", *options.dim_head);
  } else {
    TORCH_CHECK_VALUE(options.dim % options.heads == 0, "weir::", kName,
                      ": expected `heads` to divide `dim`, ", options.dim, ", but got ",
                      options.heads, "; `dim_head` sets the size of a head freely.");
  }
}

SparseAttentionOptions pattern_options(const SparseSelfAttentionOptions& options) {
  return {.block_size = options.block_size,
          .heads = options.heads,
          .attn_mode = options.attn_mode,
          .local_attn_ctx = options.local_attn_ctx,
          .num_verts = options.num_verts,
          .vertsize = options.vertsize,
          .causal = true,
          .layout = options.layout};
}

/// The heads of `pattern` in each of q, k and v.
std::array<at::Tensor, 3> of_heads(const std::array<at::Tensor, 3>& qkv,
                                   const SparsePattern& pattern) {
  std::array<at::Tensor, 3> mine;
  for (std::size_t i = 0; i < qkv.size(); ++i) {
    mine[i] = qkv[i].narrow(1, pattern.first_head, pattern.heads);
  }
  return mine;
}

}  // namespace

SparseSelfAttentionImpl::SparseSelfAttentionImpl(const SparseSelfAttentionOptions& options_)
    : options(options_) {
  check(options);
  for (auto& pattern : sparse_patterns(pattern_options(options), options.seq_len)) {
    SparseReach reach(pattern, options.seq_len);
    groups_.push_back({.pattern = std::move(pattern), .reach = std::move(reach)});
  }
  reset();
}

void SparseSelfAttentionImpl::reset() {
  const std::int64_t inner = options.heads * dim_head();
  to_qkv = register_module("to_qkv", torch::nn::Linear(options.dim, 3 * inner));
  to_out = register_module("to_out", torch::nn::Linear(inner, options.dim));
}

at::Tensor SparseSelfAttentionImpl::forward(const at::Tensor& x) {
  check_tokens(kName, x, options.dim);
  TORCH_CHECK_VALUE(x.size(1) <= options.seq_len, "weir::", kName, ": expected at most ",
                    options.seq_len, " tokens per row, but got ", x.size(1), ".");
  const auto qkv = project(x);
  std::vector<at::Tensor> parts;
  for (const Group& group : groups_) {
    parts.push_back(attend(group, of_heads(qkv, group.pattern)));
  }
  return merge(parts);
}

at::Tensor SparseSelfAttentionImpl::step(const at::Tensor& x, const at::Tensor& positions,
                                         std::int64_t length, std::span<KeyValues> past) {
  at::NoGradGuard no_grad;
  check_tokens(kName, x, options.dim);
  if (x.numel() == 0) return x;
  const auto qkv = project(x);
  const at::Tensor next = positions.select(1, 0);  // (batch)
  const bool from_the_start = length == x.size(1);
  std::vector<at::Tensor> parts;
  for (std::size_t i = 0; i < groups_.size(); ++i) {
    const Group& group = groups_[i];
    const auto mine = of_heads(qkv, group.pattern);
    KeyValues& seen = past[i];
    // Slots at `next` and behind are of tokens that were taken back.
    const at::Tensor kept =
        group.reach(next, seen.positions) & (seen.positions < next.unsqueeze(1));
    if (!kept.all().item<bool>()) seen = seen.kept(kept);
    seen.append(mine[1], mine[2], positions);
    parts.push_back(from_the_start ? attend(group, mine)
                                   : at::scaled_dot_product_attention(
                                         mine[0], seen.keys, seen.values,
                                         allowed(group.pattern, positions, seen.positions)));
  }
  return merge(parts);
}

std::vector<KeyValues> SparseSelfAttentionImpl::make_cache(std::int64_t batch) const {
  std::vector<KeyValues> entries;
  for (const Group& group : groups_) {
    entries.push_back(empty_key_values(batch, group.pattern.heads, dim_head(),
                                       to_qkv->weight.options().requires_grad(false)));
  }
  return entries;
}

std::int64_t SparseSelfAttentionImpl::dim_head() const {
  return options.dim_head.value_or(options.dim / options.heads);
}

std::array<at::Tensor, 3> SparseSelfAttentionImpl::project(const at::Tensor& x) {
  const at::Tensor qkv = to_qkv(x)
                             .view({x.size(0), x.size(1), 3, options.heads, dim_head()})
                             .permute({2, 0, 3, 1, 4});  // (3, batch, heads, n, dim_head)
  return {qkv[0], qkv[1], qkv[2]};
}

/// All of the n tokens to all of them.
at::Tensor SparseSelfAttentionImpl::attend(const Group& group,
                                           const std::array<at::Tensor, 3>& qkv) const {
  const auto& [q, k, v] = qkv;
  ops::BlockSparseAttentionMasks masks;
  if (group.pattern.layout) {
    const std::int64_t size = options.block_size, blocks = (q.size(2) + size - 1) / size;
    masks.layout = group.pattern.layout->narrow(-2, 0, blocks).narrow(-1, 0, blocks).to(q.device());
  }
  return ops::block_sparse_attention(q, k, v, masks, group.pattern.options);
}

/// The heads' outputs, group by group (batch, heads, n, dim_head), as (batch, n, dim).
at::Tensor SparseSelfAttentionImpl::merge(const std::vector<at::Tensor>& parts) {
  return to_out(at::cat(parts, 1).transpose(1, 2).flatten(2));
}

void SparseSelfAttentionImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::" << kName << "(dim=" << options.dim << ", heads=" << options.heads
         << ", attn_mode=" << options.attn_mode << ", block_size=" << options.block_size;
  if (options.local_attn_ctx) stream << ", local_attn_ctx=" << *options.local_attn_ctx;
  stream << ")";
}

}  // namespace weir::nn
