// SPDX-License-Identifier: Apache-2.0
// low_rank_attention: checks, public front, Meta and Autograd. The work on the CPU:
// low_rank_attention_cpu.cc; on every other device: low_rank_attention_composite.cc.
#include "ops/low_rank_attention.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "ops/checks.h"
#include "ops/composite_gradient.h"

namespace weir::ops {
namespace {

using Operands = LowRankAttentionOperands;
using Options = LowRankAttentionOptions;
using Problem = LowRankAttentionProblem;
using Rule = LowRankAttentionRule;
using Sizes = std::vector<c10::SymInt>;
using torch::autograd::variable_list;

constexpr char kOp[] = "low_rank_attention";
constexpr char kExpected[] = "weir::low_rank_attention: expected ";

auto& forward_operator() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("weir::_low_rank_attention", "")
                       .typed<decltype(route_and_attend_composite)>();
  return op;
}

auto& backward_operator() {
  static auto op = c10::Dispatcher::singleton()
                       .findSchemaOrThrow("weir::_low_rank_attention_backward", "")
                       .typed<decltype(attend_routed_backward_composite)>();
  return op;
}

}  // namespace

// ---- the rule and the problem

std::vector<std::int64_t> Rule::integers() const { return {k, causal}; }

std::vector<double> Rule::numbers() const { return {scale, route_scale, eps, k_ratio}; }

Rule Rule::of(at::IntArrayRef i, at::ArrayRef<double> x, std::string_view score) {
  TORCH_CHECK_VALUE(i.size() == 2 && x.size() == 4, kExpected,
                    "2 integers and 4 numbers of a rule, but got ", i.size(), " and ", x.size(),
                    ".");
  return {.k = i[0],
          .causal = i[1] != 0,
          .scale = x[0],
          .route_scale = x[1],
          .eps = x[2],
          .k_ratio = x[3],
          .score = std::string(score)};
}

namespace {

void check_rule(const Rule& rule) {
  TORCH_CHECK_VALUE(rule.k >= 1, kExpected, "`k` to be at least 1, but got ", rule.k, ".");
  TORCH_CHECK_VALUE(std::isfinite(rule.scale), kExpected, "`scale` to be finite, but got ",
                    rule.scale, ".");
  TORCH_CHECK_VALUE(std::isfinite(rule.route_scale), kExpected,
                    "`route_scale` to be finite, but got ", rule.route_scale, ".");
  TORCH_CHECK_VALUE(rule.descends() || rule.score == "softmax", kExpected,
                    "`score` to be softmax or coordinate_descent, but got ", rule.score, ".");
  TORCH_CHECK_VALUE(rule.eps > 0 && std::isfinite(rule.eps), kExpected,
                    "`eps` to be positive and finite, but got ", rule.eps, ".");
  TORCH_CHECK_VALUE(rule.k_ratio >= 1 && std::isfinite(rule.k_ratio), kExpected,
                    "`k_ratio` to be finite and at least 1, but got ", rule.k_ratio, ".");
}

/// What top_k_attention would say, under the names of the routing operands.
void check_routing(const Operands& in) {
  check_attention_operand(kOp, "route_query", "(batch, route_heads, n, route_dim)", in.route_query,
                          in.query);
  check_attention_operand(kOp, "route_key", "(batch, route_kv_heads, m, route_dim)", in.route_key,
                          in.query);
  const auto rq = in.route_query.sym_sizes(), rk = in.route_key.sym_sizes(),
             q = in.query.sym_sizes(), k = in.key.sym_sizes();
  const auto divide = [](const c10::SymInt& few, const c10::SymInt& many) {
    return few == many || (few >= 1 && many % few == 0);
  };
  TORCH_CHECK_VALUE(rq[3] >= 1, kExpected,
                    "the last dimension of `route_query` to be at least 1, but got ", rq, ".");
  TORCH_CHECK_VALUE(rq[0] == q[0] && rq[2] == q[2], kExpected, "`route_query` to have batch ", q[0],
                    " and ", q[2], " positions like `query`, but got ", rq, ".");
  TORCH_CHECK_VALUE(rk[0] == k[0] && rk[2] == k[2], kExpected, "`route_key` to have batch ", k[0],
                    " and ", k[2], " positions like `key`, but got ", rk, ".");
  TORCH_CHECK_VALUE(rk[3] == rq[3], kExpected, "`route_key` to have dim ", rq[3],
                    " like `route_query`, but got ", rk, ".");
  TORCH_CHECK_VALUE(divide(rq[1], q[1]), kExpected,
                    "the heads of `route_query` to divide those of `query`, ", q[1], ", but got ",
                    rq[1], ".");
  TORCH_CHECK_VALUE(divide(rk[1], rq[1]), kExpected,
                    "the heads of `route_key` to divide those of `route_query`, ", rq[1],
                    ", but got ", rk[1], ".");
  TORCH_CHECK_VALUE(k[2] <= std::numeric_limits<std::int32_t>::max(), kExpected,
                    "`key` to have less than 2^31 positions, but got ", k[2], ".");
}

BlockSparseAttentionProblem attention_problem(const at::Tensor& query, const at::Tensor& key,
                                              const at::Tensor& value,
                                              const AttentionTensors& tensors, bool causal,
                                              double scale) {
  const AttentionRule rule = {.causal = causal, .scale = scale};
  return block_sparse_attention_problem(query, key, value, std::nullopt, tensors.list(),
                                        rule.integers(), rule.numbers());
}

}  // namespace

