// SPDX-License-Identifier: Apache-2.0
// Calls of block_sparse_attention with their gradients, and the textbook's answer to the same call.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "support/textbook_block_sparse_attention.h"
#include "support/tolerance.h"
#include "weir/ops/block_sparse_attention.h"

namespace weir::tests {

struct AttentionCase {
  torch::Tensor query, key, value;
  ops::BlockSparseAttentionMasks masks = {};
  ops::BlockSparseAttentionOptions options = {};
};

struct AttentionResult {
  torch::Tensor output, lse, query, key, value;  // the last three: gradients
};

inline std::string describe(const AttentionCase& c) {
  std::ostringstream text;
  const auto shape = [&](const char* name, const std::optional<torch::Tensor>& x) {
    if (x) text << name << x->sizes() << ' ';
  };
  text << c.query.scalar_type() << ' ';
  shape("query", c.query), shape("key", c.key), shape("value", c.value);
  shape("layout", c.masks.layout), shape("key_mask", c.masks.key_mask);
  shape("mask", c.masks.mask), shape("cu_seqlens", c.masks.cu_seqlens);
  shape("document_ids", c.masks.document_ids);
  text << "block_size=" << c.options.block_size << " causal=" << c.options.causal
       << " window=" << c.options.window.value_or(0) << " stride=" << c.options.stride
       << " prefix=" << c.options.prefix << " local=" << c.options.local
       << " scale=" << c.options.scale.value_or(0);
  return text.str();
}

/// Output, log-sum-exp and the gradients of sum(output * upstream).
inline AttentionResult run(const AttentionCase& c, const torch::Tensor& upstream) {
  std::vector<torch::Tensor> leaves;
  for (const torch::Tensor& x : {c.query, c.key, c.value}) {
    leaves.push_back(x.detach().requires_grad_(true));
  }
  const auto [output, lse] =
      ops::block_sparse_attention_with_lse(leaves[0], leaves[1], leaves[2], c.masks, c.options);
  const auto grads = torch::autograd::grad({output}, leaves, {upstream.to(output.scalar_type())});
  return {output.detach(), lse, grads[0], grads[1], grads[2]};
}

/// The same from the composite's private pair, through a dispatch key that has no kernel of its
/// own.
inline AttentionResult run_composite_pair(const AttentionCase& c, const torch::Tensor& upstream) {
  using torch::Tensor;
  using Optional = std::optional<Tensor>;
  using List = c10::List<Optional>;
  using Integers = torch::IntArrayRef;
  using Numbers = torch::ArrayRef<double>;
  using Forward = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, const Tensor&,
                                             const Optional&, const List&, Integers, Numbers);
  using Backward = std::tuple<Tensor, Tensor, Tensor, Tensor>(
      const Tensor&, const Tensor&, const Tensor&, const Tensor&, const Optional&, const Tensor&,
      const Tensor&, const List&, Integers, Numbers);
  auto& dispatcher = c10::Dispatcher::singleton();
  const auto forward =
      dispatcher.findSchemaOrThrow("weir::_block_sparse_attention", "").typed<Forward>();
  const auto backward =
      dispatcher.findSchemaOrThrow("weir::_block_sparse_attention_backward", "").typed<Backward>();
  const c10::DispatchKeySet no_kernel(c10::DispatchKey::XLA);
  const auto& o = c.options;
  const auto& m = c.masks;
  const List tensors({m.layout, m.key_mask, m.mask, m.cu_seqlens, m.cu_seqlens_k, m.document_ids,
                      std::nullopt, std::nullopt, std::nullopt});
  constexpr std::int64_t kUnlimited = std::int64_t{1} << 60;
  const std::int64_t reach = o.window ? *o.window - 1 : kUnlimited;
  const std::vector<std::int64_t> integers = {
      o.block_size, o.causal, reach, reach, 1, o.stride, o.prefix, o.local, kUnlimited, 0, 0};
  const double scale = o.scale.value_or(1 / std::sqrt(static_cast<double>(c.query.size(-1))));
  const std::vector<double> numbers = {scale, 0};
  const auto [output, lse] = forward.redispatch(no_kernel, c.query, c.key, c.value, Optional(),
                                                tensors, integers, numbers);
  const auto [query, key, value, bias] =
      backward.redispatch(no_kernel, upstream.to(output.scalar_type()), c.query, c.key, c.value,
                          Optional(), output, lse, tensors, integers, numbers);
  return {output, lse, query, key, value};
}

