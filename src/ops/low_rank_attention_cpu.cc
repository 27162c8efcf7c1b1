// SPDX-License-Identifier: Apache-2.0
// low_rank_attention on the CPU: tensors to pointers, tiles over threads. The work is in
// kernels/cpu/low_rank_attention.cc.
#include "kernels/low_rank_attention.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "ops/low_rank_attention.h"
#include "ops/parallel.h"
#include "ops/top_k_attention_operands.h"

namespace weir::ops {
namespace {

kernels::LowRankAttentionScore score_of(const LowRankAttentionRule& rule) {
  return {.descends = rule.descends(), .eps = rule.eps, .budget = rule.budget()};
}

LowRankAttentionResult forward_cpu(const at::Tensor& route_query, const at::Tensor& route_key,
                                   const at::Tensor& query, const at::Tensor& key,
                                   const at::Tensor& value, const OptionalTensor& key_mask,
                                   const OptionalTensor& mask, at::IntArrayRef integers,
                                   at::ArrayRef<double> numbers, std::string_view score) {
  const auto problem = low_rank_attention_problem({route_query, route_key, query, key, value},
                                                  key_mask, mask, integers, numbers, score);
  const AttentionPlan route_plan = std::move(attention_plans(problem.route.attention)[0]),
                      plan = std::move(attention_plans(problem.attention)[0]);
  const auto &route_shape = route_plan.shape, &shape = plan.shape;
  const AttentionOperands route =
      attention_operands(problem.route.attention, route_query, route_key, route_key);
  const AttentionOperands in = attention_operands(problem.attention, query, key, value);
  const auto options = query.options(), computed = options.dtype(problem.attention.compute);
  const auto kept_shape = problem.route.kept_shape();
  const at::Tensor output = at::empty_symint(problem.attention.output_shape(), options);
  const at::Tensor indices = at::empty_symint(kept_shape, options.dtype(at::kInt));
  const at::Tensor scores = at::empty_symint(kept_shape, computed);
  const at::Tensor weights = at::empty_symint(problem.weights_shape(), computed);
  const std::int64_t kept = indices.size(-1);
  const std::int64_t group = shape.heads / std::max<std::int64_t>(1, route_shape.heads);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, query.scalar_type(), "weir::low_rank_attention", [&] {
        using T = Compute<scalar_t>;
        const kernels::LowRankAttentionForward<Value<scalar_t>, T> args = {
            .route = attention_pointers<scalar_t>(route_plan, route),
            .in = attention_pointers<scalar_t>(plan, in),
            .k = kept,
            .score = score_of(problem.rule),
            .output = values_of<scalar_t>(output),
            .indices = indices.mutable_data_ptr<std::int32_t>(),
            .scores = scores.mutable_data_ptr<T>(),
            .weights = weights.mutable_data_ptr<T>()};
        parallel_rows(route_shape.batch * route_shape.heads * route_shape.tiles,
                      route_shape.tile_rows *
                          (route_shape.keys * route_shape.dim +
                           group * kept * (shape.dim + shape.value_dim)) /
                          8,
                      kernels::low_rank_attention_workspace_bytes(route_shape, shape, kept),
                      [&](std::int64_t begin, std::int64_t end, std::byte* workspace) {
                        kernels::low_rank_attention_forward(args, begin, end, workspace);
                      });
      });
  return {output, indices, scores, weights};
}

LowRankAttentionGradients backward_cpu(const at::Tensor& grad, const at::Tensor& route_query,
                                       const at::Tensor& route_key, const at::Tensor& query,
                                       const at::Tensor& key, const at::Tensor& value,
                                       const at::Tensor& indices, const at::Tensor& scores,
                                       const at::Tensor& weights, at::IntArrayRef integers,
                                       at::ArrayRef<double> numbers, std::string_view score) {
  const auto problem =
      low_rank_attention_problem({route_query, route_key, query, key, value}, std::nullopt,
                                 std::nullopt, integers, numbers, score);
  const AttentionPlan route_plan = std::move(attention_plans(problem.route.attention)[0]),
                      plan = std::move(attention_plans(problem.attention)[0]);
  const auto &route_shape = route_plan.shape, &shape = plan.shape;
  const AttentionOperands route =
      attention_operands(problem.route.attention, route_query, route_key, route_key);
  const AttentionOperands in = attention_operands(problem.attention, query, key, value);
  const at::Tensor upstream = grad.contiguous(), chosen = indices.contiguous(),
                   shares = weights.contiguous(), wanted = scores.contiguous();
  const auto like = [](const at::Tensor& x) { return at::empty(x.sizes(), x.options()); };
  const at::Tensor grad_query = like(query), grad_route_query = like(route_query),
                   grad_scores = like(shares);
  const at::Tensor key_sums = sums_of_parts(shape, key), value_sums = sums_of_parts(shape, value),
                   route_key_sums = sums_of_parts(route_shape, route_key);
  const std::int64_t kept = indices.size(-1);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, query.scalar_type(), "weir::low_rank_attention", [&] {
        using T = Compute<scalar_t>;
        const kernels::LowRankAttentionBackward<Value<scalar_t>, T> args = {
            .attention = {.in = attention_pointers<scalar_t>(plan, in),
                          .k = kept,
                          .grad = values_of<scalar_t>(upstream),
                          .indices = chosen.const_data_ptr<std::int32_t>(),
                          .weights = shares.const_data_ptr<T>(),
                          .grad_query = values_of<scalar_t>(grad_query),
                          .grad_key = key_sums.mutable_data_ptr<T>(),
                          .grad_value = value_sums.mutable_data_ptr<T>()},
            .route = attention_pointers<scalar_t>(route_plan, route),
            .score = score_of(problem.rule),
            .scores = wanted.const_data_ptr<T>(),
            .grad_scores = grad_scores.mutable_data_ptr<T>(),
            .grad_route_query = values_of<scalar_t>(grad_route_query),
            .grad_route_key = route_key_sums.mutable_data_ptr<T>()};
        parallel_rows(shape.batch * shape.kv_heads * shape.key_parts, backward_cost(shape, kept),
                      kernels::top_k_attention_workspace_bytes(shape, kept, true),
                      [&](std::int64_t begin, std::int64_t end, std::byte* workspace) {
                        kernels::low_rank_attention_backward(args, begin, end, workspace);
                      });
        parallel_rows(route_shape.batch * route_shape.kv_heads * route_shape.key_parts,
                      backward_cost(route_shape, kept),
                      kernels::top_k_attention_workspace_bytes(route_shape, kept, true),
                      [&](std::int64_t begin, std::int64_t end, std::byte* workspace) {
                        kernels::low_rank_attention_route_backward(args, begin, end, workspace);
                      });
      });
  return {grad_route_query, sum_of_parts(route_key_sums, route_key), grad_query,
          sum_of_parts(key_sums, key), sum_of_parts(value_sums, value)};
}

TORCH_LIBRARY_IMPL(weir, CPU, m) {
  m.impl("_low_rank_attention", forward_cpu);
  m.impl("_low_rank_attention_backward", backward_cpu);
}

}  // namespace
}  // namespace weir::ops
