// SPDX-License-Identifier: Apache-2.0
// Softmax attention without a pattern.
#include "weir/nn/self_attention.h"

#include <ATen/TensorOperators.h>

#include "nn/check.h"
#include "weir/ops/block_sparse_attention.h"

namespace weir::nn {
namespace {

constexpr auto kName = "SelfAttention";

}  // namespace

SelfAttentionImpl::SelfAttentionImpl(const SelfAttentionOptions& options_) : options(options_) {
  check_size(kName, "dim", options.dim);
  check_size(kName, "dim_head", options.dim_head);
  check_size(kName, "heads", options.heads);
  reset();
}

void SelfAttentionImpl::reset() {
  const std::int64_t inner = options.heads * options.dim_head;
  const auto linear = [](std::int64_t in, std::int64_t out) {
    return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(false));
  };
  if (options.prenorm) norm = register_module("norm", L2RMSNorm(options.dim));
  to_qkv = register_module("to_qkv", linear(options.dim, 3 * inner));
  to_out = register_module("to_out", linear(inner, options.dim));
}

at::Tensor SelfAttentionImpl::forward(const at::Tensor& x, const SelfAttentionInputs& inputs) {
  check_tokens(kName, x, options.dim);
  check_padding(kName, inputs.mask, x);
  // Zeroing padding at the entry keeps it out of gradients too, NaN included.
  const at::Tensor tokens =
      inputs.mask ? x.masked_fill(inputs.mask->logical_not().unsqueeze(-1), 0) : x;
  const at::Tensor qkv = to_qkv(norm ? norm(tokens) : tokens)
                             .unflatten(-1, {3, options.heads, options.dim_head})
                             .permute({2, 0, 3, 1, 4});  // (3, batch, heads, n, dim_head)
  const at::Tensor out =
      ops::block_sparse_attention(qkv[0], qkv[1], qkv[2], {.key_mask = inputs.mask});
  return to_out(out.transpose(1, 2).flatten(2));
}

void SelfAttentionImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::" << kName << "(dim=" << options.dim << ", dim_head=" << options.dim_head
         << ", heads=" << options.heads << ")";
}

}  // namespace weir::nn