template <class Element>
std::vector<Element> elements(const torch::Tensor& x) {
  const torch::Tensor wide = x.to(torch::kDouble).contiguous();
  const double* begin = wide.data_ptr<double>();
  return std::vector<Element>(begin, begin + wide.numel());
}

inline TextbookAttention textbook_of(const AttentionCase& c) {
  TextbookAttention t;
  t.batch = c.query.size(0), t.heads = c.query.size(1), t.kv_heads = c.key.size(1);
  t.queries = c.query.size(2), t.keys = c.key.size(2);
  t.dim = c.query.size(3), t.value_dim = c.value.size(3);
  t.block_size = c.options.block_size, t.window = c.options.window.value_or(0);
  t.stride = c.options.stride, t.prefix = c.options.prefix, t.causal = c.options.causal;
  t.local = c.options.local;
  t.scale = c.options.scale.value_or(1 / std::sqrt(static_cast<double>(t.dim)));
  if (c.masks.layout) {
    t.layout_heads = c.masks.layout->dim() == 2 ? 1 : t.heads;
    t.layout_rows = c.masks.layout->size(-2), t.layout_cols = c.masks.layout->size(-1);
    t.layout = elements<bool>(*c.masks.layout);
  }
  if (c.masks.cu_seqlens) {
    t.cu_seqlens = elements<std::int64_t>(*c.masks.cu_seqlens);
    t.cu_seqlens_k = elements<std::int64_t>(c.masks.cu_seqlens_k.value_or(*c.masks.cu_seqlens));
  }
  if (c.masks.document_ids) t.document_ids = elements<std::int64_t>(*c.masks.document_ids);
  if (c.masks.key_mask) t.key_mask = elements<bool>(*c.masks.key_mask);
  if (c.masks.mask) {
    t.mask = elements<bool>(c.masks.mask->expand({t.batch, t.heads, t.queries, t.keys}));
  }
  t.query = elements<double>(c.query), t.key = elements<double>(c.key);
  t.value = elements<double>(c.value);
  return t;
}

inline AttentionResult textbook_run(const AttentionCase& c, const torch::Tensor& upstream) {
  const TextbookAttention t = textbook_of(c);
  const TextbookAttentionResult result = textbook_forward(t);
  const auto rounded = elements<double>(upstream.to(c.query.scalar_type()));
  const TextbookAttentionGradient grads = textbook_backward(t, rounded);
  const auto tensor = [](const std::vector<double>& x, torch::IntArrayRef shape) {
    return torch::tensor(x, torch::kDouble).view(shape);
  };
  return {tensor(result.output, {t.batch, t.heads, t.queries, t.value_dim}),
          tensor(result.lse, {t.batch, t.heads, t.queries}), tensor(grads.query, c.query.sizes()),
          tensor(grads.key, c.key.sizes()), tensor(grads.value, c.value.sizes())};
}

/// bool (batch, heads, n, m): the pairs the textbook allows.
inline torch::Tensor textbook_allowed(const AttentionCase& c) {
  const TextbookAttention t = textbook_of(c);
  torch::Tensor allowed = torch::empty({t.batch, t.heads, t.queries, t.keys}, torch::kBool);
  bool* next = allowed.data_ptr<bool>();
  for_each_query(t, [&](std::int64_t b, std::int64_t h, std::int64_t i) {
    for (std::int64_t j = 0; j < t.keys; ++j) *next++ = t.allowed(b, h, i, j);
  });
  return allowed;
}

/// Equal within the tolerance wherever `expected` is finite, relative to its largest such element.
inline void expect_close(const char* name, const torch::Tensor& got, const torch::Tensor& expected,
                         double tolerance) {
  ASSERT_EQ(got.sizes(), expected.sizes()) << name;
  if (got.numel() == 0) return;
  const torch::Tensor other = ~torch::isfinite(expected);
  const torch::Tensor wide = expected.to(torch::kDouble).masked_fill(other, 0);
  const torch::Tensor error = (got.to(torch::kDouble).masked_fill(other, 0) - wide).abs();
  const double scale = std::max(1.0, wide.abs().max().item<double>());
  EXPECT_LE(error.max().item<double>(), tolerance * scale) << name;
}

