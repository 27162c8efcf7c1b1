// SPDX-License-Identifier: Apache-2.0
// LocalAttention: equal to the formula written out pair by pair, the receptive fields of the
// published package, masks, leading sizes, messages.
#include "weir/nn/local_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "nn/module_contract.h"
#include "support/tolerance.h"

namespace weir::nn {
namespace {

using Options = LocalAttentionOptions;

// Rotary frequencies are float32, as in the published state dicts: 6e-8 of an angle, over distances
// up to 13.
constexpr double kFormula = 1e-6;

bool sees(const Options& o, std::int64_t i, std::int64_t j) {
  const std::int64_t w = o.window_size, ahead = o.look_forward.value_or(o.causal ? 0 : 1) * w;
  if (o.causal && j > i) return false;
  if (o.exact_windowsize) return j >= i - o.look_backward * w && j <= i + ahead;
  return j / w >= i / w - o.look_backward && j / w <= i / w + ahead / w;
}

/// The logit of query `q` at i and key `k` at j, (dim) each, without a bias.
double logit(const Options& o, const at::Tensor& q, const at::Tensor& k, std::int64_t i,
             std::int64_t j) {
  const std::int64_t dim = q.size(0);
  const double scale = o.scale.value_or(1 / std::sqrt(dim));
  if (o.shared_qk && i == j) return -5e4;
  const at::Tensor key = o.shared_qk ? k / k.norm() : k;
  if (!o.dim || !o.use_rotary_pos_emb) return scale * q.dot(key).item<double>();
  const double base = o.xpos_scale_base.value_or(static_cast<double>(o.window_size / 2));
  double sum = 0;
  for (std::int64_t p = 0; p < dim / 2; ++p) {
    // A plane turned by (i - j) w, scaled by zeta^((i - j) / base).
    const auto at = [&](const at::Tensor& x, std::int64_t index) {
      return x[index].item<double>();
    };
    const double a = at(q, p), b = at(q, p + dim / 2), c = at(key, p), d = at(key, p + dim / 2);
    const auto distance = static_cast<double>(i - j);
    const double angle = distance * std::pow(10000.0, -2.0 * p / dim);
    const double zeta = (2.0 * p + 0.4 * dim) / (1.4 * dim);
    const double factor = o.use_xpos ? std::pow(zeta, distance / base) : 1;
    sum += factor * ((a * c + b * d) * std::cos(angle) + (a * d - b * c) * std::sin(angle));
  }
  return scale * sum;
}

/// (batch, heads, n, dim) with a key mask (batch, n) and a bias by slots.
at::Tensor textbook(const Options& o, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                    const at::Tensor& mask, const at::Tensor& bias) {
  at::Tensor out = at::zeros_like(v);
  const std::int64_t w = o.window_size;
  for (std::int64_t b = 0; b < q.size(0); ++b) {
    for (std::int64_t h = 0; h < q.size(1); ++h) {
      for (std::int64_t i = 0; i < q.size(2); ++i) {
        double total = 0;
        for (std::int64_t j = 0; j < q.size(2); ++j) {
          if (!sees(o, i, j) || !mask[b][j].item<bool>()) continue;
          double s = logit(o, q[b][h][i], k[b][h][j], i, j);
          if (bias.defined() && !(o.shared_qk && i == j)) {
            s += bias[h][i % w][j - (i / w - o.look_backward) * w].item<double>();
          }
          total += std::exp(s);
          out[b][h][i].add_(v[b][h][j], std::exp(s));
        }
        if (total > 0) out[b][h][i].div_(total);
      }
    }
  }
  return out;
}

const Named<Options> kCases[] = {
    {"defaults", {.window_size = 4, .autopad = true}},
    {"rotary_looking_forward", {.window_size = 4, .dim = 6, .autopad = true}},
    {"exact", {.window_size = 3, .dim = 6, .autopad = true, .exact_windowsize = true}},
    {"wide", {.window_size = 3, .look_backward = 0, .look_forward = 2, .dim = 6, .autopad = true}},
    {"causal", {.window_size = 4, .causal = true, .dim = 6, .autopad = true, .scale = 0.7}},
    {"causal_exact",
     {.window_size = 4,
      .causal = true,
      .look_backward = 2,
      .autopad = true,
      .exact_windowsize = true}},
    {"xpos", {.window_size = 4, .causal = true, .dim = 6, .autopad = true, .use_xpos = true}},
    {"xpos_base",
     {.window_size = 4, .dim = 6, .autopad = true, .use_xpos = true, .xpos_scale_base = 7}},
    {"old_config",
     {.window_size = 4, .causal = true, .rel_pos_emb_config = {6, 2}, .dim = 4, .autopad = true}},
    {"no_rotary", {.window_size = 4, .dim = 6, .autopad = true, .use_rotary_pos_emb = false}},
};

class LocalAttentionMode : public ::testing::TestWithParam<Named<Options>> {
 protected:
  LocalAttentionMode() {
    torch::manual_seed(1);
    module_->to(at::kDouble);
  }
  Options options_ = GetParam().options;
  LocalAttention module_{options_};
};

TEST_P(LocalAttentionMode, IsTheFormula) {
  Options formula = options_;
  if (!formula.rel_pos_emb_config.empty()) formula.dim = formula.rel_pos_emb_config.front();
  const std::int64_t w = options_.window_size;
  const std::int64_t span =
      (options_.look_backward + 1 + options_.look_forward.value_or(options_.causal ? 0 : 1)) * w;
  for (const std::int64_t n : {1, 8, 13}) {
    const at::Tensor q = at::randn({2, 3, n, 6}, at::kDouble), k = at::randn_like(q),
                     v = at::randn_like(q), bias = at::randn({3, w, span}, at::kDouble);
    const at::Tensor all = at::ones({2, n}, at::kBool);
    at::Tensor mask = at::rand({2, n}) > 0.4;
    mask[1].fill_(false);
    EXPECT_LE(distance(module_(q, k, v), textbook(formula, q, k, v, all, {})), kFormula) << n;
    EXPECT_LE(
        distance(module_->forward(q, k, v, {.mask = mask}), textbook(formula, q, k, v, mask, {})),
        kFormula);
    EXPECT_LE(distance(module_->forward(q, k, v, {.input_mask = mask, .attn_bias = bias}),
                       textbook(formula, q, k, v, mask, bias)),
              kFormula);
  }
}

TEST_P(LocalAttentionMode, LeadingSizesAreBatchTimesHeads) {
  const at::Tensor q = at::randn({2, 3, 9, 6}, at::kDouble), k = at::randn_like(q),
                   v = at::randn_like(q);
  const at::Tensor mask = at::rand({2, 9}) > 0.4;
  const auto flat = [](const at::Tensor& x) { return x.flatten(0, 1); };
  const LocalAttentionInputs masked = {.mask = mask};
  EXPECT_LE(distance(module_->forward(flat(q), flat(k), flat(v), masked),
                     flat(module_->forward(q, k, v, masked))),
            tests::kFloat64.weights);
  EXPECT_LE(distance(module_(q[0][1], k[0][1], v[0][1]), module_(q, k, v)[0][1]),
            tests::kFloat64.weights);
}

INSTANTIATE_TEST_SUITE_P(Modes, LocalAttentionMode, ::testing::ValuesIn(kCases));

/// The keys that a query at i sees, as 1 and 0.
at::Tensor field_of(const Options& options, std::int64_t i) {
  const at::Tensor zero = at::zeros({128, 2}), eye = at::eye(128);
  return LocalAttention(options)(zero, zero, eye)[i] > 0;
}

TEST(LocalAttention, SeesWhatThePublishedOneSees) {
  const auto expect = [](const Options& options, std::int64_t i, std::int64_t first,
                         std::int64_t last) {
    const at::Tensor keys = at::arange(128);
    EXPECT_TRUE(field_of(options, i).equal((keys >= first) & (keys <= last))) << i;
  };
  expect({.window_size = 16, .causal = true, .exact_windowsize = true}, 50, 34, 50);
  expect({.window_size = 16, .causal = true}, 50, 32, 50);
  expect({.window_size = 16, .causal = true}, 64, 48, 64);
  expect({.window_size = 16, .exact_windowsize = true}, 64, 48, 80);
  expect({.window_size = 16}, 64, 48, 95);
}

TEST(LocalAttention, SharedQkAttendsToItselfOnlyAlone) {
  torch::manual_seed(1);
  const Options options = {.window_size = 4, .causal = true, .shared_qk = true, .autopad = true};
  LocalAttention module(options);
  const at::Tensor q = at::randn({1, 1, 7, 6}, at::kDouble), v = at::randn_like(q);
  const at::Tensor out = module(q, q, v);
  EXPECT_LE(distance(out[0][0][0], v[0][0][0]), tests::kFloat64.weights);
  at::Tensor others = textbook(options, q, q, v, at::ones({1, 7}, at::kBool), {});
  EXPECT_LE(distance(out.slice(2, 1), others.slice(2, 1)), kFormula);
}

TEST(LocalAttention, AnotherWindowForOneCall) {
  torch::manual_seed(1);
  Options options = {.window_size = 4, .causal = true, .dim = 6, .use_xpos = true};
  LocalAttention module(options);
  module->to(at::kDouble);
  const at::Tensor q = at::randn({1, 1, 12, 6}, at::kDouble), v = at::randn_like(q);
  options.window_size = 6;
  options.xpos_scale_base = 2;  // that of the module
  EXPECT_LE(distance(module->forward(q, q, v, {.window_size = 6}),
                     textbook(options, q, q, v, at::ones({1, 12}, at::kBool), {})),
            kFormula);
}

TEST(LocalAttention, DropsOnlyInTraining) {
  torch::manual_seed(1);
  LocalAttention module({.window_size = 4, .dropout = 0.5});
  const at::Tensor q = at::randn({2, 8, 6});
  EXPECT_FALSE(module(q, q, q).equal(module(q, q, q)));
  module->eval();
  EXPECT_TRUE(module(q, q, q).equal(module(q, q, q)));
  EXPECT_LE(distance(module(q, q, q), LocalAttention({.window_size = 4})(q, q, q)), 0);
}

TEST(LocalAttention, HalfPrecisionKeepsItsFrequencies) {
  LocalAttention module({.window_size = 4, .dim = 64});
  const at::Tensor before = module->rel_pos->inv_freq.clone();
  module->to(at::kBFloat16);
  EXPECT_TRUE(module->rel_pos->frequencies().equal(before));
  EXPECT_FALSE(module->rel_pos->inv_freq.to(at::kFloat).equal(before));
}

TEST(LocalAttention, CloneNamesAndPrint) {
  LocalAttention module({.window_size = 4, .causal = true, .dim = 6});
  EXPECT_THAT(module->named_buffers().keys(), ::testing::ElementsAre("rel_pos.inv_freq"));
  EXPECT_TRUE(LocalAttention({.window_size = 4})->named_buffers().is_empty());
  const auto copy = std::dynamic_pointer_cast<LocalAttentionImpl>(module->clone());
  const at::Tensor q = at::randn({2, 8, 6});
  EXPECT_TRUE(copy->forward(q, q, q).equal(module(q, q, q)));
  EXPECT_THAT(printed(module),
              ::testing::StartsWith("weir::nn::LocalAttention(window_size=4, causal=true, "
                                    "exact_windowsize=false, rotary=true)"));
}

TEST(LocalAttention, Messages) {
  const auto refuses = [](const Options& options, const std::string& words) {
    expect_refusal([&] { LocalAttention module(options); }, "weir::LocalAttention: " + words);
  };
  refuses({}, "expected `window_size` to be at least 1, but got 0.");
  refuses({.window_size = 2, .causal = true, .look_forward = 1},
          "expected `look_forward` 0 with `causal`, but got 1.");
  refuses({.window_size = 2, .look_backward = -1},
          "expected `look_backward` to be at least 0, but got -1.");
  refuses({.window_size = 2, .dropout = 1}, "expected `dropout` to lie in [0, 1), but got 1.");
  refuses({.window_size = 2, .dim = 5},
          "expected `dim` to be even for the rotary embedding, but got 5.");
  refuses({.window_size = 1, .dim = 4, .use_xpos = true},
          "expected `xpos_scale_base` to be finite and positive, but got 0.");
  LocalAttention module({.window_size = 4});
  const at::Tensor q = at::randn({2, 6, 4});
  expect_refusal([&] { module(q, q, q); },
                 "weir::LocalAttention: expected n to be a multiple of `window_size`, 4, but got "
                 "6. With `autopad` any n will do.");
  expect_refusal([&] { module->forward(q, q, q, {.window_size = 6}); },
                 "weir::LocalAttention: expected `window_size` only with `use_xpos`, but got 6.");
  expect_refusal([&] { module(q, q[0], q); },
                 "weir::LocalAttention: expected `k` to have the sizes of `q` but the last, [2, 6, "
                 "4], but got [6, 4].");
}

}  // namespace
}  // namespace weir::nn
