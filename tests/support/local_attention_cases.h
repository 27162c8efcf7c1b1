// SPDX-License-Identifier: Apache-2.0
// Calls of local_attention with their gradients, and the textbook's answer to the same call.
#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <sstream>
#include <string>
#include <vector>

#include "support/block_sparse_attention_cases.h"
#include "support/textbook_local_attention.h"
#include "weir/ops/local_attention.h"

namespace weir::tests {

struct LocalCase {
  torch::Tensor query, key, value;
  ops::LocalAttentionInputs inputs = {};
  ops::LocalAttentionOptions options = {};
  std::uint64_t seed = 0;  // of the dropout
};

struct LocalResult {
  torch::Tensor output, query, key, value, bias;  // all but the first: gradients
};

inline std::vector<torch::Tensor> everything(const LocalResult& r) {
  std::vector<torch::Tensor> all = {r.output, r.query, r.key, r.value};
  if (r.bias.defined()) all.push_back(r.bias);
  return all;
}

inline std::string describe(const LocalCase& c) {
  std::ostringstream text;
  const auto& o = c.options;
  text << c.query.scalar_type() << " query" << c.query.sizes() << " key" << c.key.sizes()
       << " value" << c.value.sizes() << (c.inputs.key_mask ? " key_mask" : "")
       << (c.inputs.attn_bias ? " attn_bias" : "") << (c.inputs.inv_freq ? " inv_freq" : "")
       << " window_size=" << o.window_size << " causal=" << o.causal
       << " look_backward=" << o.look_backward << " look_forward=" << o.look_forward.value_or(-1)
       << " exact_windowsize=" << o.exact_windowsize << " scale=" << o.scale.value_or(NAN)
       << " shared_qk=" << o.shared_qk << " use_xpos=" << o.use_xpos
       << " xpos_scale_base=" << o.xpos_scale_base.value_or(0) << " dropout=" << o.dropout;
  return text.str();
}

using LocalAttention = decltype(ops::local_attention);

/// Output of `attention` and the gradients of sum(output * upstream).
inline LocalResult run(const LocalCase& c, const torch::Tensor& upstream,
                       LocalAttention* attention = ops::local_attention) {
  std::vector<torch::Tensor> leaves = {c.query, c.key, c.value};
  if (c.inputs.attn_bias) leaves.push_back(*c.inputs.attn_bias);
  for (torch::Tensor& leaf : leaves) leaf = leaf.detach().requires_grad_(true);
  ops::LocalAttentionInputs inputs = c.inputs;
  if (inputs.attn_bias) inputs.attn_bias = leaves[3];
  torch::manual_seed(c.seed);
  const torch::Tensor output = attention(leaves[0], leaves[1], leaves[2], inputs, c.options);
  const auto grads = torch::autograd::grad({output}, leaves, {upstream.to(output.scalar_type())});
  return {output.detach(), grads[0], grads[1], grads[2],
          inputs.attn_bias ? grads[3] : torch::Tensor()};
}

inline TextbookLocalAttention textbook_of(const LocalCase& c) {
  const auto& o = c.options;
  TextbookLocalAttention t;
  t.batch = c.query.size(0), t.heads = c.query.size(1), t.kv_heads = c.key.size(1);
  t.queries = c.query.size(2), t.keys = c.key.size(2);
  t.dim = c.query.size(3), t.value_dim = c.value.size(3);
  t.window = o.window_size, t.causal = o.causal, t.exact = o.exact_windowsize;
  t.look_backward = o.look_backward, t.look_forward = o.look_forward.value_or(o.causal ? 0 : 1);
  t.shared_qk = o.shared_qk;
  t.scale = o.scale.value_or(1 / std::sqrt(static_cast<double>(t.dim)));
  if (o.use_xpos) t.xpos_base = o.xpos_scale_base.value_or(std::floor(o.window_size / 2.0));
  if (c.inputs.inv_freq) t.inv_freq = elements<double>(*c.inputs.inv_freq);
  if (c.inputs.attn_bias) t.bias = elements<double>(*c.inputs.attn_bias);
  if (c.inputs.key_mask) t.key_mask = elements<bool>(*c.inputs.key_mask);
  t.query = elements<double>(c.query), t.key = elements<double>(c.key);
  t.value = elements<double>(c.value);
  return t;
}

inline LocalResult textbook_run(const LocalCase& c, const torch::Tensor& upstream) {
  const TextbookLocalAttention t = textbook_of(c);
  const auto rounded = elements<double>(upstream.to(c.query.scalar_type()));
  const TextbookLocalGradient grads = textbook_backward(t, rounded);
  const auto tensor = [](const std::vector<double>& x, torch::IntArrayRef shape) {
    return torch::tensor(x, torch::kDouble).view(shape);
  };
  return {tensor(textbook_forward(t), {t.batch, t.heads, t.queries, t.value_dim}),
          tensor(grads.query, c.query.sizes()), tensor(grads.key, c.key.sizes()),
          tensor(grads.value, c.value.sizes()),
          c.inputs.attn_bias ? tensor(grads.bias, c.inputs.attn_bias->sizes()) : torch::Tensor()};
}

inline void expect_results(const LocalResult& got, const LocalResult& expected, torch::Dtype dtype,
                           double gradient_factor = 1, double bias_factor = 1) {
  const Tolerance tolerance = tolerance_of(dtype);
  const double gradients = tolerance.gradients * gradient_factor;
  const double biases = tolerance.gradients * bias_factor;
  for (const torch::Tensor& x : {got.output, got.query, got.key, got.value}) {
    EXPECT_EQ(x.scalar_type(), dtype);
  }
  expect_close("output", got.output, expected.output, tolerance.weights);
  EXPECT_TRUE(torch::equal(torch::isfinite(got.output), torch::isfinite(expected.output)));
  expect_close("grad of query", got.query, expected.query, gradients);
  expect_close("grad of key", got.key, expected.key, gradients);
  expect_close("grad of value", got.value, expected.value, gradients);
  ASSERT_EQ(got.bias.defined(), expected.bias.defined());
  if (got.bias.defined()) expect_close("grad of bias", got.bias, expected.bias, biases);
}

inline torch::Tensor random_upstream(const LocalCase& c) {
  return torch::randn({c.query.size(0), c.query.size(1), c.query.size(2), c.value.size(3)})
      .to(c.query.scalar_type());
}

/// What ran on the CPU, where 16-bit types subtract <grad, output> as stored. With dropout the
/// weights that are kept, the outputs and their roundings are larger by 1 / (1 - dropout).
inline void expect_stored_results(const LocalCase& c, const LocalResult& got,
                                  const LocalResult& expected) {
  const torch::Dtype dtype = c.query.scalar_type();
  const bool narrow = torch::elementSize(dtype) == 2;
  const double larger = 1 / (1 - c.options.dropout);
  expect_results(got, expected, dtype, larger * (narrow ? kStoredOutput : 1),
                 larger * (narrow ? kStoredOutputBias : 1));
}

/// What runs on the CPU and what runs on other devices against the textbook.
inline void check_case(const LocalCase& c) {
  SCOPED_TRACE(describe(c));
  const torch::Tensor upstream = random_upstream(c);
  const LocalResult expected = textbook_run(c, upstream);
  const torch::Dtype dtype = c.query.scalar_type();
  {
    SCOPED_TRACE("composite");
    expect_results(run(c, upstream, ops::local_attention_composite), expected, dtype);
  }
  SCOPED_TRACE("cpu");
  expect_stored_results(c, run(c, upstream), expected);
}

/// What runs on the CPU against what runs on other devices, in the dtype of the computation: with
/// dropout, which the textbook cannot draw.
inline void check_backends(const LocalCase& c) {
  SCOPED_TRACE(describe(c));
  const torch::Tensor upstream = random_upstream(c);
  const torch::Dtype dtype = c.query.scalar_type();
  const auto computed = dtype == torch::kDouble ? torch::kDouble : torch::kFloat;
  LocalCase wide = c;
  for (torch::Tensor* x : {&wide.query, &wide.key, &wide.value}) *x = x->to(computed);
  expect_stored_results(c, run(c, upstream), run(wide, upstream, ops::local_attention_composite));
}

inline torch::Tensor rotary(std::int64_t dim) {
  return torch::pow(10000.0, -torch::arange(0, dim, 2, torch::kDouble) / dim);
}

inline torch::Tensor random_bias(const LocalCase& c, torch::Dtype dtype) {
  const auto& o = c.options;
  const std::int64_t buckets = o.look_backward + 1 + o.look_forward.value_or(o.causal ? 0 : 1);
  return torch::randn({c.query.size(1), o.window_size, buckets * o.window_size}).to(dtype);
}

inline void random_rotation(AttentionDraw& draw, LocalCase& c) {
  auto& o = c.options;
  c.inputs.inv_freq = rotary(c.query.size(3));
  if (draw.one_in(2)) c.inputs.inv_freq = c.inputs.inv_freq->to(torch::kFloat);
  o.use_xpos = draw.one_in(2);
  if (!o.use_xpos) return;
  // Toward later keys factors grow: a base of their distance keeps logits of the size that
  // the tolerances are for.
  const std::int64_t ahead = o.causal ? 0 : o.look_forward.value_or(1) + 1;
  if (o.window_size < 2 || ahead > 0 || draw.one_in(3)) {
    o.xpos_scale_base = (ahead > 0 ? ahead : 0.5) * static_cast<double>(o.window_size);
  }
}

inline LocalCase random_local_case(unsigned seed, torch::Dtype dtype) {
  AttentionDraw draw{std::mt19937(seed)};
  torch::manual_seed(seed);
  const std::int64_t batch = draw.of({1, 2}), kv_heads = draw.of({1, 2});
  const std::int64_t heads = kv_heads * draw.of({1, 1, 3});
  const std::int64_t m = draw.of({1, 5, 16, 33, 64, 97, 131});
  const std::int64_t n = draw.one_in(2) ? m : draw.of({1, 7, 16, 31, 66, 129});
  const std::int64_t dim = draw.of({2, 8, 10, 20, 64});
  const std::int64_t value_dim = draw.one_in(2) ? dim : draw.of({1, 5, 16, 24, 65});
  LocalCase c{random_operand(draw, batch, heads, n, dim, dtype),
              random_operand(draw, batch, kv_heads, m, dim, dtype),
              random_operand(draw, batch, kv_heads, m, value_dim, dtype)};
  auto& o = c.options;
  o.window_size = draw.of({1, 2, 3, 7, 16, 32, 200});
  o.causal = draw.one_in(2);
  o.look_backward = draw.of({0, 1, 1, 2, 5});
  if (!o.causal && draw.one_in(2)) o.look_forward = draw.of({0, 1, 2});
  o.exact_windowsize = draw.one_in(2);
  if (draw.one_in(3)) o.scale = static_cast<double>(draw.of({0, 1, -1})) * 0.3;
  o.shared_qk = draw.one_in(4);
  if (draw.one_in(3)) c.inputs.key_mask = torch::rand({batch, m}) < 0.7;
  if (draw.one_in(3)) {
    const bool same = dtype == torch::kDouble || draw.one_in(2);
    c.inputs.attn_bias = random_bias(c, same ? dtype : torch::kFloat);
  }
  if (draw.one_in(2)) random_rotation(draw, c);
  if (o.use_xpos && n > m) c.query = c.query.narrow(2, 0, m);
  return c;
}

}  // namespace weir::tests
