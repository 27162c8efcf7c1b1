// SPDX-License-Identifier: Apache-2.0
// The feed-forward layer: the formula, gradients, names, copies, dtypes and refusals.
#include "weir/nn/coordinate_descent_feed_forward.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "nn/directional_gradients.h"
#include "nn/module_contract.h"
#include "support/textbook_coordinate_descent.h"
#include "support/tolerance.h"

namespace weir::nn {
namespace {

using Options = CoordinateDescentFeedForwardOptions;

const Named<Options> kCases[] = {
    {"gelu", {.dim = 6, .mult = 3.5}},
    {"iterative", {.dim = 6, .use_coor_descent = true}},
    {"iterative_one_eps",
     {.dim = 6,
      .mult = 2,
      .use_coor_descent = true,
      .coor_descent_iters = 4,
      .coor_descent_sparsity_k = 3.5,
      .coor_descent_eps = 0.5,
      .coor_descent_eps_init = std::nullopt}},
    {"exact",
     {.dim = 6,
      .use_coor_descent = true,
      .coor_descent_sparsity_k = 5,
      .coor_descent_solver = "exact"}},
    {"gated",
     {.dim = 6, .use_coor_descent = true, .coor_descent_sparsity_k = 5, .coor_descent_gate = true}},
};

// The activation of one row, in scalar double.
std::vector<double> plain_activation(const Options& options, const std::vector<double>& hidden) {
  const double k =
      options.coor_descent_sparsity_k.value_or(static_cast<double>(hidden.size() / 10));
  const tests::TextbookRow row = {hidden, std::vector<bool>(hidden.size(), true), k};
  const double eps = options.coor_descent_eps;
  std::vector<double> result(hidden.size());
  if (!options.use_coor_descent) {
    for (std::size_t j = 0; j < hidden.size(); ++j) {
      result[j] = hidden[j] * 0.5 * (1 + std::erf(hidden[j] / std::sqrt(2.0)));
    }
  } else if (options.coor_descent_solver == "exact") {
    const double c = tests::textbook_exact_threshold(row, eps);
    for (std::size_t j = 0; j < hidden.size(); ++j) {
      result[j] = std::exp(std::min(hidden[j] - c, 0.0) / eps);
    }
  } else {
    result = tests::textbook_forward(
                 row, tests::textbook_schedule(options.coor_descent_iters, eps,
                                               options.coor_descent_eps_init.value_or(eps),
                                               options.coor_descent_eps_decay))
                 .weights;
  }
  for (std::size_t j = 0; options.coor_descent_gate && j < hidden.size(); ++j) {
    result[j] *= hidden[j];
  }
  return result;
}

at::Tensor plain_feed_forward(const CoordinateDescentFeedForwardImpl& layer, const at::Tensor& x) {
  torch::NoGradGuard no_grad;
  const auto parameters = layer.named_parameters();
  const at::Tensor normed = at::layer_norm(x, {layer.options.dim}, parameters["proj_in.0.weight"],
                                           parameters["proj_in.0.bias"]);
  const at::Tensor hidden =
      normed.matmul(parameters["proj_in.1.weight"].t()) + parameters["proj_in.1.bias"];
  at::Tensor activated = at::empty_like(hidden);
  for (std::int64_t i = 0; i < hidden.size(0); ++i) {
    const at::Tensor row = hidden[i].contiguous();
    const double* begin = row.const_data_ptr<double>();
    activated[i] = at::tensor(plain_activation(layer.options, {begin, begin + row.numel()}));
  }
  return activated.matmul(parameters["proj_out.weight"].t()) + parameters["proj_out.bias"];
}

class FeedForwardMode : public ::testing::TestWithParam<Named<Options>> {
 protected:
  FeedForwardMode() {
    torch::manual_seed(1);
    layer_ = CoordinateDescentFeedForward(GetParam().options);
    randomise(*layer_);
  }
  CoordinateDescentFeedForward layer_{nullptr};
};

TEST_P(FeedForwardMode, IsTheFormula) {
  layer_->to(at::kDouble);
  const at::Tensor x = at::randn({7, 6}, at::kDouble);
  EXPECT_LE(distance(layer_(x), plain_feed_forward(*layer_, x)), tests::kFloat64.weights);
  const at::Tensor folded = layer_(x.view({1, 7, 6}));
  EXPECT_LE(distance(folded[0], layer_(x)), tests::kFloat64.weights);
}

TEST_P(FeedForwardMode, GradientsAreRight) {
  layer_->to(at::kDouble);
  const at::Tensor x = at::randn({2, 3, 6}, at::kDouble).requires_grad_();
  const at::Tensor probe = at::randn({2, 3, 6}, at::kDouble);
  std::vector<at::Tensor> inputs = layer_->parameters();
  inputs.push_back(x);
  expect_directional_gradients([&] { return (layer_(x) * probe).sum(); }, inputs);
}

TEST_P(FeedForwardMode, GradientsReachEveryParameter) {
  layer_(at::randn({4, 6})).square().sum().backward();
  expect_gradients_everywhere(*layer_);
}

TEST_P(FeedForwardMode, CopiesAgree) {
  expect_copies_agree(layer_, CoordinateDescentFeedForward(GetParam().options), at::randn({3, 6}));
}

TEST_P(FeedForwardMode, RunsInEveryFloatingType) {
  const at::Tensor x = at::randn({3, 6});
  const at::Tensor expected = layer_(x);
  for (const auto dtype : {at::kDouble, at::kBFloat16, at::kHalf}) {
    layer_->to(dtype);
    const at::Tensor out = layer_(x.to(dtype));
    EXPECT_EQ(out.scalar_type(), dtype);
    EXPECT_LE(distance(out, expected), 0.1);  // no more than: the same computation
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, FeedForwardMode, ::testing::ValuesIn(kCases));

TEST(CoordinateDescentFeedForward, HasThePublishedNames) {
  CoordinateDescentFeedForward layer({.dim = 6});
  EXPECT_THAT(parameter_names(*layer),
              ::testing::ElementsAre("proj_in.0.weight", "proj_in.0.bias", "proj_in.1.weight",
                                     "proj_in.1.bias", "proj_out.weight", "proj_out.bias"));
  EXPECT_EQ(layer->proj_out->weight.sizes(), at::IntArrayRef({6, 24}));
}

TEST(CoordinateDescentFeedForward, PrintsItsOptions) {
  EXPECT_THAT(printed(CoordinateDescentFeedForward(Options{.dim = 6})),
              ::testing::StartsWith("weir::nn::CoordinateDescentFeedForward(dim=6, hidden=24)("));
  EXPECT_THAT(printed(CoordinateDescentFeedForward(Options{.dim = 10, .use_coor_descent = true})),
              ::testing::HasSubstr("coor_descent_sparsity_k=4, coor_descent_solver=iterative"));
}

TEST(CoordinateDescentFeedForward, RefusesWhatDoesNotFit) {
  const auto refuses = [](const Options& options, const std::string& words) {
    expect_refusal([&] { CoordinateDescentFeedForward layer(options); },
                   "weir::CoordinateDescentFeedForward: " + words);
  };
  refuses({.dim = 0}, "expected `dim` to be at least 1, but got 0.");
  refuses({.dim = 8, .mult = -1},
          "expected `dim` * `mult` to lie in [1, 1073741824], but got 8 * -1.");
  refuses({.dim = 1 << 30, .mult = 1e300},
          "expected `dim` * `mult` to lie in [1, 1073741824], but got 1073741824 * 1e+300.");
  refuses({.dim = 2, .mult = 0.25},
          "expected `dim` * `mult` to lie in [1, 1073741824], but got 2 * 0.25.");
  refuses({.dim = 8, .coor_descent_sparsity_k = -2},
          "expected `coor_descent_sparsity_k` to be finite and positive, but got -2.");
  refuses({.dim = 8, .coor_descent_iters = 0},
          "expected `coor_descent_iters` to be at least 1, but got 0.");
  CoordinateDescentFeedForward layer({.dim = 8});
  expect_refusal(
      [&] {
        layer(at::randn({2, 7}));
      },
      "weir::CoordinateDescentFeedForward: expected the last dimension of `x` to be 8, "
      "but got [2, 7].");
}

}  // namespace
}  // namespace weir::nn
