// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention on the CPU: tensors to pointers, tiles over threads, and the two parts of
// a union put together. The work is in kernels/cpu/block_sparse_attention.cc.
#include <ATen/Dispatch.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <limits>

#include "ops/block_sparse_attention_plan.h"
#include "ops/kernel_attention.h"
#include "ops/kernel_value.h"
#include "ops/parallel.h"

namespace weir::ops {
namespace {

using Problem = BlockSparseAttentionProblem;

/// The tensors that kernels point into.
struct Operands {
  at::Tensor query, key, value, bias, query_rotation, key_rotation;
};

Operands operands_of(const Problem& problem, const at::Tensor& query, const at::Tensor& key,
                     const at::Tensor& value) {
  const auto computed = [&](const OptionalTensor& x) {
    return x ? x->to(problem.compute).contiguous() : at::Tensor();
  };
  return {.query = with_contiguous_features(query),
          .key = with_contiguous_features(key),
          .value = with_contiguous_features(value),
          .bias = problem.bias ? computed(problem.bias->transpose(1, 2)) : at::Tensor(),
          .query_rotation = computed(problem.tensors.query_rotation),
          .key_rotation = computed(problem.tensors.key_rotation)};
}

template <class Scalar>
auto pointers(const AttentionPlan& plan, const Operands& from) {
  using T = Compute<Scalar>;
  const auto values = [](const at::Tensor& tensor) {
    return reinterpret_cast<const Value<Scalar>*>(tensor.const_data_ptr<Scalar>());
  };
  const auto numbers = [](const at::Tensor& tensor) -> const T* {
    return tensor.defined() ? tensor.const_data_ptr<T>() : nullptr;
  };
  return kernels::BlockSparseAttentionOperands<Value<Scalar>, T>{
      .shape = plan.shape,
      .query = values(from.query),
      .key = values(from.key),
      .value = values(from.value),
      .query_strides = attention_strides(from.query),
      .key_strides = attention_strides(from.key),
      .value_strides = attention_strides(from.value),
      .bias = numbers(from.bias),
      .query_rotation = numbers(from.query_rotation),
      .key_rotation = numbers(from.key_rotation)};
}

/// Steps of a query tile: a guess that is right for dense rows and generous for others.
std::int64_t tile_cost(const AttentionPlan& plan) {
  return plan.shape.tile_rows * 64 * (plan.shape.dim + plan.shape.value_dim) / 8;
}

// ---- forward

struct Result {
  at::Tensor output, lse;
};

Result forward_part(const Problem& problem, const AttentionPlan& plan, const Operands& in) {
  const auto& shape = plan.shape;
  Result result = {
      at::empty_symint(problem.output_shape(), in.query.options()),
      at::empty_symint(problem.lse_shape(), in.query.options().dtype(problem.compute))};
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, in.query.scalar_type(), "weir::block_sparse_attention", [&] {
        using T = Compute<scalar_t>;
        const kernels::BlockSparseAttentionForward<Value<scalar_t>, T> args = {
            .in = pointers<scalar_t>(plan, in),
            .output =
                reinterpret_cast<Value<scalar_t>*>(result.output.mutable_data_ptr<scalar_t>()),
            .lse = result.lse.mutable_data_ptr<T>()};
        parallel_rows(plan.batches * shape.heads * shape.tiles, tile_cost(plan),
                      kernels::block_sparse_attention_workspace_bytes(shape, false),
                      [&](std::int64_t begin, std::int64_t end, std::byte* workspace) {
                        kernels::block_sparse_attention_forward(args, begin, end, workspace);
                      });
      });
  return result;
}

/// Softmax over two disjoint sets of keys: each output counts by its share of the total.
Result united(const Result& a, const Result& b) {
  const at::Tensor lse = at::logaddexp(a.lse, b.lse);  // -inf where both are
  const auto part = [&](const Result& x) {
    const at::Tensor none = lse == -std::numeric_limits<double>::infinity();
    return x.output * (x.lse - lse).masked_fill(none, 0).exp().unsqueeze(-1);
  };
  return {part(a) + part(b), lse};
}

std::tuple<at::Tensor, at::Tensor> forward_cpu(const at::Tensor& query, const at::Tensor& key,
                                               const at::Tensor& value, const OptionalTensor& bias,
                                               const c10::List<OptionalTensor>& tensors,
                                               at::IntArrayRef integers,
                                               at::ArrayRef<double> numbers) {
  const Problem problem =
      block_sparse_attention_problem(query, key, value, bias, tensors, integers, numbers);
  const auto plans = attention_plans(problem);
  if (plans.size() == 1) {
    const Result result = forward_part(problem, plans[0], operands_of(problem, query, key, value));
    return {result.output, result.lse};
  }
  const auto wide = [&](const at::Tensor& x) { return x.to(problem.compute); };  // round once
  const Operands in = operands_of(problem, wide(query), wide(key), wide(value));
  const Result result =
      united(forward_part(problem, plans[0], in), forward_part(problem, plans[1], in));
  return {result.output.to(query.scalar_type()), result.lse};
}

// ---- backward

struct Gradients {
  at::Tensor query, key, value, bias;
};

struct Upstream {
  at::Tensor grad, output, lse;  // contiguous
};

Gradients backward_part(const AttentionPlan& plan, const Operands& in, const Upstream& upstream) {
  const auto& shape = plan.shape;
  const auto like = [](const at::Tensor& x, std::int64_t parts) {
    std::vector<std::int64_t> sizes = x.sizes().vec();
    sizes.insert(sizes.begin(), parts);
    return at::empty(sizes, x.options());
  };
  Gradients grads = {like(in.query, 1).squeeze(0), like(in.key, shape.key_parts),
                     like(in.value, shape.key_parts), at::Tensor()};
  if (in.bias.defined()) {  // a part for each batch entry, so that threads need not share
    grads.bias = at::zeros({in.query.size(0), shape.heads, shape.bias_columns, shape.bias_rows},
                           in.bias.options());
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, in.query.scalar_type(), "weir::block_sparse_attention", [&] {
        using T = Compute<scalar_t>;
        const auto pointer = [](const at::Tensor& tensor) {
          return reinterpret_cast<Value<scalar_t>*>(tensor.data_ptr<scalar_t>());
        };
        const kernels::BlockSparseAttentionBackward<Value<scalar_t>, T> args = {
            .in = pointers<scalar_t>(plan, in),
            .grad = pointer(upstream.grad),
            .output = pointer(upstream.output),
            .lse = upstream.lse.const_data_ptr<T>(),
            .grad_query = pointer(grads.query),
            .grad_key = pointer(grads.key),
            .grad_value = pointer(grads.value),
            .grad_bias = grads.bias.defined() ? grads.bias.mutable_data_ptr<T>() : nullptr};
        const std::int64_t segments = std::max<std::int64_t>(1, shape.segment_count);
        parallel_rows(plan.batches * shape.kv_heads * shape.segment_count * shape.key_parts,
                      (shape.tiles + segments - 1) / segments * tile_cost(plan),
                      kernels::block_sparse_attention_workspace_bytes(shape, true),
                      [&](std::int64_t begin, std::int64_t end, std::byte* workspace) {
                        kernels::block_sparse_attention_backward(args, begin, end, workspace);
                      });
      });
  const auto whole = [](const at::Tensor& x) { return x.size(0) == 1 ? x.squeeze(0) : x.sum(0); };
  grads.key = whole(grads.key), grads.value = whole(grads.value);
  return grads;
}

/// (batch, heads, columns, rows) -> as `bias`, with the strides that Meta says: contiguous() leaves
/// a single row the strides of its transpose, view does not.
at::Tensor bias_gradient(const at::Tensor& parts, const at::Tensor& bias) {
  const at::Tensor sum = parts.sum(0).transpose(1, 2).contiguous();
  return sum.view(bias.sizes()).to(bias.scalar_type());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> backward_cpu(
    const at::Tensor& grad, const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const OptionalTensor& bias, const at::Tensor& output, const at::Tensor& lse,
    const c10::List<OptionalTensor>& tensors, at::IntArrayRef integers,
    at::ArrayRef<double> numbers) {
  const Problem problem =
      block_sparse_attention_problem(query, key, value, bias, tensors, integers, numbers);
  const auto plans = attention_plans(problem);
  // What is summed up from parts is rounded once.
  const bool whole = plans.size() == 1 && plans[0].shape.key_parts == 1;
  const auto dtype = whole ? query.scalar_type() : problem.compute;
  const auto as = [&](const at::Tensor& x) { return x.to(dtype); };
  const Operands in = operands_of(problem, as(query), as(key), as(value));
  const Upstream upstream = {as(grad).contiguous(), as(output).contiguous(), lse.contiguous()};
  Gradients sum = backward_part(plans[0], in, upstream);
  for (std::size_t part = 1; part < plans.size(); ++part) {
    const Gradients more = backward_part(plans[part], in, upstream);
    sum.query += more.query, sum.key += more.key, sum.value += more.value;
  }
  const auto narrow = [&](const at::Tensor& x) { return x.to(query.scalar_type()); };
  return {narrow(sum.query), narrow(sum.key), narrow(sum.value),
          bias ? bias_gradient(sum.bias, *bias) : at::empty({0}, query.options())};
}

TORCH_LIBRARY_IMPL(weir, CPU, m) {
  m.impl("_block_sparse_attention", forward_cpu);
  m.impl("_block_sparse_attention_backward", backward_cpu);
}

}  // namespace
}  // namespace weir::ops
