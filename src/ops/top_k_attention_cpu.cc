// SPDX-License-Identifier: Apache-2.0
// top_k_attention on the CPU: tensors to pointers, tiles over threads. The work is in
// kernels/cpu/top_k_attention.cc.
#include "kernels/top_k_attention.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "ops/parallel.h"
#include "ops/top_k_attention.h"
#include "ops/top_k_attention_operands.h"

namespace weir::ops {
namespace {

TopKAttentionResult forward_cpu(const at::Tensor& query, const at::Tensor& key,
                                const at::Tensor& value, const OptionalTensor& key_mask,
                                const OptionalTensor& mask, std::int64_t k, bool causal,
                                double scale) {
  const auto problem = top_k_attention_problem(query, key, value, key_mask, mask, k, causal, scale);
  const AttentionPlan plan = std::move(attention_plans(problem.attention)[0]);
  const auto& shape = plan.shape;
  const AttentionOperands in = attention_operands(problem.attention, query, key, value);
  const auto kept_shape = problem.kept_shape();
  const at::Tensor output = at::empty_symint(problem.attention.output_shape(), query.options());
  const at::Tensor indices = at::empty_symint(kept_shape, query.options().dtype(at::kInt));
  const at::Tensor weights =
      at::empty_symint(kept_shape, query.options().dtype(problem.attention.compute));
  const std::int64_t kept = problem.kept.guard_int(__FILE__, __LINE__);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, query.scalar_type(), "weir::top_k_attention", [&] {
        using T = Compute<scalar_t>;
        const kernels::TopKAttentionForward<Value<scalar_t>, T> args = {
            .in = attention_pointers<scalar_t>(plan, in),
            .k = kept,
            .output = values_of<scalar_t>(output),
            .indices = indices.mutable_data_ptr<std::int32_t>(),
            .weights = weights.mutable_data_ptr<T>()};
        parallel_rows(shape.batch * shape.heads * shape.tiles,
                      shape.tile_rows * (shape.keys * shape.dim + kept * shape.value_dim) / 8,
                      kernels::top_k_attention_workspace_bytes(shape, kept, false),
                      [&](std::int64_t begin, std::int64_t end, std::byte* workspace) {
                        kernels::top_k_attention_forward(args, begin, end, workspace);
                      });
      });
  return {output, indices, weights};
}

TopKAttentionGradients backward_cpu(const at::Tensor& grad, const at::Tensor& query,
                                    const at::Tensor& key, const at::Tensor& value,
                                    const at::Tensor& indices, const at::Tensor& weights,
                                    double scale) {
  const auto problem = top_k_attention_problem(query, key, value, std::nullopt, std::nullopt, 1,
                                               /*causal=*/false, scale);
  const AttentionPlan plan = std::move(attention_plans(problem.attention)[0]);
  const auto& shape = plan.shape;
  const AttentionOperands in = attention_operands(problem.attention, query, key, value);
  const at::Tensor upstream = grad.contiguous(), chosen = indices.contiguous(),
                   shares = weights.contiguous();
  const at::Tensor grad_query = at::empty(query.sizes(), query.options());
  const at::Tensor key_sums = sums_of_parts(shape, key), value_sums = sums_of_parts(shape, value);
  const std::int64_t kept = indices.size(-1);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, query.scalar_type(), "weir::top_k_attention", [&] {
        using T = Compute<scalar_t>;
        const kernels::TopKAttentionBackward<Value<scalar_t>, T> args = {
            .in = attention_pointers<scalar_t>(plan, in),
            .k = kept,
            .grad = values_of<scalar_t>(upstream),
            .indices = chosen.const_data_ptr<std::int32_t>(),
            .weights = shares.const_data_ptr<T>(),
            .grad_query = values_of<scalar_t>(grad_query),
            .grad_key = key_sums.mutable_data_ptr<T>(),
            .grad_value = value_sums.mutable_data_ptr<T>()};
        parallel_rows(shape.batch * shape.kv_heads * shape.key_parts, backward_cost(shape, kept),
                      kernels::top_k_attention_workspace_bytes(shape, kept, true),
                      [&](std::int64_t begin, std::int64_t end, std::byte* workspace) {
                        kernels::top_k_attention_backward(args, begin, end, workspace);
                      });
      });
  return {grad_query, sum_of_parts(key_sums, key), sum_of_parts(value_sums, value)};
}

TORCH_LIBRARY_IMPL(weir, CPU, m) {
  m.impl("_top_k_attention", forward_cpu);
  m.impl("_top_k_attention_backward", backward_cpu);
}

}  // namespace
}  // namespace weir::ops