Problem low_rank_attention_problem(const Operands& in, const OptionalTensor& key_mask,
                                   const OptionalTensor& mask, at::IntArrayRef integers,
                                   at::ArrayRef<double> numbers, std::string_view score) {
  const Rule rule = Rule::of(integers, numbers, score);
  check_attention_operands(kOp, in.query, in.key, in.value);
  check_rule(rule);
  check_routing(in);
  check_key_mask(kOp, key_mask, in.query, in.key);
  check_pair_mask(kOp, mask, in.route_query, in.key);
  AttentionTensors masks;
  masks.key_mask = key_mask, masks.mask = mask;
  return {.route = {.attention = attention_problem(in.route_query, in.route_key, in.route_key,
                                                   masks, rule.causal, rule.route_scale),
                    .kept = in.key.sym_size(2).min(rule.k)},
          .attention = attention_problem(in.query, in.key, in.value, {}, false, rule.scale),
          .rule = rule};
}

namespace {

// ---- public front

at::Tensor front(const at::Tensor& route_query, const at::Tensor& route_key,
                 const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                 std::int64_t k, const OptionalTensor& key_mask, const OptionalTensor& mask,
                 bool causal, std::optional<double> scale, std::optional<double> route_scale,
                 std::string_view score, double eps, double k_ratio) {
  return low_rank_attention(route_query, route_key, query, key, value, k, {key_mask, mask},
                            {causal, scale, route_scale, std::string(score), eps, k_ratio});
}

// ---- Meta

LowRankAttentionResult forward_meta(const at::Tensor& route_query, const at::Tensor& route_key,
                                    const at::Tensor& query, const at::Tensor& key,
                                    const at::Tensor& value, const OptionalTensor& key_mask,
                                    const OptionalTensor& mask, at::IntArrayRef integers,
                                    at::ArrayRef<double> numbers, std::string_view score) {
  const auto problem = low_rank_attention_problem({route_query, route_key, query, key, value},
                                                  key_mask, mask, integers, numbers, score);
  const auto options = query.options(), computed = options.dtype(problem.attention.compute);
  const Sizes kept = problem.route.kept_shape();
  return {at::empty_symint(problem.attention.output_shape(), options),
          at::empty_symint(kept, options.dtype(at::kInt)), at::empty_symint(kept, computed),
          at::empty_symint(problem.weights_shape(), computed)};
}

LowRankAttentionGradients backward_meta(const at::Tensor& /*grad*/, const at::Tensor& route_query,
                                        const at::Tensor& route_key, const at::Tensor& query,
                                        const at::Tensor& key, const at::Tensor& value,
                                        const at::Tensor& /*indices*/, const at::Tensor& /*scores*/,
                                        const at::Tensor& /*weights*/, at::IntArrayRef integers,
                                        at::ArrayRef<double> numbers, std::string_view score) {
  low_rank_attention_problem({route_query, route_key, query, key, value}, std::nullopt,
                             std::nullopt, integers, numbers, score);
  const auto like = [](const at::Tensor& x) {
    return at::empty_symint(x.sym_sizes(), x.options());
  };
  return {like(route_query), like(route_key), like(query), like(key), like(value)};
}

// ---- Autograd

class LowRankAttention : public torch::autograd::Function<LowRankAttention> {
 public:
  static variable_list forward(torch::autograd::AutogradContext* ctx, const at::Tensor& route_query,
                               const at::Tensor& route_key, const at::Tensor& query,
                               const at::Tensor& key, const at::Tensor& value,
                               const OptionalTensor& key_mask, const OptionalTensor& mask,
                               const Rule& rule) {
    at::AutoDispatchBelowADInplaceOrView below_autograd;
    auto [output, indices, scores, weights] =
        forward_operator().call(route_query, route_key, query, key, value, key_mask, mask,
                                rule.integers(), rule.numbers(), rule.score);
    ctx->save_for_backward({route_query, route_key, query, key, value, indices, scores, weights});
    ctx->mark_non_differentiable({indices, scores, weights});
    ctx->saved_data["integers"] = rule.integers();
    ctx->saved_data["numbers"] = rule.numbers();
    ctx->saved_data["score"] = rule.score;
    return {output, indices, scores, weights};
  }

