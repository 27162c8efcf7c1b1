// SPDX-License-Identifier: Apache-2.0
// Causal attention of four kinds. `forward` and `step` share everything but where the keys come
// from and how it is said which of them a query sees: norm, project, gather the keys, attend.
#include "weir/nn/coordinate_descent_attention.h"

#include <torch/nn/init.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "nn/check.h"
#include "weir/ops/block_sparse_attention.h"
#include "weir/ops/coordinate_descent_attention.h"
#include "weir/ops/low_rank_attention.h"
#include "weir/ops/top_k_attention.h"

namespace weir::nn {
namespace {

constexpr auto kName = "CoordinateDescentAttention";

void check_kind(const CoordinateDescentAttentionOptions& options) {
  constexpr std::array kKinds = {"softmax", "coordinate_descent", "top_k", "low_rank"};
  const std::string& kind = options.attn_kind;
  TORCH_CHECK_VALUE(std::find(kKinds.begin(), kKinds.end(), kind) != kKinds.end(), "weir::", kName,
                    ": expected `attn_kind` to be \"softmax\", \"coordinate_descent\", \"top_k\" "
                    "or \"low_rank\", but got \"",
                    kind, "\".");
  TORCH_CHECK_VALUE(!options.use_coor_descent || kind == "softmax" || kind == options.kind(),
                    "weir::", kName, ": expected `attn_kind` \"coordinate_descent\" with ",
                    "`use_coor_descent`, but got \"", kind, "\".");
}

void check_routing(const CoordinateDescentAttentionOptions& options) {
  check_size(kName, "attn_top_k", options.attn_top_k);
  check_size(kName, "attn_route_dim_head", options.attn_route_dim_head);
  check_size(kName, "attn_route_heads", options.route_heads());
  TORCH_CHECK_VALUE(options.heads % options.route_heads() == 0, "weir::", kName,
                    ": expected `attn_route_heads` to divide `heads`, ", options.heads,
                    ", but got ", options.route_heads(), ".");
  const std::string& score = options.attn_route_score;
  TORCH_CHECK_VALUE(
      score == "softmax" || score == "coordinate_descent", "weir::", kName,
      ": expected `attn_route_score` to be \"softmax\" or \"coordinate_descent\", but "
      "got \"",
      score, "\".");
}

void check(const CoordinateDescentAttentionOptions& options) {
  check_size(kName, "dim", options.dim);
  check_size(kName, "dim_head", options.dim_head);
  check_size(kName, "heads", options.heads);
  check_size(kName, "attn_null_kv", options.attn_null_kv, 0);
  check_positive(kName, "coor_descent_sparsity_k", options.coor_descent_sparsity_k);
  check_kind(options);
  check_routing(options);
  TORCH_CHECK_VALUE(
      options.kind() == "coordinate_descent" || !options.learned_sparsity_k, "weir::", kName,
      ": expected `learned_sparsity_k` only with coordinate descent: ", options.kind(),
      " has no k to learn.");
}

void check(const at::Tensor& x, const CoordinateDescentAttentionInputs& inputs, std::int64_t dim) {
  check_tokens(kName, x, dim);
  check_padding(kName, inputs.mask, x);
}

// (batch, n, parts * heads * features) -> parts times (batch, heads, n, features)
std::vector<at::Tensor> split_heads(const at::Tensor& x, std::int64_t parts, std::int64_t heads) {
  return x.unflatten(-1, {parts, heads, -1}).permute({2, 0, 3, 1, 4}).unbind();
}

// `slots` (batch, heads, n, features) with `nulls` (heads, nulls, features) in front.
at::Tensor behind_nulls(const at::Tensor& nulls, const at::Tensor& slots) {
  return at::cat({nulls.expand({slots.size(0), -1, -1, -1}), slots}, 2);
}

// `mask` (batch, n) with the null keys in front, which are always there: (batch, nulls + n).
at::Tensor mask_behind_nulls(const at::Tensor& mask, std::int64_t nulls) {
  return nulls == 0 ? mask : at::cat({mask.new_ones({mask.size(0), nulls}), mask}, 1);
}

// Room for `max_length` tokens behind `nulls` (heads, nulls, features). Zeros, not empty: a weight
// of 0 times a stray NaN would be NaN.
at::Tensor room_behind(const at::Tensor& nulls, std::int64_t batch, std::int64_t max_length) {
  at::Tensor slots = at::zeros({batch, nulls.size(0), nulls.size(1) + max_length, nulls.size(2)},
                               nulls.options().requires_grad(false));
  slots.narrow(2, 0, nulls.size(1)).copy_(nulls);
  return slots;
}

}  // namespace

CoordinateDescentAttentionImpl::CoordinateDescentAttentionImpl(
    const CoordinateDescentAttentionOptions& options_)
    : options(options_), solver_(coordinate_descent_options(kName, options_)) {
  check(options);
  reset();
}

void CoordinateDescentAttentionImpl::reset() {
  const auto [dim, dim_head, heads] = std::tie(options.dim, options.dim_head, options.heads);
  // Without nulls it is empty but keeps its place in the state dict; no gradient will ever reach
  // it.
  null_kv = register_parameter("null_kv", at::randn({2, heads, options.attn_null_kv, dim_head}),
                               options.attn_null_kv > 0);
  norm = register_module("norm", torch::nn::LayerNorm(torch::nn::LayerNormOptions({dim})));
  if (options.learned_sparsity_k) {
    to_learned_k = register_module("to_learned_k", torch::nn::Linear(dim, heads));
    torch::nn::init::constant_(to_learned_k->bias, -10);  // starts with k = 1
  }
  const auto linear = [](std::int64_t in, std::int64_t out) {
    return torch::nn::Linear(torch::nn::LinearOptions(in, out).bias(false));
  };
  to_qkv = register_module("to_qkv", linear(dim, 3 * heads * dim_head));
  to_out = register_module("to_out", linear(heads * dim_head, dim));
  if (options.kind() == "low_rank") {
    const std::int64_t route_heads = options.route_heads(), width = options.attn_route_dim_head;
    to_route_qk = register_module("to_route_qk", linear(dim, 2 * route_heads * width));
    null_route_k =
        register_parameter("null_route_k", at::randn({route_heads, options.attn_null_kv, width}),
                           options.attn_null_kv > 0);
  }
}

at::Tensor CoordinateDescentAttentionImpl::forward(const at::Tensor& x,
                                                   const CoordinateDescentAttentionInputs& inputs) {
  check(x, inputs, options.dim);
  // Zeroing padding at the entry keeps it out for good, NaN included, whatever reads keys later.
  const at::Tensor tokens =
      inputs.mask ? x.masked_fill(inputs.mask->logical_not().unsqueeze(-1), 0) : x;
  const at::Tensor normed = norm(tokens);
  Projected p = project(normed);
  prepend_nulls(p);
  Visible visible;
  if (inputs.mask) visible.masks.key_mask = mask_behind_nulls(*inputs.mask, options.attn_null_kv);
  return attend(normed, p, visible);
}

at::Tensor CoordinateDescentAttentionImpl::step(const at::Tensor& x, const at::Tensor& positions,
                                                std::int64_t length, std::span<KeyValues> past) {
  at::NoGradGuard no_grad;
  check_tokens(kName, x, options.dim);
  const std::int64_t nulls = options.attn_null_kv, slots = nulls + length;
  const at::Tensor normed = norm(x), places = positions + nulls;  // (batch, m)
  Projected p = project(normed);
  p.keys = write_slots(past[0].keys, p.keys, places, slots);
  p.values = write_slots(past[0].values, p.values, places, slots);
  if (p.route_keys.defined()) p.route_keys = write_slots(past[1].keys, p.route_keys, places, slots);
  if (length == x.size(1)) return attend(normed, p, {});  // all rows begin here
  const at::Tensor seen = at::arange(slots, positions.options()) <= places.unsqueeze(-1);
  return attend(normed, p, {.causal = false, .masks = {.mask = seen.unsqueeze(1)}});
}

std::vector<KeyValues> CoordinateDescentAttentionImpl::make_cache(std::int64_t batch,
                                                                  std::int64_t max_length) const {
  at::NoGradGuard no_grad;
  std::vector<KeyValues> entries = {{.keys = room_behind(null_kv[0], batch, max_length),
                                     .values = room_behind(null_kv[1], batch, max_length)}};
  if (null_route_k.defined()) {
    const at::Tensor routes = room_behind(null_route_k, batch, max_length);
    entries.push_back({.keys = routes, .values = routes.narrow(-1, 0, 0)});
  }
  return entries;
}

CoordinateDescentAttentionImpl::Projected CoordinateDescentAttentionImpl::project(
    const at::Tensor& normed) {
  const auto qkv = split_heads(to_qkv(normed), 3, options.heads);
  Projected p = {.queries = qkv[0], .keys = qkv[1], .values = qkv[2]};
  if (to_route_qk) {
    const auto route = split_heads(to_route_qk(normed), 2, options.route_heads());
    p.route_queries = route[0], p.route_keys = route[1];
  }
  return p;
}

void CoordinateDescentAttentionImpl::prepend_nulls(Projected& p) const {
  if (options.attn_null_kv == 0) return;
  p.keys = behind_nulls(null_kv[0], p.keys);
  p.values = behind_nulls(null_kv[1], p.values);
  if (to_route_qk) p.route_keys = behind_nulls(null_route_k, p.route_keys);
}

at::Tensor CoordinateDescentAttentionImpl::attend(const at::Tensor& normed, const Projected& p,
                                                  const Visible& visible) {
  const auto& [causal, masks] = visible;
  const std::string kind = options.kind();
  at::Tensor out;  // (batch, heads, n, dim_head)
  if (kind == "coordinate_descent") {
    out = ops::coordinate_descent_attention(p.queries, p.keys, p.values, budget(normed), masks,
                                            {.causal = causal,
                                             .n_iters = solver_.n_iters,
                                             .eps = solver_.eps,
                                             .eps_init = solver_.eps_init,
                                             .eps_decay = solver_.eps_decay,
                                             .solver = solver_.solver,
                                             .normalize = options.coor_descent_normalize});
  } else if (kind == "top_k") {
    out = ops::top_k_attention(p.queries, p.keys, p.values, options.attn_top_k, masks,
                               {.causal = causal});
  } else if (kind == "low_rank") {
    out = ops::low_rank_attention(p.route_queries, p.route_keys, p.queries, p.keys, p.values,
                                  options.attn_top_k, masks,
                                  {.causal = causal, .score = options.attn_route_score});
  } else {
    out = ops::block_sparse_attention(p.queries, p.keys, p.values,
                                      {.key_mask = masks.key_mask, .mask = masks.mask},
                                      {.causal = causal});
  }
  return to_out(out.transpose(1, 2).flatten(2));  // (batch, n, dim)
}

// k: one number, or predicted, (batch, heads, n).
at::Tensor CoordinateDescentAttentionImpl::budget(const at::Tensor& normed) {
  const double k = options.coor_descent_sparsity_k;
  if (!options.learned_sparsity_k) return at::full({}, k, normed.options().dtype(at::kDouble));
  return 1 + (k - 1) * to_learned_k(normed).sigmoid().transpose(1, 2);
}

void CoordinateDescentAttentionImpl::pretty_print(std::ostream& stream) const {
  const std::string kind = options.kind();
  stream << "weir::nn::" << kName << "(dim=" << options.dim << ", dim_head=" << options.dim_head
         << ", heads=" << options.heads << ", attn_kind=" << kind;
  if (kind == "coordinate_descent") {
    stream << ", coor_descent_sparsity_k=" << options.coor_descent_sparsity_k
           << ", coor_descent_solver=" << options.coor_descent_solver;
  } else if (kind != "softmax") {
    stream << ", attn_top_k=" << options.attn_top_k;
  }
  stream << ")";
}

}  // namespace weir::nn
