// SPDX-License-Identifier: Apache-2.0
// Patterns as layouts and rules of block_sparse_attention, and the module around it.
#include "weir/nn/sparse_attention.h"

#include <ATen/ops/arange.h>

#include "nn/check.h"

namespace weir::nn {
namespace {

constexpr auto kName = "SparseAttention";

void check_fixed(const SparseAttentionOptions& options, std::int64_t ctx) {
  TORCH_CHECK_VALUE(ctx % options.block_size == 0, "weir::", kName,
                    ": expected `local_attn_ctx` to be a multiple of `block_size`, ",
                    options.block_size, ", but got ", ctx, ".");
  const std::int64_t blocks = ctx / options.block_size;
  TORCH_CHECK_VALUE(options.vertsize <= blocks && blocks % options.vertsize == 0, "weir::", kName,
                    ": expected `vertsize` to divide the ", blocks, " blocks of a chunk, but got ",
                    options.vertsize, ".");
  TORCH_CHECK_VALUE(options.num_verts * options.vertsize <= blocks, "weir::", kName,
                    ": expected `num_verts` * `vertsize` to be at most the ", blocks,
                    " blocks of a chunk, but got ", options.num_verts, " * ", options.vertsize,
                    ".");
  TORCH_CHECK_VALUE(options.heads % options.num_verts == 0, "weir::", kName,
                    ": expected `num_verts` to divide `heads`, ", options.heads, ", but got ",
                    options.num_verts, ".");
}

void check(const SparseAttentionOptions& options) {
  check_size(kName, "heads", options.heads);
  check_size(kName, "num_verts", options.num_verts);
  check_size(kName, "vertsize", options.vertsize);
  TORCH_CHECK_VALUE(options.block_size >= 1 && options.block_size <= 128, "weir::", kName,
                    ": expected `block_size` to lie in [1, 128], but got ", options.block_size,
                    ".");
  const auto& mode = options.attn_mode;
  TORCH_CHECK_VALUE(
      mode == "all" || mode == "local" || mode == "strided" || mode == "fixed", "weir::", kName,
      ": expected `attn_mode` to be \"all\", \"local\", \"strided\" or \"fixed\", but got \"", mode,
      "\".");
  if (mode == "all") return;
  TORCH_CHECK_VALUE(options.local_attn_ctx, "weir::", kName,
                    ": expected `local_attn_ctx` with `attn_mode` \"", mode, "\", but got none.");
  check_size(kName, "local_attn_ctx", *options.local_attn_ctx);
  if (mode == "fixed") check_fixed(options, *options.local_attn_ctx);
}

/// Blocks of the query's own chunk and the summaries of all chunks: (blocks, blocks), or per head.
at::Tensor fixed_layout(const SparseAttentionOptions& options, std::int64_t n) {
  const std::int64_t count = (n + options.block_size - 1) / options.block_size;
  const std::int64_t chunk = *options.local_attn_ctx / options.block_size;
  const at::Tensor blocks = at::arange(count, at::kLong);
  const at::Tensor chunks = blocks.div(chunk, "floor");
  const at::Tensor own = chunks.unsqueeze(1) == chunks.unsqueeze(0);
  // Counted from the end of a chunk, summary v is blocks v * vertsize to (v + 1) * vertsize - 1.
  const at::Tensor summary = (chunk - 1 - blocks.remainder(chunk)).div(options.vertsize, "floor");
  if (options.num_verts == 1) return own | (summary == 0).unsqueeze(0);
  const at::Tensor mine = at::arange(options.heads, at::kLong).remainder(options.num_verts);
  return own.unsqueeze(0) | (summary.unsqueeze(0) == mine.unsqueeze(1)).unsqueeze(1);
}

/// sparse_pattern of options that are checked already.
SparsePattern pattern_of(const SparseAttentionOptions& options, std::int64_t n) {
  SparsePattern pattern = {.layout = std::nullopt,
                           .options = {.block_size = options.block_size, .causal = options.causal}};
  if (options.attn_mode == "local") pattern.options.window = options.local_attn_ctx;
  if (options.attn_mode == "strided") pattern.options.stride = *options.local_attn_ctx;
  if (options.attn_mode == "fixed") pattern.layout = fixed_layout(options, n);
  return pattern;
}

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

struct Call {
  at::Tensor query, key, value;
  ops::BlockSparseAttentionMasks masks;
  ops::BlockSparseAttentionOptions options;
};

Call prepare(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
             const SparseAttentionOptions& options, const SparseAttentionInputs& inputs) {
  check(options);
  Call call = {.query = split_heads("q", q, options.heads),
               .key = split_heads("k", k, options.heads),
               .value = split_heads("v", v, options.heads),
               .masks = {},
               .options = {}};
  const std::int64_t n = k.size(1);
  TORCH_CHECK_VALUE(options.attn_mode != "fixed" || q.size(1) == n, "weir::", kName,
                    ": expected `q` and `k` of equal length with `attn_mode` \"fixed\", but got ",
                    q.size(1), " and ", n, ".");
  SparsePattern pattern = pattern_of(options, n);
  if (pattern.layout) pattern.layout = pattern.layout->to(k.device());
  call.options = pattern.options;
  call.masks = {.layout = pattern.layout, .key_mask = inputs.key_mask, .mask = inputs.mask};
  if (!inputs.mask) return call;
  const auto blocks = [&](std::int64_t length) {
    return (length + options.block_size - 1) / options.block_size;
  };
  if (is_layout(*inputs.mask, blocks(q.size(1)), blocks(n), n)) {
    call.masks.mask = std::nullopt;
    call.masks.layout = pattern.layout ? *pattern.layout & *inputs.mask : *inputs.mask;
  }
  return call;
}

at::Tensor merge_heads(const at::Tensor& x) { return x.transpose(1, 2).flatten(2); }

}  // namespace

SparsePattern sparse_pattern(const SparseAttentionOptions& options, std::int64_t n) {
  check(options);
  return pattern_of(options, n);
}

at::Tensor blocksparse_attention_impl(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                                      const SparseAttentionOptions& options,
                                      const SparseAttentionInputs& inputs) {
  const Call call = prepare(q, k, v, options, inputs);
  return merge_heads(
      ops::block_sparse_attention(call.query, call.key, call.value, call.masks, call.options));
}

at::Tensor attention_impl(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                          const SparseAttentionOptions& options,
                          const SparseAttentionInputs& inputs) {
  const Call call = prepare(q, k, v, options, inputs);
  return merge_heads(ops::block_sparse_attention_composite(call.query, call.key, call.value,
                                                           call.masks, call.options));
}

SparseAttentionImpl::SparseAttentionImpl(const SparseAttentionOptions& options_)
    : options(options_) {
  check(options);
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
