// SPDX-License-Identifier: Apache-2.0
// coordinate_descent_attention on the CPU: tensors to pointers, blocks of queries over threads. The
// work is in kernels/cpu/coordinate_descent_attention.cc.
#include <ATen/Dispatch.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "kernels/coordinate_descent_attention.h"
#include "kernels/scratch.h"
#include "ops/coordinate_descent_attention.h"
#include "ops/kernel_attention.h"
#include "ops/kernel_value.h"
#include "ops/parallel.h"

namespace weir::ops {
namespace {

using Problem = CoordinateDescentAttentionProblem;
using Shape = kernels::CoordinateDescentAttentionShape;

/// The operands as the kernel wants them, kept alive while it runs.
struct Operands {
  Problem problem;
  at::Tensor query, key, value;
  at::Tensor budget;    // double, one value or one per query
  at::Tensor key_mask;  // undefined, or contiguous
  at::Tensor mask;      // undefined, or expanded
  Shape shape;
};

/// By the shape alone, so that results do not depend on the threads.
std::int64_t key_parts(const Shape& shape) {
  constexpr std::int64_t kItems = 8;
  const std::int64_t items = shape.batch * shape.kv_heads;
  if (items == 0 || items >= kItems) return 1;
  const std::int64_t blocks = shape.heads / shape.kv_heads * shape.blocks();
  return std::clamp<std::int64_t>((kItems + items - 1) / items, 1,
                                  std::max<std::int64_t>(1, blocks));
}

Shape shape_of(const Problem& problem, const at::Tensor& query, const at::Tensor& key,
               const at::Tensor& value) {
  Shape shape = {.batch = query.size(0),
                 .heads = query.size(1),
                 .kv_heads = key.size(1),
                 .queries = query.size(2),
                 .keys = key.size(2),
                 .dim = query.size(3),
                 .value_dim = value.size(3),
                 .causal = problem.rule.causal,
                 .nulls = std::min(problem.rule.nulls, key.size(2)),
                 .normalize = problem.rule.normalize,
                 .scale = problem.rule.scale,
                 .eps = problem.eps.data(),
                 .n_iters = problem.n_iters()};
  const std::int64_t bytes = problem.compute == at::kDouble ? 8 : 4;
  shape.block_rows =
      kernels::coordinate_descent_attention_block_rows(shape.queries, shape.keys, bytes);
  shape.key_parts = key_parts(shape);
  return shape;
}

Operands prepare(Problem problem, const at::Tensor& query, const at::Tensor& key,
                 const at::Tensor& value, const at::Tensor& budget, const OptionalTensor& key_mask,
                 const OptionalTensor& mask) {
  Operands in = {.problem = std::move(problem),
                 .query = with_contiguous_features(query),
                 .key = with_contiguous_features(key),
                 .value = with_contiguous_features(value),
                 .budget = {},
                 .key_mask = {},
                 .mask = {},
                 .shape = {}};
  const at::Tensor wide = budget.to(at::kDouble);
  in.budget =
      wide.numel() == 1 ? wide.contiguous() : wide.expand(query.sizes().slice(0, 3)).contiguous();
  in.shape = shape_of(in.problem, query, key, value);
  const auto bytes = [](const at::Tensor& x) {
    return reinterpret_cast<const std::uint8_t*>(x.const_data_ptr<bool>());
  };
  if (key_mask) {
    in.key_mask = key_mask->contiguous();
    in.shape.key_mask = bytes(in.key_mask);
  }
  if (mask) {
    auto& shape = in.shape;
    in.mask = mask->expand({shape.batch, shape.heads, shape.queries, shape.keys});
    shape.mask = bytes(in.mask);
    shape.mask_batch = in.mask.stride(0), shape.mask_head = in.mask.stride(1);
    shape.mask_query = in.mask.stride(2), shape.mask_key = in.mask.stride(3);
  }
  return in;
}

template <class Scalar>
auto pointers(const Operands& in) {
  const auto values = [](const at::Tensor& tensor) {
    return reinterpret_cast<const Value<Scalar>*>(tensor.const_data_ptr<Scalar>());
  };
  return kernels::CoordinateDescentAttentionOperands<Value<Scalar>>{
      .shape = in.shape,
      .query = values(in.query),
      .key = values(in.key),
      .value = values(in.value),
      .query_strides = attention_strides(in.query),
      .key_strides = attention_strides(in.key),
      .value_strides = attention_strides(in.value),
      .budget = in.budget.const_data_ptr<double>(),
      .budget_stride = in.budget.numel() == 1 ? 0 : 1};
}

/// Steps of a block of queries.
std::int64_t block_cost(const Shape& shape) {
  const std::int64_t passes = shape.n_iters == 0 ? 6 : shape.n_iters;
  return shape.block_rows * shape.keys * (passes + (shape.dim + shape.value_dim) / 8);
}

std::tuple<at::Tensor, at::Tensor> forward_cpu(const at::Tensor& query, const at::Tensor& key,
                                               const at::Tensor& value, const at::Tensor& budget,
                                               const OptionalTensor& key_mask,
                                               const OptionalTensor& mask, at::IntArrayRef integers,
                                               at::ArrayRef<double> numbers,
                                               std::string_view solver) {
  const Operands in =
      prepare(coordinate_descent_attention_problem(query, key, value, budget, key_mask, mask,
                                                   integers, numbers, solver),
              query, key, value, budget, key_mask, mask);
  at::Tensor output = at::empty_symint(in.problem.output_shape(), query.options());
  at::Tensor trace = at::empty_symint(in.problem.trace_shape(), query.options().dtype(at::kDouble));
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, query.scalar_type(), "weir::coordinate_descent_attention", [&] {
        const kernels::CoordinateDescentAttentionForward<Value<scalar_t>> args = {
            .in = pointers<scalar_t>(in),
            .output = reinterpret_cast<Value<scalar_t>*>(output.mutable_data_ptr<scalar_t>()),
            .trace = trace.mutable_data_ptr<double>()};
        parallel_rows(in.shape.batch * in.shape.heads * in.shape.blocks(), block_cost(in.shape),
                      kernels::coordinate_descent_attention_workspace_bytes(in.shape, false),
                      [&](std::int64_t begin, std::int64_t end, std::byte* workspace) {
                        kernels::coordinate_descent_attention_forward(args, begin, end, workspace);
                      });
      });
  return {output, trace};
}

/// Where the kernel adds up gradients of keys or values: (key_parts, batch, kv_heads, m, features),
/// rows of whole vectors.
at::Tensor key_sums(const Operands& in, const at::Tensor& x) {
  constexpr std::int64_t kLanes = kernels::kMostLanes;
  return at::zeros({in.shape.key_parts, x.size(0), x.size(1), x.size(2),
                    (x.size(3) + kLanes - 1) / kLanes * kLanes},
                   x.options().dtype(in.problem.compute));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward_cpu(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const at::Tensor& budget, const OptionalTensor& key_mask, const OptionalTensor& mask,
    const at::Tensor& trace, at::IntArrayRef integers, at::ArrayRef<double> numbers,
    std::string_view solver) {
  const Operands in =
      prepare(coordinate_descent_attention_problem(query, key, value, budget, key_mask, mask,
                                                   integers, numbers, solver),
              query, key, value, budget, key_mask, mask);
  const at::Tensor upstream = grad.contiguous(), saved = trace.contiguous();
  at::Tensor grad_query = at::empty(query.sizes(), query.options());
  at::Tensor grad_budget =
      at::empty_symint(in.problem.row_shape(), query.options().dtype(at::kDouble));
  at::Tensor grad_key = key_sums(in, key), grad_value = key_sums(in, value);
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, query.scalar_type(), "weir::coordinate_descent_attention", [&] {
        using T = Compute<scalar_t>;
        const kernels::CoordinateDescentAttentionBackward<Value<scalar_t>, T> args = {
            .in = pointers<scalar_t>(in),
            .grad = reinterpret_cast<const Value<scalar_t>*>(upstream.const_data_ptr<scalar_t>()),
            .trace = saved.const_data_ptr<double>(),
            .grad_query =
                reinterpret_cast<Value<scalar_t>*>(grad_query.mutable_data_ptr<scalar_t>()),
            .grad_key = grad_key.mutable_data_ptr<T>(),
            .grad_value = grad_value.mutable_data_ptr<T>(),
            .grad_budget = grad_budget.mutable_data_ptr<double>()};
        parallel_rows(in.shape.batch * in.shape.kv_heads * in.shape.key_parts,
                      block_cost(in.shape) * (1 + in.shape.blocks() / in.shape.key_parts),
                      kernels::coordinate_descent_attention_workspace_bytes(in.shape, true),
                      [&](std::int64_t begin, std::int64_t end, std::byte* workspace) {
                        kernels::coordinate_descent_attention_backward(args, begin, end, workspace);
                      });
      });
  return {grad_query, sum_of_parts(grad_key, key), sum_of_parts(grad_value, value), grad_budget};
}

TORCH_LIBRARY_IMPL(weir, CPU, m) {
  m.impl("_coordinate_descent_attention", forward_cpu);
  m.impl("_coordinate_descent_attention_backward", backward_cpu);
}

}  // namespace
}  // namespace weir::ops