  static variable_list backward(torch::autograd::AutogradContext* ctx, const variable_list& grads) {
    const auto saved = ctx->get_saved_variables();
    variable_list result(kInputs);
    if (!grads[0].defined()) return result;
    const auto& data = ctx->saved_data;
    const Rule rule = Rule::of(data.at("integers").toIntVector(),
                               data.at("numbers").toDoubleVector(), data.at("score").toStringRef());
    if (at::GradMode::is_enabled()) {  // a second derivative is wanted: differentiate the composite
      // The choice of keys is constant almost everywhere: only what follows it is differentiated.
      const auto composite = [&](const variable_list& x) {
        return std::get<0>(attend_routed({x[0], x[1], x[2], x[3], x[4]}, saved[5], rule));
      };
      differentiate_composite(grads[0], saved, kDifferentiable, composite, result);
      return result;
    }
    std::tie(result[0], result[1], result[2], result[3], result[4]) = backward_operator().call(
        grads[0], saved[0], saved[1], saved[2], saved[3], saved[4], saved[5], saved[6], saved[7],
        rule.integers(), rule.numbers(), rule.score);
    return result;
  }

 private:
  static constexpr std::size_t kInputs = 8, kDifferentiable = 5;
};

LowRankAttentionResult forward_autograd(const at::Tensor& route_query, const at::Tensor& route_key,
                                        const at::Tensor& query, const at::Tensor& key,
                                        const at::Tensor& value, const OptionalTensor& key_mask,
                                        const OptionalTensor& mask, at::IntArrayRef integers,
                                        at::ArrayRef<double> numbers, std::string_view score) {
  auto outputs = LowRankAttention::apply(route_query, route_key, query, key, value, key_mask, mask,
                                         Rule::of(integers, numbers, score));
  return {outputs[0], outputs[1], outputs[2], outputs[3]};
}

TORCH_LIBRARY_IMPL(weir, CompositeImplicitAutograd, m) { m.impl("low_rank_attention", front); }
TORCH_LIBRARY_IMPL(weir, Meta, m) {
  m.impl("_low_rank_attention", forward_meta);
  m.impl("_low_rank_attention_backward", backward_meta);
}
TORCH_LIBRARY_IMPL(weir, Autograd, m) { m.impl("_low_rank_attention", forward_autograd); }

}  // namespace

at::Tensor low_rank_attention(const at::Tensor& route_query, const at::Tensor& route_key,
                              const at::Tensor& query, const at::Tensor& key,
                              const at::Tensor& value, std::int64_t k, const AttentionMasks& masks,
                              const Options& options) {
  const Rule rule = {.k = k,
                     .causal = options.causal,
                     .scale = attention_scale(query, options.scale),
                     .route_scale = attention_scale(route_query, options.route_scale),
                     .eps = options.eps,
                     .k_ratio = options.k_ratio,
                     .score = options.score};
  return std::get<0>(forward_operator().call(route_query, route_key, query, key, value,
                                             masks.key_mask, masks.mask, rule.integers(),
                                             rule.numbers(), rule.score));
}

}  // namespace weir::ops
