// SPDX-License-Identifier: Apache-2.0
#include "ops/block_sparse_attention_plan.h"

#include <algorithm>
#include <tuple>

namespace weir::ops {
namespace {

using Problem = BlockSparseAttentionProblem;

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
std::int64_t floor_div(std::int64_t a, std::int64_t b) {
  return a / b - (a % b != 0 && (a < 0) != (b < 0));
}

/// A stretch of queries and the keys they may see.
struct Sequence {
  std::int64_t batch = 0, query_first = 0, queries = 0, key_first = 0, keys = 0;
};

std::vector<std::int64_t> numbers_of(const char* name, const at::Tensor& cu_seqlens,
                                     std::int64_t total) {
  const at::Tensor line = cu_seqlens.to(at::kLong).contiguous();
  const std::int64_t* at = line.const_data_ptr<std::int64_t>();
  std::vector<std::int64_t> numbers(at, at + line.numel());
  TORCH_CHECK_VALUE(numbers.front() == 0 && numbers.back() == total &&
                        std::is_sorted(numbers.begin(), numbers.end()),
                    "weir::block_sparse_attention: expected `", name, "` to ascend from 0 to ",
                    total, ", but got ", at::IntArrayRef(numbers), ".");
  return numbers;
}

void add_documents(const at::Tensor& ids, std::vector<Sequence>& sequences) {
  const at::Tensor rows = ids.to(at::kLong).contiguous();
  const std::int64_t n = rows.size(1);
  for (std::int64_t batch = 0; batch < rows.size(0); ++batch) {
    const std::int64_t* id = rows.const_data_ptr<std::int64_t>() + batch * n;
    for (std::int64_t first = 0, end = 0; first < n; first = end) {
      while (end < n && id[end] == id[first]) ++end;
      sequences.push_back({batch, first, end - first, first, end - first});
    }
  }
}

std::vector<Sequence> sequences_of(const Problem& problem,
                                   const kernels::BlockSparseAttentionShape& shape) {
  const auto& tensors = problem.tensors;
  std::vector<Sequence> sequences;
  if (tensors.document_ids) {
    add_documents(*tensors.document_ids, sequences);
  } else if (tensors.cu_seqlens) {
    const auto queries = numbers_of("cu_seqlens", *tensors.cu_seqlens, shape.queries);
    const auto keys = tensors.cu_seqlens_k
                          ? numbers_of("cu_seqlens_k", *tensors.cu_seqlens_k, shape.keys)
                          : queries;
    for (std::size_t s = 0; s + 1 < queries.size(); ++s) {
      sequences.push_back(
          {0, queries[s], queries[s + 1] - queries[s], keys[s], keys[s + 1] - keys[s]});
    }
  } else {
    sequences.push_back({0, 0, shape.queries, 0, shape.keys});
  }
  return sequences;
}

/// The residue classes of a stride never see each other: one segment each.
void add_segments(const AttentionRule& rule, const Sequence& sequence, std::int64_t offset,
                  std::int64_t step, std::int64_t hole, AttentionPlan& plan) {
  auto& shape = plan.shape;
  for (std::int64_t residue = 0; residue < step; ++residue) {
    const std::int64_t start = -floor_div(residue - offset, step);  // position of its first query
    const std::int64_t query = residue - offset + start * step;
    const kernels::AttentionSegment segment = {
        .batch = sequence.batch,
        .step = step,
        .query_first = sequence.query_first + query,
        .queries = std::max<std::int64_t>(0, ceil_div(sequence.queries - query, step)),
        .key_first = sequence.key_first + residue,
        .keys = std::max<std::int64_t>(0, ceil_div(sequence.keys - residue, step)),
        .offset = start,
        .behind = floor_div(rule.behind, step),
        .ahead = floor_div(rule.ahead, step),
        .prefix = std::max<std::int64_t>(0, ceil_div(rule.prefix - residue, step)),
        .hole = ceil_div(hole, step),
        .query_tile = shape.tiles};
    if (segment.queries == 0 && segment.keys == 0) continue;
    shape.tiles += ceil_div(segment.queries, shape.tile_rows);
    shape.longest_segment = std::max(shape.longest_segment, segment.keys);
    plan.segments.push_back(segment);
  }
}

void add_layout(const at::Tensor& layout, const std::vector<Sequence>& sequences,
                AttentionPlan& plan) {
  auto& shape = plan.shape;
  for (const Sequence& sequence : sequences) {
    TORCH_CHECK_VALUE(ceil_div(sequence.queries, shape.block_size) <= layout.size(-2) &&
                          ceil_div(sequence.keys, shape.block_size) <= layout.size(-1),
                      "weir::block_sparse_attention: expected `layout` to have the blocks of the ",
                      "longest sequence, but got ", layout.sizes(), ".");
  }
  const at::Tensor lines = layout.contiguous();
  const std::int64_t columns = lines.size(-1);
  const std::int64_t count = lines.size(0) * (lines.dim() == 3 ? lines.size(1) : 1);
  const bool* at = lines.const_data_ptr<bool>();
  plan.first_blocks.push_back(0);
  for (std::int64_t line = 0; line < count; ++line, at += columns) {
    for (std::int64_t column = 0; column < columns; ++column) {
      if (at[column]) plan.blocks.push_back(column);
    }
    plan.first_blocks.push_back(static_cast<std::int64_t>(plan.blocks.size()));
  }
  shape.layout_heads = layout.dim() == 2 ? 1 : shape.heads;
  shape.block_rows = layout.size(-2);
  shape.layout = {plan.first_blocks.data(), plan.blocks.data()};
}

void point_to_masks(const AttentionTensors& tensors, std::int64_t batch, AttentionPlan& plan) {
  auto& shape = plan.shape;
  const auto bytes = [](const at::Tensor& tensor) {
    return reinterpret_cast<const std::uint8_t*>(tensor.const_data_ptr<bool>());
  };
  if (tensors.key_mask) {
    plan.key_mask = tensors.key_mask->contiguous();
    shape.key_mask = bytes(plan.key_mask);
  }
  if (!tensors.mask) return;
  plan.mask = tensors.mask->expand({batch, shape.heads, shape.queries, shape.keys});
  shape.mask = bytes(plan.mask);
  shape.mask_batch = plan.mask.stride(0), shape.mask_head = plan.mask.stride(1);
  shape.mask_query = plan.mask.stride(2), shape.mask_key = plan.mask.stride(3);
}

AttentionPlan plan_of(const Problem& problem, const AttentionRule& rule, bool with_layout,
                      std::int64_t hole) {
  AttentionPlan plan;
  auto& shape = plan.shape;
  const auto& tensors = problem.tensors;
  const auto size = [](const c10::SymInt& value) { return value.guard_int(__FILE__, __LINE__); };
  const std::int64_t batch = size(problem.batch);
  shape.batch = batch, shape.heads = size(problem.heads), shape.kv_heads = size(problem.kv_heads);
  shape.queries = size(problem.queries), shape.keys = size(problem.keys);
  shape.dim = size(problem.dim), shape.value_dim = size(problem.value_dim);
  shape.causal = rule.causal, shape.self_last = rule.self_last;
  shape.bucket = rule.bucket, shape.scale = rule.scale;
  shape.block_size = rule.block_size;
  shape.tile_rows = kernels::block_sparse_attention_tile_rows(with_layout ? rule.block_size : 0);
  if (tensors.dropout_seed) {
    shape.dropout = rule.dropout;
    shape.seed = static_cast<std::uint64_t>(tensors.dropout_seed->item<std::int64_t>());
  }
  if (problem.bias) {
    shape.bias_rows = problem.bias->size(1), shape.bias_columns = problem.bias->size(2);
    shape.bias_behind = rule.bias_behind;
  }
  // Blocks of a layout are counted in positions: then the stride is looked at pair by pair.
  const std::int64_t step = with_layout || rule.bucket > 1 ? 1 : rule.stride;
  shape.stride = step == 1 ? rule.stride : 1;
  const auto sequences = sequences_of(problem, shape);
  for (const Sequence& sequence : sequences) {
    const std::int64_t offset = problem.packed() ? sequence.keys - sequence.queries : rule.offset;
    add_segments(rule, sequence, offset, step, hole, plan);
  }
  plan.batches = tensors.document_ids ? std::min<std::int64_t>(batch, 1) : batch;
  shape.segments = plan.segments.data();
  shape.segment_count = static_cast<std::int64_t>(plan.segments.size());
  // By the shape alone, so that results do not depend on the threads.
  constexpr std::int64_t kItems = 8;
  const std::int64_t items = plan.batches * shape.kv_heads * shape.segment_count;
  if (items > 0 && items < kItems) shape.key_parts = ceil_div(kItems, items);
  if (with_layout) add_layout(*tensors.layout, sequences, plan);
  point_to_masks(tensors, batch, plan);
  return plan;
}

}  // namespace

std::vector<AttentionPlan> attention_plans(const Problem& problem) {
  const AttentionRule& rule = problem.rule;
  const bool with_layout = problem.tensors.layout.has_value();
  std::vector<AttentionPlan> plans;
  if (rule.local > 0) {
    AttentionRule window = rule;
    window.behind = window.ahead = rule.local - 1;
    window.bucket = window.stride = 1;
    window.prefix = 0;
    plans.push_back(plan_of(problem, window, false, 0));
  }
  plans.push_back(plan_of(problem, rule, with_layout, rule.local));
  return plans;
}

}  // namespace weir::ops
