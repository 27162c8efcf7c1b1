// SPDX-License-Identifier: Apache-2.0
// route_back against a loop of assignments; gradients, what is dropped, dtypes, messages.
#include "weir/nn/route_back.h"

#include <gtest/gtest.h>
#include <torch/torch.h>

#include "nn/directional_gradients.h"
#include "nn/module_contract.h"

namespace weir::nn {
namespace {

/// Rows of distinct indices below n.
at::Tensor distinct(std::int64_t rows, std::int64_t k, std::int64_t n) {
  return at::rand({rows, n}).argsort(std::int64_t{-1}, false).narrow(1, 0, k).contiguous();
}

at::Tensor assigned(const at::Tensor& src, const at::Tensor& tokens, const at::Tensor& indices) {
  at::Tensor result = src.clone();
  for (std::int64_t b = 0; b < src.size(0); ++b) {
    for (std::int64_t i = 0; i < indices.size(1); ++i) {
      const auto index = indices[b][i].item<std::int64_t>();
      if (index >= 0 && index < src.size(1)) result[b][index] = tokens[b][i];
    }
  }
  return result;
}

TEST(RouteBack, OverwritesRows) {
  torch::manual_seed(0);
  for (const std::int64_t k : {0, 1, 4, 7}) {
    const at::Tensor src = at::randn({3, 7, 5}), tokens = at::randn({3, k, 5});
    const at::Tensor indices = distinct(3, k, 7), kept = src.clone();
    EXPECT_TRUE(route_back(src, tokens, indices).equal(assigned(src, tokens, indices)));
    EXPECT_TRUE(src.equal(kept)) << "src changed";
  }
  const at::Tensor src = at::randn({3, 5, 7}).transpose(1, 2);  // any strides
  const at::Tensor tokens = at::randn({5, 4, 3}).permute({2, 1, 0}), indices = distinct(3, 4, 7);
  EXPECT_TRUE(route_back(src, tokens, indices).equal(assigned(src, tokens, indices)));
}

TEST(RouteBack, TakesAnyLeadingSizes) {
  torch::manual_seed(0);
  const at::Tensor src = at::randn({6, 7, 5}), tokens = at::randn({6, 4, 5});
  const at::Tensor indices = distinct(6, 4, 7), expected = assigned(src, tokens, indices);
  EXPECT_TRUE(route_back(src.view({2, 3, 7, 5}), tokens.view({2, 3, 4, 5}), indices.view({2, 3, 4}))
                  .equal(expected.view({2, 3, 7, 5})));
  EXPECT_TRUE(route_back(src[1], tokens[1], indices[1]).equal(expected[1]));
  EXPECT_EQ(
      route_back(at::randn({0, 7, 5}), at::randn({0, 4, 5}), at::empty({0, 4}, at::kLong)).sizes(),
      at::IntArrayRef({0, 7, 5}));
  EXPECT_EQ(route_back(at::randn({2, 0, 5}), at::randn({2, 3, 5}), at::full({2, 3}, 0)).sizes(),
            at::IntArrayRef({2, 0, 5}));
}

TEST(RouteBack, DropsFillersAndWhatTheMaskDrops) {
  const at::Tensor src = at::zeros({2, 4, 1}),
                   tokens = at::arange(1, 7).view({2, 3, 1}).to(at::kFloat);
  const at::Tensor indices = torch::tensor({{3, 4, 0}, {9, -1, 2}}, at::kLong);
  EXPECT_TRUE(
      route_back(src, tokens, indices)
          .equal(torch::tensor({{3.f, 0.f, 0.f, 1.f}, {0.f, 0.f, 6.f, 0.f}}).unsqueeze(-1)));
  const at::Tensor mask = torch::tensor({{true, true, false}, {true, true, true}});
  EXPECT_TRUE(
      route_back(src, tokens, indices, mask)
          .equal(torch::tensor({{0.f, 0.f, 0.f, 1.f}, {0.f, 0.f, 6.f, 0.f}}).unsqueeze(-1)));
}

TEST(RouteBack, GradientsGoToWhatIsSeen) {
  torch::manual_seed(0);
  const at::Tensor src = at::randn({2, 6, 3}, at::kDouble).requires_grad_();
  const at::Tensor tokens = at::randn({2, 4, 3}, at::kDouble).requires_grad_();
  at::Tensor indices = distinct(2, 4, 6), mask = at::ones({2, 4}, at::kBool);
  indices[0][1] = 6;
  mask[1][2] = false;
  const at::Tensor probe = at::randn({2, 6, 3}, at::kDouble);
  const auto loss = [&] { return (route_back(src, tokens, indices, mask) * probe).sum(); };
  expect_directional_gradients(loss, {src, tokens});
  loss().backward();
  EXPECT_EQ(tokens.grad()[0][1].abs().max().item<double>(), 0);
  EXPECT_EQ(tokens.grad()[1][2].abs().max().item<double>(), 0);
  EXPECT_EQ(src.grad()[0][indices[0][0].item<std::int64_t>()].abs().max().item<double>(), 0);
}

TEST(RouteBack, CastsTokensToTheDtypeOfSrc) {
  const at::Tensor tokens = at::randn({1, 2, 3}).to(at::kBFloat16).requires_grad_();
  const at::Tensor out =
      route_back(at::zeros({1, 4, 3}), tokens, torch::tensor({{2, 0}}, at::kLong));
  EXPECT_EQ(out.scalar_type(), at::kFloat);
  EXPECT_TRUE(out[0][2].equal(tokens[0][0].to(at::kFloat)));
  out.sum().backward();
  EXPECT_EQ(tokens.grad().scalar_type(), at::kBFloat16);
}

TEST(RouteBack, Messages) {
  const at::Tensor src = at::zeros({2, 4, 3}), tokens = at::zeros({2, 1, 3});
  const at::Tensor indices = at::zeros({2, 1}, at::kLong);
  const auto refuses = [](const at::Tensor& s, const at::Tensor& t, const at::Tensor& i,
                          const std::optional<at::Tensor>& mask, const std::string& words) {
    expect_refusal([&] { route_back(s, t, i, mask); }, "weir::route_back: " + words);
  };
  refuses(at::zeros({3}), tokens, indices, {},
          "expected `src` to have shape [..., n, dim], but got [3].");
  refuses(src, tokens, indices.to(at::kInt), {}, "expected `indices` to be int64, but got Int.");
  refuses(
      src, tokens, at::zeros({3, 1}, at::kLong), {},
      "expected `indices` to have the leading sizes [2] of `src` and one more, but got [3, 1].");
  refuses(
      src, at::zeros({2, 2, 3}), indices, {},
      "expected `tokens` to have shape [2, 1, 3], a row of `src` per index, but got [2, 2, 3].");
  refuses(src, tokens, indices, at::zeros({2, 1}),
          "expected `mask` to be bool (true = keep), but got Float.");
  refuses(src, tokens, indices, at::zeros({2}, at::kBool),
          "expected `mask` to have shape [2, 1] like `indices`, but got [2].");
}

}  // namespace
}  // namespace weir::nn