inline Tolerance tolerance_of(torch::Dtype dtype) {
  if (dtype == torch::kDouble) return kFloat64;
  if (dtype == torch::kFloat) return kFloat32;
  return dtype == torch::kBFloat16 ? kBFloat16 : kFloat16;
}

inline void expect_results(const AttentionResult& got, const AttentionResult& expected,
                           torch::Dtype dtype, double gradient_factor = 1) {
  const Tolerance tolerance = tolerance_of(dtype);
  const double gradients = tolerance.gradients * gradient_factor;
  const auto compute = dtype == torch::kDouble ? torch::kDouble : torch::kFloat;
  EXPECT_EQ(got.output.scalar_type(), dtype);
  EXPECT_EQ(got.lse.scalar_type(), compute);
  expect_close("output", got.output, expected.output, tolerance.weights);
  expect_close("lse", got.lse, expected.lse, tolerance_of(compute).weights);
  EXPECT_TRUE(torch::equal(torch::isneginf(got.lse), torch::isneginf(expected.lse)));
  EXPECT_TRUE(torch::equal(torch::isfinite(got.output), torch::isfinite(expected.output)));
  expect_close("grad of query", got.query, expected.query, gradients);
  expect_close("grad of key", got.key, expected.key, gradients);
  expect_close("grad of value", got.value, expected.value, gradients);
}

inline torch::Tensor random_upstream(const AttentionCase& c) {
  return torch::randn({c.query.size(0), c.query.size(1), c.query.size(2), c.value.size(3)})
      .to(c.query.scalar_type());
}

/// What serves the CPU and what serves a device without a kernel against the textbook: output,
/// log-sum-exp and all gradients.
inline void check_case(const AttentionCase& c) {
  SCOPED_TRACE(describe(c));
  const torch::Tensor upstream = random_upstream(c);
  const AttentionResult expected = textbook_run(c, upstream);
  {
    SCOPED_TRACE("composite");
    expect_results(run_composite_pair(c, upstream), expected, c.query.scalar_type());
  }
  SCOPED_TRACE("cpu");
  const bool narrow = c.query.element_size() == 2;
  expect_results(run(c, upstream), expected, c.query.scalar_type(), narrow ? kStoredOutput : 1);
}

// ---- random calls

struct AttentionDraw {
  std::mt19937 random;

  std::int64_t of(const std::vector<std::int64_t>& choices) {
    return choices[random() % choices.size()];
  }
  bool one_in(unsigned n) { return random() % n == 0; }
};

/// Contiguous, a transposed (batch, sequence, heads, dim), expanded over the heads, or every second
/// element of a wider tensor.
inline torch::Tensor random_operand(AttentionDraw& draw, std::int64_t batch, std::int64_t heads,
                                    std::int64_t length, std::int64_t dim, torch::Dtype dtype) {
  switch (draw.of({0, 0, 1, 2, 3})) {
    case 1:
      return torch::randn({batch, length, heads, dim}).to(dtype).transpose(1, 2);
    case 2:
      return torch::randn({batch, 1, length, dim}).to(dtype).expand({batch, heads, length, dim});
    case 3:
      return torch::randn({batch, heads, length, 2 * dim}).to(dtype).slice(3, 0, 2 * dim, 2);
    default:
      return torch::randn({batch, heads, length, dim}).to(dtype);
  }
}

/// Half the blocks, one block row and one block column empty.
inline torch::Tensor random_layout(AttentionDraw& draw, const AttentionCase& c) {
  const std::int64_t b = c.options.block_size, rows = (c.query.size(2) + b - 1) / b,
                     cols = (c.key.size(2) + b - 1) / b;
  torch::Tensor layout = torch::rand({c.query.size(1), rows, cols}) < 0.6;
  if (rows > 1) layout.select(1, draw.random() % rows).fill_(false);
  if (cols > 1) layout.select(2, draw.random() % cols).fill_(false);
  return draw.one_in(2) ? layout : layout.select(0, 0);
}

