// SPDX-License-Identifier: Apache-2.0
// The checked problem of block_sparse_attention, and the lists in which the rule and the tensors
// without gradient travel through the dispatcher.
#include <algorithm>
#include <cmath>

#include "ops/block_sparse_attention.h"
#include "ops/checks.h"

namespace weir::ops {
namespace {

using Problem = BlockSparseAttentionProblem;
using Sizes = std::vector<c10::SymInt>;

constexpr char kOp[] = "block_sparse_attention";
constexpr char kExpected[] = "weir::block_sparse_attention: expected ";

void check_device(const char* op, const char* name, const at::Tensor& tensor,
                  const at::Tensor& query) {
  TORCH_CHECK_VALUE(tensor.device() == query.device(), "weir::", op, ": expected `", name,
                    "` on the device of `query`, ", query.device(), ", but got ", tensor.device(),
                    ".");
}

void check_layout(const Problem& problem, const at::Tensor& layout, const at::Tensor& query) {
  check_attention_mask(kOp, "layout", layout, query);
  const auto shape = layout.sym_sizes();
  if (problem.packed()) {  // blocks of the longest sequence: known with the numbers
    TORCH_CHECK_VALUE(
        shape.size() == 2 || (shape.size() == 3 && shape[0] == problem.heads), kExpected,
        "`layout` to have shape (blocks, blocks) or (heads, blocks, blocks), but got ", shape, ".");
    return;
  }
  const auto blocks = [&](const c10::SymInt& positions) {
    return (positions + (problem.rule.block_size - 1)) / problem.rule.block_size;
  };
  const Sizes shared = {blocks(problem.queries), blocks(problem.keys)};
  const Sizes per_head = {problem.heads, shared[0], shared[1]};
  TORCH_CHECK_VALUE(shape == c10::SymIntArrayRef(shared) || shape == c10::SymIntArrayRef(per_head),
                    kExpected, "`layout` to have shape ", c10::SymIntArrayRef(shared), " or ",
                    c10::SymIntArrayRef(per_head), " for blocks of ", problem.rule.block_size,
                    ", but got ", shape, ".");
}

void check_integers(const char* name, const OptionalTensor& tensor, const at::Tensor& query) {
  if (!tensor) return;
  TORCH_CHECK_TYPE(tensor->scalar_type() == at::kLong || tensor->scalar_type() == at::kInt,
                   kExpected, "`", name, "` to be int64 or int32, but got ", tensor->scalar_type(),
                   ".");
  check_device(kOp, name, *tensor, query);
}

void check_packing(const Problem& problem, const at::Tensor& query) {
  const auto& [cu_seqlens, cu_seqlens_k, document_ids] = std::tie(
      problem.tensors.cu_seqlens, problem.tensors.cu_seqlens_k, problem.tensors.document_ids);
  check_integers("cu_seqlens", cu_seqlens, query);
  check_integers("cu_seqlens_k", cu_seqlens_k, query);
  check_integers("document_ids", document_ids, query);
  TORCH_CHECK_VALUE(cu_seqlens || !cu_seqlens_k, kExpected,
                    "`cu_seqlens` with `cu_seqlens_k`, but got none.");
  TORCH_CHECK_VALUE(!cu_seqlens || !document_ids, kExpected,
                    "either `cu_seqlens` or `document_ids`, but got both.");
  if (cu_seqlens) {
    TORCH_CHECK_VALUE(cu_seqlens->dim() == 1 && cu_seqlens->sym_size(0) >= 1, kExpected,
                      "`cu_seqlens` to have shape (sequences + 1), but got ",
                      cu_seqlens->sym_sizes(), ".");
    TORCH_CHECK_VALUE(cu_seqlens_k || problem.queries == problem.keys, kExpected,
                      "`cu_seqlens_k` with ", problem.keys, " keys and ", problem.queries,
                      " queries, but got none.");
  }
  if (cu_seqlens_k) {
    TORCH_CHECK_VALUE(cu_seqlens_k->sym_sizes() == cu_seqlens->sym_sizes(), kExpected,
                      "`cu_seqlens_k` to have shape ", cu_seqlens->sym_sizes(),
                      " like `cu_seqlens`, but got ", cu_seqlens_k->sym_sizes(), ".");
  }
  if (document_ids) {
    const Sizes expected = {problem.batch, problem.queries};
    TORCH_CHECK_VALUE(problem.queries == problem.keys, kExpected,
                      "as many keys as queries with `document_ids`, ", problem.queries,
                      ", but got ", problem.keys, ".");
    TORCH_CHECK_VALUE(document_ids->sym_sizes() == c10::SymIntArrayRef(expected), kExpected,
                      "`document_ids` to have shape ", c10::SymIntArrayRef(expected), ", but got ",
                      document_ids->sym_sizes(), ".");
  }
}

void check_tensors(const Problem& problem, const at::Tensor& query, const at::Tensor& key) {
  const auto& tensors = problem.tensors;
  check_packing(problem, query);
  if (tensors.layout) check_layout(problem, *tensors.layout, query);
  check_key_mask(kOp, tensors.key_mask, query, key);
  check_pair_mask(kOp, tensors.mask, query, key);
}

/// Distances no larger than tells anything apart, so that no backend overflows.
void limit_rule(Problem& problem) {
  const auto queries = problem.queries.maybe_as_int(), keys = problem.keys.maybe_as_int();
  if (!queries || !keys) return;  // symbolic: nothing is computed
  auto& rule = problem.rule;
  if (rule.offset == kUnlimited) rule.offset = *keys - *queries;
  const std::int64_t limit = std::max<std::int64_t>(1, *queries + *keys + std::abs(rule.offset));
  for (std::int64_t* x : {&rule.stride, &rule.prefix, &rule.local, &rule.bucket}) {
    *x = std::min(*x, limit);
  }
  for (std::int64_t* x : {&rule.behind, &rule.ahead}) *x = std::clamp(*x, -limit, 2 * limit);
}

}  // namespace

c10::List<OptionalTensor> AttentionTensors::list() const {
  return c10::List<OptionalTensor>({layout, key_mask, mask, cu_seqlens, cu_seqlens_k, document_ids,
                                    query_rotation, key_rotation, dropout_seed});
}

AttentionTensors AttentionTensors::of(const c10::List<OptionalTensor>& list) {
  AttentionTensors tensors;
  OptionalTensor* fields[] = {
      &tensors.layout,         &tensors.key_mask,     &tensors.mask,
      &tensors.cu_seqlens,     &tensors.cu_seqlens_k, &tensors.document_ids,
      &tensors.query_rotation, &tensors.key_rotation, &tensors.dropout_seed};
  TORCH_CHECK_VALUE(list.size() == std::size(fields), kExpected, std::size(fields),
                    " tensors of a rule, but got ", list.size(), ".");
  for (std::size_t i = 0; i < std::size(fields); ++i) *fields[i] = list.get(i);
  return tensors;
}

std::vector<std::int64_t> AttentionRule::integers() const {
  return {block_size, causal, behind, ahead,     bucket,     stride,
          prefix,     local,  offset, self_last, bias_behind};
}

std::vector<double> AttentionRule::numbers() const { return {scale, dropout}; }

AttentionRule AttentionRule::of(at::IntArrayRef i, at::ArrayRef<double> x) {
  TORCH_CHECK_VALUE(i.size() == 11 && x.size() == 2, kExpected, "11 integers and 2 numbers of a ",
                    "rule, but got ", i.size(), " and ", x.size(), ".");
  return {.block_size = i[0],
          .causal = i[1] != 0,
          .behind = i[2],
          .ahead = i[3],
          .bucket = i[4],
          .stride = i[5],
          .prefix = i[6],
          .local = i[7],
          .offset = i[8],
          .self_last = i[9] != 0,
          .bias_behind = i[10],
          .scale = x[0],
          .dropout = x[1]};
}

void check_attention_mask(const char* op, const char* name, const at::Tensor& mask,
                          const at::Tensor& query) {
  TORCH_CHECK_TYPE(mask.scalar_type() == at::kBool, "weir::", op, ": expected `", name,
                   "` to be bool (true = keep), but got ", mask.scalar_type(), ".");
  check_device(op, name, mask, query);
}

void check_key_mask(const char* op, const OptionalTensor& key_mask, const at::Tensor& query,
                    const at::Tensor& key) {
  if (!key_mask) return;
  check_attention_mask(op, "key_mask", *key_mask, query);
  const Sizes expected = {key.sym_size(0), key.sym_size(2)};
  TORCH_CHECK_VALUE(key_mask->sym_sizes() == c10::SymIntArrayRef(expected), "weir::", op,
                    ": expected `key_mask` to have shape ", c10::SymIntArrayRef(expected),
                    ", but got ", key_mask->sym_sizes(), ".");
}

void check_pair_mask(const char* op, const OptionalTensor& mask, const at::Tensor& query,
                     const at::Tensor& key) {
  if (!mask) return;
  check_attention_mask(op, "mask", *mask, query);
  const Sizes target = {query.sym_size(0), query.sym_size(1), query.sym_size(2), key.sym_size(2)};
  TORCH_CHECK_VALUE(broadcasts_to(mask->sym_sizes(), target), "weir::", op,
                    ": expected `mask` to broadcast to ", c10::SymIntArrayRef(target), ", but got ",
                    mask->sym_sizes(), ".");
}

void check_attention_operand(const char* op, const char* name, const char* shape,
                             const at::Tensor& tensor, const at::Tensor& query) {
  TORCH_CHECK_VALUE(tensor.dim() == 4, "weir::", op, ": expected `", name, "` to have shape ",
                    shape, ", but got ", tensor.sym_sizes(), ".");
  TORCH_CHECK_TYPE(tensor.scalar_type() == query.scalar_type(), "weir::", op, ": expected `", name,
                   "` to have the dtype of `query`, ", query.scalar_type(), ", but got ",
                   tensor.scalar_type(), ".");
  check_device(op, name, tensor, query);
}

void check_attention_operands(const char* op, const at::Tensor& query, const at::Tensor& key,
                              const at::Tensor& value) {
  check_attention_operand(op, "query", "(batch, heads, n, dim)", query, query);
  TORCH_CHECK_TYPE(query.is_floating_point(), "weir::", op,
                   ": expected `query` to be floating point, but got ", query.scalar_type(), ".");
  check_attention_operand(op, "key", "(batch, kv_heads, m, dim)", key, query);
  check_attention_operand(op, "value", "(batch, kv_heads, m, value_dim)", value, query);
  const auto q = query.sym_sizes(), k = key.sym_sizes(), v = value.sym_sizes();
  TORCH_CHECK_VALUE(q[3] >= 1, "weir::", op,
                    ": expected the last dimension of `query` to be at least 1, but got ", q, ".");
  TORCH_CHECK_VALUE(k[0] == q[0] && k[3] == q[3], "weir::", op, ": expected `key` to have batch ",
                    q[0], " and dim ", q[3], " like `query`, but got ", k, ".");
  TORCH_CHECK_VALUE(k[1] == q[1] || (k[1] >= 1 && q[1] % k[1] == 0), "weir::", op,
                    ": expected the heads of `key` to divide those of `query`, ", q[1],
                    ", but got ", k[1], ".");
  TORCH_CHECK_VALUE(v.slice(0, 3) == k.slice(0, 3), "weir::", op, ": expected `value` to have ",
                    "shape ", k.slice(0, 3), " like `key` in its first 3 dimensions, but got ", v,
                    ".");
}

double attention_scale(const at::Tensor& query, std::optional<double> scale) {
  const std::int64_t dim = query.dim() == 0 ? 1 : query.sym_size(-1).guard_int(__FILE__, __LINE__);
  return scale.value_or(1 / std::sqrt(static_cast<double>(std::max<std::int64_t>(1, dim))));
}

BlockSparseAttentionProblem block_sparse_attention_problem(
    const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
    const OptionalTensor& bias, const c10::List<OptionalTensor>& tensors, at::IntArrayRef integers,
    at::ArrayRef<double> numbers) {
  check_attention_operands(kOp, query, key, value);
  Problem problem = {.batch = query.sym_size(0),
                     .heads = query.sym_size(1),
                     .kv_heads = key.sym_size(1),
                     .queries = query.sym_size(2),
                     .keys = key.sym_size(2),
                     .dim = query.sym_size(3),
                     .value_dim = value.sym_size(3),
                     .rule = AttentionRule::of(integers, numbers),
                     .tensors = AttentionTensors::of(tensors),
                     .bias = bias,
                     .compute = query.scalar_type() == at::kDouble ? at::kDouble : at::kFloat};
  check_tensors(problem, query, key);
  limit_rule(problem);
  return problem;
}

}  // namespace weir::ops
