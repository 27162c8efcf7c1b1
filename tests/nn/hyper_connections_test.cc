// SPDX-License-Identifier: Apache-2.0
// Hyper-connections: the formula token by token, a plain residual with one stream, names, copies.
#include "weir/nn/hyper_connections.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <set>

#include "nn/module_contract.h"
#include "support/tolerance.h"
#include "weir/nn/local_feed_forward.h"

namespace weir::nn {
namespace {

constexpr std::int64_t kDim = 5;

HyperConnections connection(const HyperConnectionsOptions& options) {
  HyperConnections module(options, LocalFeedForward({.dim = kDim}).ptr());
  randomise(*module);
  return module;
}

at::Tensor run(HyperConnections module, const at::Tensor& streams) {
  return module->around(streams, [&](const at::Tensor& input) {
    return module->branch->as<LocalFeedForward>()->forward(input);
  });
}

/// The streams (S, dim) of one token after the layer.
at::Tensor textbook(const HyperConnections& module, const at::Tensor& r) {
  const std::int64_t count = r.size(0);
  const auto bounded = [&](const at::Tensor& x) { return module->options.tanh ? x.tanh() : x; };
  std::vector<at::Tensor> alpha, beta;
  for (std::int64_t s = 0; s < count; ++s) {
    const at::Tensor normed =
        r[s] / r[s].norm() * std::sqrt(kDim) * (module->norm->gamma + 1);  // (dim)
    alpha.push_back(bounded(normed.matmul(module->dynamic_alpha_fn)) * module->dynamic_alpha_scale +
                    module->static_alpha[s]);
    beta.push_back(bounded(normed.dot(module->dynamic_beta_fn)) * module->dynamic_beta_scale +
                   module->static_beta[s]);
  }
  const auto mixed = [&](std::int64_t column) {
    at::Tensor sum = at::zeros({kDim}, r.options());
    for (std::int64_t s = 0; s < count; ++s) sum = sum + alpha[s][column] * r[s];
    return sum;
  };
  const at::Tensor output = module->branch->as<LocalFeedForward>()->forward(mixed(0));
  std::vector<at::Tensor> after;
  for (std::int64_t t = 0; t < count; ++t) after.push_back(mixed(1 + t) + beta[t] * output);
  return at::stack(after);
}

TEST(HyperConnections, IsTheFormula) {
  torch::manual_seed(1);
  for (const std::int64_t count : {2, 3, 4}) {
    for (const bool tanh : {true, false}) {
      auto module = connection({.num_residual_streams = count, .dim = kDim, .tanh = tanh});
      module->to(at::kDouble);
      const at::Tensor streams = at::randn({2 * count, 3, kDim}, at::kDouble);
      const at::Tensor after = run(module, streams);
      for (std::int64_t b = 0; b < 2; ++b) {
        for (std::int64_t n = 0; n < 3; ++n) {
          const auto token = [&](const at::Tensor& x) {
            return x.slice(0, b * count, (b + 1) * count).select(1, n);
          };
          EXPECT_LE(distance(token(after), textbook(module, token(streams))),
                    tests::kFloat64.weights);
        }
      }
    }
  }
}

TEST(HyperConnections, TokensMayHaveAnyNumberOfSizes) {
  torch::manual_seed(1);
  auto module = connection({.num_residual_streams = 2, .dim = kDim});
  const at::Tensor streams = at::randn({4, 2, 3, kDim});
  EXPECT_LE(distance(run(module, streams).flatten(1, 2), run(module, streams.flatten(1, 2))),
            tests::kFloat32.weights);
}

TEST(HyperConnections, BeginsAsAResidualOfTheStreamItReads) {
  HyperConnections module({.num_residual_streams = 3, .dim = kDim, .layer_index = 4});
  const at::Tensor streams = at::randn({3, 2, kDim});
  const auto width = module->width(streams);
  EXPECT_LE(distance(width.input[0], streams[1]), 0);
  EXPECT_LE(distance(width.mixed, streams), 0);
  const at::Tensor output = at::randn({1, 2, kDim});
  EXPECT_LE(distance(module->depth(output, width), streams + output), 0);
}

TEST(HyperConnections, ReadsARandomStreamUnlessTold) {
  torch::manual_seed(1);
  std::set<std::int64_t> read;
  for (int repeat = 0; repeat < 40; ++repeat) {
    HyperConnections module({.num_residual_streams = 4, .dim = kDim});
    const at::Tensor column = module->static_alpha.select(1, 0);
    EXPECT_EQ(column.sum().item<double>(), 1);
    read.insert(column.argmax().item<std::int64_t>());
  }
  EXPECT_EQ(read.size(), 4);
}

TEST(HyperConnections, OneStreamIsAPlainResidual) {
  auto module = connection({.num_residual_streams = 1, .dim = kDim});
  EXPECT_THAT(parameter_names(*module),
              ::testing::ElementsAre("branch.0.weight", "branch.0.bias", "branch.1.weight",
                                     "branch.4.weight"));
  const at::Tensor x = at::randn({2, 3, kDim});
  EXPECT_LE(distance(run(module, x), x + module->branch->as<LocalFeedForward>()->forward(x)), 0);
  EXPECT_TRUE(expand_streams(x, 1).equal(x));
  EXPECT_TRUE(reduce_streams(x, 1).equal(x));
}

TEST(HyperConnections, StreamsOfARowAreSideBySide) {
  const at::Tensor x = at::randn({2, 3, kDim});
  const at::Tensor streams = expand_streams(x, 4);
  for (std::int64_t row = 0; row < 8; ++row) EXPECT_TRUE(streams[row].equal(x[row / 4]));
  const at::Tensor others = at::randn({8, 3, kDim}, at::kDouble);
  EXPECT_LE(distance(reduce_streams(others, 4)[1], others.slice(0, 4).sum(0)),
            tests::kFloat64.weights);
}

TEST(HyperConnections, NamesGradientsAndCopies) {
  torch::manual_seed(1);
  auto module = connection({.num_residual_streams = 3, .dim = kDim});
  EXPECT_THAT(parameter_names(*module),
              ::testing::UnorderedElementsAre(
                  "static_alpha", "dynamic_alpha_fn", "dynamic_alpha_scale", "static_beta",
                  "dynamic_beta_fn", "dynamic_beta_scale", "norm.gamma", "branch.0.weight",
                  "branch.0.bias", "branch.1.weight", "branch.4.weight"));
  const at::Tensor x = at::randn({3, 4, kDim});
  const at::Tensor expected = run(module, x);
  expected.square().sum().backward();
  expect_gradients_everywhere(*module);
  HyperConnections clone(std::dynamic_pointer_cast<HyperConnectionsImpl>(module->clone()));
  EXPECT_TRUE(run(clone, x).equal(expected));
  torch::NoGradGuard no_grad;
  for (auto& parameter : clone->parameters()) parameter.zero_();
  EXPECT_TRUE(run(module, x).equal(expected)) << "the clone shares memory";
}

TEST(HyperConnections, Messages) {
  const auto refuses = [](const HyperConnectionsOptions& options, const std::string& words) {
    expect_refusal([&] { HyperConnections module(options); }, "weir::HyperConnections: " + words);
  };
  refuses({.num_residual_streams = 0, .dim = 2},
          "expected `num_residual_streams` to be at least 1, but got 0.");
  refuses({}, "expected `dim` to be at least 1, but got 0.");
  refuses({.dim = 2, .layer_index = -1}, "expected `layer_index` to be at least 0, but got -1.");
  refuses({.dim = 2, .dropout = -0.5}, "expected `dropout` to lie in [0, 1), but got -0.5.");
  HyperConnections module({.num_residual_streams = 2, .dim = 3});
  expect_refusal(
      [&] {
        module->width(at::zeros({3, 4, 3}));
      },
      "weir::HyperConnections: expected streams of shape [batch * 2, ..., 3], but got "
      "[3, 4, 3].");
}

}  // namespace
}  // namespace weir::nn