inline torch::Tensor random_mask(AttentionDraw& draw, const AttentionCase& c) {
  const std::int64_t b = c.query.size(0), h = c.query.size(1), n = c.query.size(2),
                     m = c.key.size(2);
  const std::vector<std::vector<std::int64_t>> shapes = {
      {},           {m},          {n, 1},       {n, m},       {h, 1, 1},    {h, n, m},
      {b, 1, 1, m}, {1, h, n, m}, {b, 1, n, 1}, {b, 1, n, m}, {b, h, n, m}, {1, 1, 1, 1}};
  const torch::Tensor mask = torch::rand(shapes[draw.random() % shapes.size()]) < 0.7;
  return mask.dim() >= 2 && draw.one_in(3) ? mask.transpose(-2, -1).contiguous().transpose(-2, -1)
                                           : mask;
}

/// Up to five sequences, some of them empty.
inline torch::Tensor random_cu_seqlens(AttentionDraw& draw, std::int64_t total,
                                       std::int64_t sequences) {
  std::vector<std::int64_t> ends = {0, total};
  for (std::int64_t s = 1; s < sequences; ++s) {
    ends.push_back(static_cast<std::int64_t>(draw.random()) % (total + 1));
  }
  std::sort(ends.begin(), ends.end());
  return torch::tensor(ends, draw.one_in(2) ? torch::kInt : torch::kLong);
}

inline void random_packing(AttentionDraw& draw, AttentionCase& c) {
  const std::int64_t n = c.query.size(2), m = c.key.size(2);
  if (n == m && draw.one_in(2)) {
    c.masks.document_ids = (torch::rand({c.query.size(0), n}) < 0.07).cumsum(1).remainder(3);
    return;
  }
  const std::int64_t sequences = draw.of({1, 2, 5});
  c.masks.cu_seqlens = random_cu_seqlens(draw, n, sequences);
  if (n != m || draw.one_in(2)) c.masks.cu_seqlens_k = random_cu_seqlens(draw, m, sequences);
}

inline AttentionCase random_case(unsigned seed, torch::Dtype dtype) {
  AttentionDraw draw{std::mt19937(seed)};
  torch::manual_seed(seed);
  const std::int64_t batch = draw.of({1, 2}), kv_heads = draw.of({1, 2});
  const std::int64_t heads = kv_heads * draw.of({1, 1, 3});
  const std::int64_t n = draw.of({1, 5, 16, 33, 47, 66, 131});
  const std::int64_t m = draw.one_in(2) ? n : draw.of({1, 7, 16, 31, 64, 97, 129});
  const std::int64_t dim = draw.of({1, 8, 10, 64, 80});
  const std::int64_t value_dim = draw.one_in(2) ? dim : draw.of({1, 5, 16, 24, 65});
  AttentionCase c{random_operand(draw, batch, heads, n, dim, dtype),
                  random_operand(draw, batch, kv_heads, m, dim, dtype),
                  random_operand(draw, batch, kv_heads, m, value_dim, dtype)};
  c.options.block_size = draw.of({1, 8, 16, 20, 32, 64, 128});
  c.options.causal = draw.one_in(2);
  if (draw.one_in(2)) c.options.window = draw.of({1, 3, 16, 40, 1000});
  if (draw.one_in(3)) c.options.stride = draw.of({2, 3, 8, 50});
  if (draw.one_in(3)) c.options.prefix = draw.of({1, 4, 20, 1000});
  if (draw.one_in(3)) c.options.scale = static_cast<double>(draw.of({0, 1, -1})) * 0.3;
  if (draw.one_in(2)) c.masks.layout = random_layout(draw, c);
  if (draw.one_in(3)) c.masks.key_mask = torch::rand({batch, m}) < 0.7;
  if (draw.one_in(3)) c.masks.mask = random_mask(draw, c);
  if (draw.one_in(4)) c.options.local = draw.of({1, 2, 9, 40, 1000});
  if (draw.one_in(4)) random_packing(draw, c);
  return c;
}

}  // namespace weir::tests
