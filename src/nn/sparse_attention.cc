// SPDX-License-Identifier: Apache-2.0
// One call of block_sparse_attention per pattern, each with its own heads.
#include "weir/nn/sparse_attention.h"

#include <ATen/ops/cat.h>

#include <algorithm>

#include "nn/check.h"

namespace weir::nn {
namespace {

constexpr auto kName = "SparseAttention";

using Attention = decltype(&ops::block_sparse_attention);

/// (batch, n, features) -> (batch, heads, n, features / heads)
at::Tensor split_heads(const char* name, const at::Tensor& x, std::int64_t heads) {
  TORCH_CHECK_VALUE(x.dim() == 3 && x.size(-1) % heads == 0 && x.size(-1) > 0, "weir::", kName,
                    ": expected `", name, "` to have shape [batch, n, features] with features a ",
                    "multiple of `heads`, ", heads, ", but got ", x.sizes(), ".");
  return x.unflatten(-1, {heads, -1}).transpose(1, 2);
}

bool is_layout(const at::Tensor& mask, std::int64_t rows, std::int64_t columns, std::int64_t n) {
  return (mask.dim() == 2 || mask.dim() == 3) && mask.size(-2) == rows &&
         mask.size(-1) == columns && columns != n;
}

/// What of `mask`, with or without a dimension of heads, concerns the heads of `pattern`.
at::Tensor of_heads(const at::Tensor& mask, const SparsePattern& pattern, std::int64_t heads) {
  if (pattern.heads == heads || mask.dim() < 3 || mask.size(-3) == 1) return mask;
  TORCH_CHECK_VALUE(mask.size(-3) == heads, "weir::", kName, ": expected `mask` to have 1 or ",
                    heads, " heads, but got ", mask.sizes(), ".");
  return mask.narrow(-3, pattern.first_head, pattern.heads);
}

bool is_packed(const SparseAttentionInputs& inputs) {
  return inputs.cu_seqlens || inputs.document_ids;
}

/// How many positions the layouts must cover. Those of packed sequences count from their starts, so
/// that a custom layout need not cover all of them; the operator checks that it covers the longest.
std::int64_t positions_to_cover(const SparseAttentionOptions& options,
                                const SparseAttentionInputs& inputs, std::int64_t n) {
  if (!is_packed(inputs) || options.layout.empty()) return n;
  return std::min(n, std::ssize(options.layout.front()) * options.block_size);
}

at::Tensor positions_of(const at::Tensor& layout, std::int64_t size, std::int64_t n,
                        std::int64_t m) {
  return layout.repeat_interleave(size, -2).repeat_interleave(size, -1).narrow(-2, 0, n).narrow(
      -1, 0, m);
}

/// The pattern's layout and the caller's masks, for `query` (batch, heads, n, dim) and `key`.
ops::BlockSparseAttentionMasks masks_of(const SparsePattern& pattern,
                                        const SparseAttentionInputs& inputs,
                                        const at::Tensor& query, const at::Tensor& key) {
  const std::int64_t n = query.size(2), m = key.size(2);
  ops::BlockSparseAttentionMasks masks = {.key_mask = inputs.key_mask,
                                          .cu_seqlens = inputs.cu_seqlens,
                                          .document_ids = inputs.document_ids};
  if (pattern.layout) masks.layout = pattern.layout->to(key.device());
  if (!inputs.mask) return masks;
  const std::int64_t size = pattern.options.block_size;
  const bool by_blocks = is_layout(*inputs.mask, (n + size - 1) / size, (m + size - 1) / size, m);
  const at::Tensor mask = of_heads(*inputs.mask, pattern, query.size(1));
  if (!by_blocks) {
    masks.mask = mask;
  } else if (pattern.options.local > 0) {  // a layout would leave the local part alone
    TORCH_CHECK_NOT_IMPLEMENTED(!is_packed(inputs), "weir::", kName,
                                ": a layout as `mask` of a union is not implemented for packed "
                                "sequences; a mask of positions is.");
    masks.mask = positions_of(mask, size, n, m);
  } else {
    masks.layout = masks.layout ? *masks.layout & mask : mask;
  }
  return masks;
}

at::Tensor attend(Attention attention, const at::Tensor& q, const at::Tensor& k,
                  const at::Tensor& v, const SparseAttentionOptions& options,
                  const SparseAttentionInputs& inputs) {
  check_size(kName, "heads", options.heads);
  const at::Tensor query = split_heads("q", q, options.heads);
  const at::Tensor key = split_heads("k", k, options.heads);
  const at::Tensor value = split_heads("v", v, options.heads);
  std::vector<at::Tensor> parts;
  const std::int64_t covered = positions_to_cover(options, inputs, k.size(1));
  for (const SparsePattern& pattern : sparse_patterns(options, covered)) {
    TORCH_CHECK_VALUE(!pattern.layout || q.size(1) == k.size(1), "weir::", kName,
                      ": expected `q` and `k` of equal length with `attn_mode` \"",
                      options.attn_mode, "\", but got ", q.size(1), " and ", k.size(1), ".");
    const auto mine = [&](const at::Tensor& x) {
      return x.narrow(1, pattern.first_head, pattern.heads);
    };
    parts.push_back(attention(mine(query), mine(key), mine(value),
                              masks_of(pattern, inputs, query, key), pattern.options));
  }
  const at::Tensor out = parts.size() == 1 ? parts[0] : at::cat(parts, 1);
  return out.transpose(1, 2).flatten(2);
}

}  // namespace

at::Tensor blocksparse_attention_impl(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                      const SparseAttentionOptions& options,
                                      const SparseAttentionInputs& inputs) {
  return attend(ops::block_sparse_attention, q, k, v, options, inputs);
}

at::Tensor attention_impl(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const SparseAttentionOptions& options,
                          const SparseAttentionInputs& inputs) {
  return attend(ops::block_sparse_attention_composite, q, k, v, options, inputs);
}

SparseAttentionImpl::SparseAttentionImpl(const SparseAttentionOptions& options_)
    : options(options_) {
  sparse_patterns(options, 1);  // for what it throws
}

at::Tensor SparseAttentionImpl::forward(const at::Tensor& q, const at::Tensor& k,
                                        const at::Tensor& v, const SparseAttentionInputs& inputs) {
  return blocksparse_attention_impl(q, k, v, options, inputs);
}

void SparseAttentionImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::" << kName << "(attn_mode=" << options.attn_mode
         << ", heads=" << options.heads << ", block_size=" << options.block_size;
  if (options.local_attn_ctx) stream << ", local_attn_ctx=" << *options.local_attn_ctx;
  stream << ")";
}

}  // namespace weir::nn
