// SPDX-License-Identifier: Apache-2.0
// Calls of router_logits with their gradients, by what serves the CPU and by what serves a device
// without a kernel, and autograd through the formula in float64.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <sstream>
#include <string>
#include <vector>

#include "support/block_sparse_attention_cases.h"
#include "weir/ops/router_logits.h"

namespace weir::tests {

struct RouterLogitsCase {
  torch::Tensor x, tokens;
  ops::RouterLogitsOptions options;
};

/// Output, gradient of x, gradient of tokens.
using RouterLogitsResults = std::vector<torch::Tensor>;

inline std::string describe(const RouterLogitsCase& c) {
  std::ostringstream out;
  out << "x " << c.x.sizes() << " strides " << c.x.strides() << ' ' << c.x.scalar_type()
      << ", tokens " << c.tokens.sizes() << ", cosine " << c.options.cosine << ", scale "
      << c.options.scale;
  return out.str();
}

/// Of sum(call(x, tokens) * upstream).
template <class Call>
RouterLogitsResults with_gradients(const RouterLogitsCase& c, const torch::Tensor& upstream,
                                   const Call& call) {
  const torch::Tensor x = c.x.detach().requires_grad_(true),
                      tokens = c.tokens.detach().requires_grad_(true);
  const torch::Tensor output = call(x, tokens);
  const auto grads =
      torch::autograd::grad({output}, {x, tokens}, {upstream.to(output.scalar_type())});
  return {output.detach(), grads[0], grads[1]};
}

inline RouterLogitsResults run(const RouterLogitsCase& c, const torch::Tensor& upstream) {
  return with_gradients(c, upstream, [&](const auto& x, const auto& tokens) {
    return ops::router_logits(x, tokens, c.options);
  });
}

/// From the composite's pair, through a dispatch key that has no kernel of its own, in front of
/// which stand tokens as the pair wants them.
inline RouterLogitsResults run_composite_pair(const RouterLogitsCase& c,
                                              const torch::Tensor& upstream) {
  using Pair = std::tuple<torch::Tensor, torch::Tensor>;
  using Forward = Pair(const torch::Tensor&, const torch::Tensor&, bool);
  using Backward = Pair(const torch::Tensor&, const torch::Tensor&, const torch::Tensor&,
                        const torch::Tensor&, const torch::Tensor&, bool, bool, bool);
  const auto find = [](const char* name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  };
  const c10::DispatchKeySet no_kernel(c10::DispatchKey::XLA);
  const auto compute = c.x.scalar_type() == torch::kDouble ? torch::kDouble : torch::kFloat;
  const torch::Tensor leaf = c.tokens.detach().requires_grad_(true);
  torch::Tensor factors = leaf.to(compute);
  if (c.options.cosine) factors = factors / factors.norm(2, -1, true).clamp_min(1e-12);
  factors = factors * c.options.scale;
  const torch::Tensor plain = factors.detach();
  const bool cosine = c.options.cosine;
  const auto [output, lengths] =
      find("weir::_router_logits").typed<Forward>().redispatch(no_kernel, c.x, plain, cosine);
  const auto [of_x, of_factors] = find("weir::_router_logits_backward")
                                      .typed<Backward>()
                                      .redispatch(no_kernel, upstream.to(compute), c.x, plain,
                                                  output, lengths, cosine, true, true);
  return {output, of_x, torch::autograd::grad({factors}, {leaf}, {of_factors})[0]};
}

inline RouterLogitsResults textbook_run(const RouterLogitsCase& c, const torch::Tensor& upstream) {
  RouterLogitsCase wide = c;
  wide.x = c.x.to(torch::kDouble), wide.tokens = c.tokens.to(torch::kDouble);
  return with_gradients(wide, upstream, [&](const torch::Tensor& x, const torch::Tensor& tokens) {
    const torch::Tensor rows = x.unsqueeze(1), columns = tokens.unsqueeze(-2);
    const torch::Tensor products = (rows * columns).sum(-1) * c.options.scale;
    if (!c.options.cosine) return products;
    const auto length = [](const torch::Tensor& v) { return v.norm(2, -1).clamp_min(1e-12); };
    return products / length(rows) / length(columns);
  });
}

inline void expect_results(const RouterLogitsResults& got, const RouterLogitsResults& expected,
                           const RouterLogitsCase& c) {
  const auto compute = c.x.scalar_type() == torch::kDouble ? torch::kDouble : torch::kFloat;
  EXPECT_EQ(got[0].scalar_type(), compute);
  EXPECT_EQ(got[1].scalar_type(), c.x.scalar_type());
  EXPECT_EQ(got[2].scalar_type(), c.tokens.scalar_type());
  expect_close("output", got[0], expected[0], tolerance_of(compute).weights);
  expect_close("grad of x", got[1], expected[1], tolerance_of(c.x.scalar_type()).gradients);
  expect_close(
      "grad of tokens", got[2], expected[2],
      std::max(tolerance_of(c.tokens.scalar_type()).gradients, tolerance_of(compute).gradients));
}

inline void check_case(const RouterLogitsCase& c) {
  SCOPED_TRACE(describe(c));
  const torch::Tensor upstream =
      torch::randn({c.x.size(0), c.tokens.size(-2), c.x.size(1)}, torch::kFloat);
  const RouterLogitsResults expected = textbook_run(c, upstream);
  {
    SCOPED_TRACE("composite");
    expect_results(run_composite_pair(c, upstream), expected, c);
  }
  SCOPED_TRACE("cpu");
  expect_results(run(c, upstream), expected, c);
}

inline RouterLogitsCase random_router_logits_case(unsigned seed, torch::Dtype dtype) {
  AttentionDraw draw{std::mt19937(seed)};
  torch::manual_seed(seed);
  const std::int64_t batch = draw.of({1, 2, 3}), routes = draw.of({1, 1, 2, 3, 4, 5, 7, 11});
  const std::int64_t n = draw.of({1, 2, 3, 4, 5, 7, 33, 150, 1100});
  const bool cosine = draw.one_in(2);
  // The cosine of single numbers is 1 or -1, and its gradient 0 a difference of large numbers.
  const std::int64_t dim = draw.of({cosine ? 5 : 1, 8, 15, 16, 17, 31, 33, 64, 100, 257});
  RouterLogitsCase c{random_operand(draw, batch, 1, n, dim, dtype).squeeze(1)};
  const bool own = draw.one_in(2), narrow = draw.one_in(2);
  c.tokens = torch::randn(own ? std::vector<std::int64_t>{batch, routes, dim}
                              : std::vector<std::int64_t>{routes, dim})
                 .to(narrow ? dtype : torch::kFloat);
  if (dtype == torch::kDouble) c.tokens = c.tokens.to(dtype);
  if (draw.one_in(4)) c.tokens = c.tokens.transpose(-1, -2).contiguous().transpose(-1, -2);
  c.options.cosine = cosine;
  if (draw.one_in(2)) c.options.scale = static_cast<double>(draw.of({0, 1, -1})) * 0.3;
  return c;
}

}  // namespace weir::tests
