// SPDX-License-Identifier: Apache-2.0
// block_sparse_attention on the CPU: tensors to pointers, segments and lists of active blocks,
// tiles over threads. The work is in kernels/cpu/block_sparse_attention.cc.
#include <ATen/Dispatch.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <type_traits>

#include "kernels/block_sparse_attention.h"
#include "kernels/scratch.h"
#include "ops/block_sparse_attention.h"
#include "ops/kernel_value.h"
#include "ops/parallel.h"

namespace weir::ops {
namespace {

template <class Scalar>
using Compute = std::conditional_t<std::is_same_v<Scalar, double>, double, float>;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t floor_div(std::int64_t a, std::int64_t b) {
  return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

/// The active blocks of a layout in compressed rows.
struct ActiveBlocks {
  std::vector<std::int64_t> first = {0}, columns;
};

ActiveBlocks active_blocks(const at::Tensor& layout) {
  ActiveBlocks active;
  const at::Tensor lines = layout.contiguous();
  const std::int64_t columns = lines.size(-1);
  const std::int64_t count = lines.size(0) * (lines.dim() == 3 ? lines.size(1) : 1);
  const bool* at = lines.const_data_ptr<bool>();
  for (std::int64_t line = 0; line < count; ++line, at += columns) {
    for (std::int64_t column = 0; column < columns; ++column) {
      if (at[column]) active.columns.push_back(column);
    }
    active.first.push_back(static_cast<std::int64_t>(active.columns.size()));
  }
  return active;
}

/// What the kernel reads, and what keeps it alive: memory that stays where it is when a plan moves.
struct Plan {
  kernels::BlockSparseAttentionShape shape;
  std::vector<kernels::AttentionSegment> segments;
  ActiveBlocks active;
  at::Tensor key_mask, mask;

  std::int64_t panel = 0;
  std::int64_t pairs() const { return shape.batch * shape.kv_heads; }
};

/// One segment, or with a stride and no layout one per residue class: those never see each other.
void cut_segments(const BlockSparseAttentionProblem& problem, bool has_layout, Plan& plan) {
  auto& shape = plan.shape;
  const std::int64_t step = has_layout ? 1 : problem.stride;
  const std::int64_t shift = shape.keys - shape.queries;  // query i stands at position i + shift
  for (std::int64_t residue = 0; residue < step; ++residue) {
    const std::int64_t offset = -floor_div(residue - shift, step);  // of its first query
    const std::int64_t query_first = residue - shift + offset * step;
    kernels::AttentionSegment segment = {
        .step = step,
        .query_first = query_first,
        .queries = std::max<std::int64_t>(0, ceil_div(shape.queries - query_first, step)),
        .key_first = residue,
        .keys = std::max<std::int64_t>(0, ceil_div(shape.keys - residue, step)),
        .offset = offset,
        .window = problem.window == 0 ? 0 : (problem.window - 1) / step + 1,
        .prefix = std::max<std::int64_t>(0, ceil_div(problem.prefix - residue, step)),
        .key_panel = shape.panels,
        .query_tile = shape.tiles};
    shape.panels += ceil_div(segment.keys, plan.panel);
    shape.tiles += ceil_div(segment.queries, shape.tile_rows);
    plan.segments.push_back(segment);
  }
}

void point_to_masks(const std::optional<at::Tensor>& key_mask,
                    const std::optional<at::Tensor>& mask, Plan& plan) {
  auto& shape = plan.shape;
  const auto bytes = [](const at::Tensor& tensor) {
    return reinterpret_cast<const std::uint8_t*>(tensor.const_data_ptr<bool>());
  };
  if (key_mask) {
    plan.key_mask = key_mask->contiguous();
    shape.key_mask = bytes(plan.key_mask);
  }
  if (!mask) return;
  plan.mask = mask->expand({shape.batch, shape.heads, shape.queries, shape.keys});
  shape.mask = bytes(plan.mask);
  shape.mask_batch = plan.mask.stride(0), shape.mask_head = plan.mask.stride(1);
  shape.mask_query = plan.mask.stride(2), shape.mask_key = plan.mask.stride(3);
}

Plan make_plan(const BlockSparseAttentionProblem& problem, const std::optional<at::Tensor>& layout,
               const std::optional<at::Tensor>& key_mask, const std::optional<at::Tensor>& mask) {
  Plan plan;
  auto& shape = plan.shape;
  const auto size = [](const c10::SymInt& value) { return value.guard_int(__FILE__, __LINE__); };
  shape.batch = size(problem.batch), shape.heads = size(problem.heads);
  shape.kv_heads = size(problem.kv_heads);
  shape.queries = size(problem.queries), shape.keys = size(problem.keys);
  shape.dim = size(problem.dim), shape.value_dim = size(problem.value_dim);
  shape.causal = problem.causal, shape.scale = problem.scale;
  shape.block_size = problem.block_size;
  shape.stride = layout ? problem.stride : 1;
  shape.tile_rows =
      kernels::block_sparse_attention_tile_rows(layout ? problem.block_size : 0, problem.window);
  plan.panel = problem.compute == at::kDouble ? kernels::kAttentionPanel<double>
                                              : kernels::kAttentionPanel<float>;
  cut_segments(problem, layout.has_value(), plan);
  if (layout) {
    plan.active = active_blocks(*layout);
    shape.layout_heads = layout->dim() == 2 ? 1 : shape.heads;
    shape.block_rows = layout->size(-2);
  }
  shape.segments = plan.segments.data();
  shape.segment_count = static_cast<std::int64_t>(plan.segments.size());
  shape.layout = {plan.active.first.data(), plan.active.columns.data()};
  point_to_masks(key_mask, mask, plan);
  return plan;
}

at::Tensor with_contiguous_rows(const at::Tensor& tensor) {
  return tensor.size(-1) <= 1 || tensor.stride(-1) == 1 ? tensor : tensor.contiguous();
}

kernels::AttentionStrides strides_of(const at::Tensor& tensor) {
  return {tensor.stride(0), tensor.stride(1), tensor.stride(2)};
}

template <class Scalar>
kernels::BlockSparseAttentionOperands<Value<Scalar>> operands(const Plan& plan,
                                                              const at::Tensor& query,
                                                              const at::Tensor& key,
                                                              const at::Tensor& value) {
  const auto pointer = [](const at::Tensor& tensor) {
    return reinterpret_cast<const Value<Scalar>*>(tensor.const_data_ptr<Scalar>());
  };
  return {.shape = plan.shape,
          .query = pointer(query),
          .key = pointer(key),
          .value = pointer(value),
          .query_strides = strides_of(query),
          .key_strides = strides_of(key),
          .value_strides = strides_of(value)};
}

std::int64_t padded(std::int64_t count) {
  return static_cast<std::int64_t>(kernels::Padded(static_cast<std::size_t>(count)));
}

/// The packed keys and the memory they lie in.
template <class T>
struct Packed {
  kernels::PackedKeys<T> keys;
  std::vector<at::Tensor> memory;
};

/// How many (batch, kv_head) pairs are packed at a time: about 8 MiB of them, so that the memory is
/// used again while it is warm. At least `least`; no result depends on it.
std::int64_t pairs_at_a_time(const Plan& plan, std::int64_t least) {
  constexpr std::int64_t kBytes = 8 << 20;
  const std::int64_t width = padded(plan.shape.dim) + padded(plan.shape.value_dim);
  const std::int64_t bytes = std::max<std::int64_t>(1, plan.shape.panels * 64 * width);
  return std::clamp(kBytes / bytes, std::min(least, plan.pairs()),
                    std::max<std::int64_t>(1, plan.pairs()));
}

template <class T>
Packed<T> packed_memory(const Plan& plan, std::int64_t pairs, bool backward) {
  Packed<T> packed;
  const std::int64_t panels = pairs * plan.shape.panels, rows = panels * plan.panel;
  const auto take = [&](std::int64_t count, at::ScalarType dtype) {
    return packed.memory.emplace_back(at::empty({count + 64}, at::TensorOptions(dtype)));
  };
  constexpr auto kType = std::is_same_v<T, double> ? at::kDouble : at::kFloat;
  const auto numbers = [&](std::int64_t count) {
    return take(count, kType).template mutable_data_ptr<T>();
  };
  packed.keys.keys = numbers(rows * kernels::attention_depth(plan.shape.dim));
  if (backward) {
    packed.keys.key_rows = numbers(rows * padded(plan.shape.dim));
    packed.keys.values = numbers(rows * kernels::attention_depth(plan.shape.value_dim));
  } else {
    packed.keys.value_rows = numbers(rows * padded(plan.shape.value_dim));
  }
  packed.keys.keep = take(rows, at::kByte).template mutable_data_ptr<std::uint8_t>();
  packed.keys.finite = take(panels, at::kByte).template mutable_data_ptr<std::uint8_t>();
  return packed;
}

/// body(begin, end, workspace) over `count` items of about `cost` steps.
template <class Body>
void over(const Plan& plan, std::int64_t count, std::int64_t cost, const Body& body) {
  const std::size_t bytes = kernels::block_sparse_attention_workspace_bytes(plan.shape);
  parallel_rows(count, cost, bytes, body);
}

/// Packs `size` pairs at a time and calls body(packed, first, last) for each part of them.
template <class T, class Operands, class Body>
void for_parts(const Plan& plan, const Operands& in, Packed<T>& packed, std::int64_t size,
               const Body& body) {
  const std::int64_t cost = plan.panel * (plan.shape.dim + plan.shape.value_dim);
  for (std::int64_t first = 0; first < plan.pairs(); first += size) {
    const std::int64_t last = std::min(first + size, plan.pairs());
    packed.keys.first = first;
    over(plan, (last - first) * plan.shape.panels, cost,
         [&](std::int64_t begin, std::int64_t end, std::byte* workspace) {
           const std::int64_t shift = first * plan.shape.panels;
           kernels::block_sparse_attention_pack(in, begin + shift, end + shift, packed.keys,
                                                workspace);
         });
    body(first, last);
  }
}

/// Steps of a query tile: a guess that is right for dense rows and generous for others.
std::int64_t tile_cost(const Plan& plan) {
  return plan.shape.tile_rows * 64 * (plan.shape.dim + plan.shape.value_dim) / 8;
}

std::tuple<at::Tensor, at::Tensor> forward_cpu(
    const at::Tensor& query_, const at::Tensor& key_, const at::Tensor& value_,
    const std::optional<at::Tensor>& layout, const std::optional<at::Tensor>& key_mask,
    const std::optional<at::Tensor>& mask, std::int64_t block_size, bool causal,
    std::optional<std::int64_t> window, std::int64_t stride, std::int64_t prefix,
    std::optional<double> scale) {
  const auto problem =
      block_sparse_attention_problem(query_, key_, value_, layout, key_mask, mask, block_size,
                                     causal, window, stride, prefix, scale);
  const Plan plan = make_plan(problem, layout, key_mask, mask);
  const at::Tensor query = with_contiguous_rows(query_), key = with_contiguous_rows(key_),
                   value = with_contiguous_rows(value_);
  const auto& shape = plan.shape;
  const at::Tensor output =
      at::empty({shape.batch, shape.heads, shape.queries, shape.value_dim}, query.options());
  const at::Tensor lse =
      at::empty({shape.batch, shape.heads, shape.queries}, query.options().dtype(problem.compute));
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, query.scalar_type(), "weir::block_sparse_attention", [&] {
        using T = Compute<scalar_t>;
        const auto in = operands<scalar_t>(plan, query, key, value);
        const std::int64_t size = pairs_at_a_time(plan, 1);
        Packed<T> packed = packed_memory<T>(plan, size, false);
        for_parts(plan, in, packed, size, [&](std::int64_t first, std::int64_t last) {
          const kernels::BlockSparseAttentionForward<Value<scalar_t>, T> args = {
              .in = in,
              .packed = packed.keys,
              .output = reinterpret_cast<Value<scalar_t>*>(output.mutable_data_ptr<scalar_t>()),
              .lse = lse.mutable_data_ptr<T>()};
          const std::int64_t tiles = shape.heads / shape.kv_heads * shape.tiles;  // of a pair
          over(plan, (last - first) * tiles, tile_cost(plan),
               [&](std::int64_t begin, std::int64_t end, std::byte* workspace) {
                 kernels::block_sparse_attention_forward(args, first * tiles + begin,
                                                         first * tiles + end, workspace);
               });
        });
      });
  return {output, lse};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_cpu(
    const at::Tensor& grad, const at::Tensor& query_, const at::Tensor& key_,
    const at::Tensor& value_, const at::Tensor& output, const at::Tensor& lse,
    const std::optional<at::Tensor>& layout, const std::optional<at::Tensor>& key_mask,
    const std::optional<at::Tensor>& mask, std::int64_t block_size, bool causal,
    std::optional<std::int64_t> window, std::int64_t stride, std::int64_t prefix,
    std::optional<double> scale) {
  const auto problem =
      block_sparse_attention_problem(query_, key_, value_, layout, key_mask, mask, block_size,
                                     causal, window, stride, prefix, scale);
  const Plan plan = make_plan(problem, layout, key_mask, mask);
  const at::Tensor query = with_contiguous_rows(query_), key = with_contiguous_rows(key_),
                   value = with_contiguous_rows(value_);
  const at::Tensor upstream = grad.contiguous(), saved = output.contiguous(),
                   sums = lse.contiguous();
  const auto& shape = plan.shape;
  const at::Tensor grad_query = at::empty(query.sizes(), query.options()),
                   grad_key = at::empty(key.sizes(), key.options()),
                   grad_value = at::empty(value.sizes(), value.options());
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, query.scalar_type(), "weir::block_sparse_attention", [&] {
        using T = Compute<scalar_t>;
        const auto pointer = [](const at::Tensor& tensor) {
          return reinterpret_cast<Value<scalar_t>*>(tensor.data_ptr<scalar_t>());
        };
        const auto in = operands<scalar_t>(plan, query, key, value);
        // One thread sums the gradients of a pair's segment: enough pairs for all of them.
        const std::int64_t threads = ceil_div(thread_count(), shape.segment_count);
        const std::int64_t size = ceil_div(pairs_at_a_time(plan, threads), threads) * threads;
        Packed<T> packed = packed_memory<T>(plan, size, true);
        const auto sums_of = [&](std::int64_t columns) {
          return at::empty({size * shape.panels * plan.panel, padded(columns)},
                           query.options().dtype(problem.compute));
        };
        at::Tensor key_sums = sums_of(shape.dim), value_sums = sums_of(shape.value_dim);
        for_parts(plan, in, packed, size, [&](std::int64_t first, std::int64_t last) {
          key_sums.zero_(), value_sums.zero_();
          const kernels::BlockSparseAttentionBackward<Value<scalar_t>, T> args = {
              .in = in,
              .packed = packed.keys,
              .grad = pointer(upstream),
              .output = pointer(saved),
              .lse = sums.const_data_ptr<T>(),
              .key_sums = key_sums.mutable_data_ptr<T>(),
              .value_sums = value_sums.mutable_data_ptr<T>(),
              .grad_query = pointer(grad_query),
              .grad_key = pointer(grad_key),
              .grad_value = pointer(grad_value)};
          const std::int64_t segments = shape.segment_count;
          over(plan, (last - first) * segments, ceil_div(shape.tiles, segments) * tile_cost(plan),
               [&](std::int64_t begin, std::int64_t end, std::byte* workspace) {
                 kernels::block_sparse_attention_backward(args, first * segments + begin,
                                                          first * segments + end, workspace);
               });
        });
      });
  return {grad_query, grad_key, grad_value};
}

TORCH_LIBRARY_IMPL(weir, CPU, m) {
  m.impl("_block_sparse_attention", forward_cpu);
  m.impl("_block_sparse_attention_backward", backward_cpu);
}

}  // namespace
}  // namespace weir::ops
