// SPDX-License-Identifier: Apache-2.0
// ConditionalRoutedImageAttention: equal to its parts put together by hand, place by place; few
// places, padding, budgets per entry, entries of a batch apart, gradients, names, messages.
#include "weir/nn/conditional_routed_image_attention.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <vector>

#include "nn/module_contract.h"
#include "support/tolerance.h"

namespace weir::nn {
namespace {

using Options = ConditionalRoutedImageAttentionOptions;
using Case = Named<Options>;
using torch::indexing::Slice;

constexpr std::int64_t kBatch = 2, kHeight = 4, kWidth = 6, kDim = 8, kWindow = 2;

const Options kPlain = {.dim = kDim,
                        .num_heavy_tokens_q = 3,
                        .num_heavy_tokens_kv = 2,
                        .light_dim_head = 4,
                        .light_heads = 2,
                        .light_window_size = kWindow,
                        .heavy_dim_head = 4,
                        .heavy_heads = 6,
                        .router_kwargs = {.eps = 1}};

Options with(void (*change)(Options&)) {
  Options options = kPlain;
  change(options);
  return options;
}

const Case kCases[] = {
    {"global", kPlain},
    {"window", with([](Options& o) { o.routing = "window"; })},
    {"global_soft_routes", with([](Options& o) {
       o.num_routed_kv = 3, o.router_straight_through = false;
       o.multiply_keys_by_score = o.multiply_queries_by_score = true;
     })},
    {"window_routes_without_null", with([](Options& o) {
       o.routing = "window", o.num_routed_kv = 2, o.use_null_q_tokens = false;
     })},
    {"global_all_queries", with([](Options& o) { o.num_heavy_tokens_q = kHeight * kWidth; })},
    {"window_all", with([](Options& o) {
       o.routing = "window", o.num_heavy_tokens_q = kWindow * kWindow, o.num_heavy_tokens_kv = 9;
     })},
};

at::Tensor some_map() { return 0.3 * at::randn({kBatch, kHeight, kWidth, kDim}, at::kDouble); }

at::Tensor some_mask() {
  at::Tensor mask = at::ones({kBatch, kHeight, kWidth}, at::kBool);
  mask.index_put_({1, Slice(), Slice(3)}, false);
  return mask;
}

class ImageMode : public ::testing::TestWithParam<Case> {
 protected:
  ImageMode() {
    torch::manual_seed(3);
    module_ = made(GetParam().options);
  }
  static ConditionalRoutedImageAttention made(const Options& options) {
    ConditionalRoutedImageAttention module(options);
    randomise(*module);
    module->to(at::kDouble);
    return module;
  }
  /// What the heavy branch gives for `tokens` (1, n, dim) routed together.
  at::Tensor heavy(const at::Tensor& tokens, const std::optional<at::Tensor>& mask) {
    const Options& o = GetParam().options;
    const auto q = module_->q_router->forward(tokens, o.num_heavy_tokens_q, {.mask = mask}),
               kv = module_->kv_router->forward(tokens, o.num_heavy_tokens_kv, {.mask = mask});
    HeavyAttentionInputs inputs = {
        .context = kv.routed_tokens, .mask = kv.routed_mask, .normalized_scores_kv = kv.scores};
    if (o.multiply_queries_by_score) inputs.normalized_scores_q = q.scores;
    const at::Tensor rows =
        module_->heavy_attn->forward(q.routed_tokens, inputs) * q.scores.unsqueeze(-1);
    if (!q.indices) return rows;
    at::Tensor out = at::zeros_like(tokens);
    if (o.use_null_q_tokens) out = out + module_->null_q_token;
    for (std::int64_t i = 0; i < rows.size(1); ++i) {
      out[0][(*q.indices)[0][i].item<std::int64_t>()] = rows[0][i];
    }
    return out;
  }
  ConditionalRoutedImageAttention module_{nullptr};
};

TEST_P(ImageMode, IsTheSumOfItsParts) {
  const bool by_window = GetParam().options.routing == "window";
  const at::Tensor x = some_map();
  for (const bool masked : {false, true}) {
    const auto mask = masked ? std::optional(some_mask()) : std::nullopt;
    at::Tensor expected = at::zeros_like(x);
    for (std::int64_t b = 0; b < kBatch; ++b) {
      const auto of_mask = [&](const auto& places) {
        return mask ? std::optional((*mask)[b].index(places).reshape({1, -1})) : std::nullopt;
      };
      for (std::int64_t i = 0; i < kHeight; i += kWindow) {
        for (std::int64_t j = 0; j < kWidth; j += kWindow) {
          const std::vector<at::indexing::TensorIndex> places = {Slice(i, i + kWindow),
                                                                 Slice(j, j + kWindow)};
          const at::Tensor tokens = x[b].index(places).reshape({1, -1, kDim});
          at::Tensor part = module_->light_attn->forward(tokens, {.mask = of_mask(places)});
          if (by_window) part = part + heavy(tokens, of_mask(places));
          expected[b].index_put_(places, part.view({kWindow, kWindow, kDim}));
        }
      }
      if (by_window) continue;
      const std::vector<at::indexing::TensorIndex> all = {Slice(), Slice()};
      expected[b] += heavy(x[b].reshape({1, -1, kDim}), of_mask(all)).view({kHeight, kWidth, kDim});
    }
    EXPECT_LE(distance(module_->forward(x, {.mask = mask}), expected), tests::kFloat64.weights);
  }
}

TEST_P(ImageMode, ChannelsMayComeFirst) {
  Options options = GetParam().options;
  options.channel_first = true;
  auto first = made(options);
  torch::NoGradGuard no_grad;
  auto from = module_->named_parameters();
  for (auto& item : first->named_parameters()) item.value().copy_(from[item.key()]);
  const at::Tensor x = some_map(), mask = some_mask();
  const at::Tensor out = first->forward(x.permute({0, 3, 1, 2}).contiguous(), {.mask = mask});
  EXPECT_TRUE(out.permute({0, 2, 3, 1}).equal(module_->forward(x, {.mask = mask})));
}

TEST_P(ImageMode, EmptyMapsAndBatches) {
  const std::vector<std::int64_t> shapes[] = {
      {0, kHeight, kWidth, kDim}, {2, 0, kWidth, kDim}, {2, 2, 0, kDim}};
  for (const auto& shape : shapes) {
    EXPECT_EQ(module_(at::randn(shape, at::kDouble)).sizes(), shape);
  }
}

TEST_P(ImageMode, EntriesOfABatchAreIndependent) {
  const at::Tensor x = some_map().requires_grad_();
  const at::Tensor out = module_(x);
  EXPECT_LE(distance(out[1], module_(x.narrow(0, 1, 1))[0]), tests::kFloat64.weights);
  const auto grad = torch::autograd::grad({out[1].square().sum()}, {x})[0];
  EXPECT_EQ(grad[0].abs().max().item<double>(), 0);
  EXPECT_GT(grad[1].abs().max().item<double>(), 0);
}

TEST_P(ImageMode, PaddingIsNeverRead) {
  const at::Tensor x = some_map();
  at::Tensor mask = some_mask();
  mask[0].fill_(false);
  const at::Tensor expected = module_->forward(x, {.mask = mask});
  const at::Tensor other = at::where(mask.unsqueeze(-1), x, at::randn_like(x));
  EXPECT_TRUE(module_->forward(other, {.mask = mask}).index({mask}).equal(expected.index({mask})));
}

TEST_P(ImageMode, NumbersOfACallReplaceTheOptions) {
  const at::Tensor x = some_map();
  const auto separately = [&](std::int64_t b, std::int64_t q, std::int64_t kv) {
    return module_->forward(x.narrow(0, b, 1),
                            {.num_heavy_tokens_q = q, .num_heavy_tokens_kv = kv});
  };
  const at::Tensor expected = at::cat({separately(0, 2, 3), separately(1, 1, 2)});
  EXPECT_FALSE(expected.allclose(module_(x)));
  const at::Tensor q = torch::tensor({2, 1}, at::kLong), kv = torch::tensor({3, 2}, at::kLong);
  const at::Tensor together =
      module_->forward(x, {.num_heavy_tokens_q = q, .num_heavy_tokens_kv = kv});
  EXPECT_LE(distance(together, expected), tests::kFloat64.weights);
}

TEST_P(ImageMode, GradientsReachWhatIsUsed) {
  const Options& o = GetParam().options;
  const std::int64_t n = o.routing == "window" ? kWindow * kWindow : kHeight * kWidth;
  module_(some_map()).square().sum().backward();
  for (const auto& item : module_->named_parameters()) {
    const bool idle = (o.num_heavy_tokens_q >= n && item.key() == "q_router.routing_token") ||
                      (o.num_heavy_tokens_q >= n && item.key() == "null_q_token") ||
                      (o.num_heavy_tokens_kv >= n && item.key() == "kv_router.routing_token");
    const at::Tensor gradient = item.value().grad();
    const bool reached = gradient.defined() && gradient.abs().max().item<double>() > 0;
    EXPECT_EQ(reached, !idle) << item.key();
  }
}

TEST_P(ImageMode, CopiesAgree) {
  expect_copies_agree(module_, made(GetParam().options), some_map());
}

INSTANTIATE_TEST_SUITE_P(Modes, ImageMode, ::testing::ValuesIn(kCases));

TEST(ConditionalRoutedImageAttention, HasThePublishedNames) {
  EXPECT_THAT(parameter_names(*ConditionalRoutedImageAttention(kPlain)),
              ::testing::UnorderedElementsAre(
                  "null_q_token", "light_attn.norm.gamma", "light_attn.to_qkv.weight",
                  "light_attn.to_out.weight", "q_router.routing_token", "kv_router.routing_token",
                  "heavy_attn.null_kv", "heavy_attn.norm.gamma", "heavy_attn.to_q.weight",
                  "heavy_attn.to_kv.weight", "heavy_attn.to_out.weight"));
}

TEST(ConditionalRoutedImageAttention, RunsInSixteenBits) {
  torch::manual_seed(4);
  ConditionalRoutedImageAttention module(kPlain);
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    module->to(dtype);
    const at::Tensor out = module(some_map().to(dtype));
    EXPECT_EQ(out.scalar_type(), dtype);
    EXPECT_TRUE(out.isfinite().all().item<bool>());
  }
}

TEST(ConditionalRoutedImageAttention, RefusesWhatDoesNotFit) {
  const std::string name = "weir::ConditionalRoutedImageAttention: expected ";
  const auto refuses = [&](void (*change)(Options&), const std::string& words) {
    const Options options = with(change);
    expect_refusal([&] { ConditionalRoutedImageAttention module(options); }, name + words);
  };
  refuses([](Options& o) { o.num_heavy_tokens_q = 0; },
          "`num_heavy_tokens_q` to be at least 1, but got 0.");
  refuses([](Options& o) { o.light_window_size = 0; },
          "`light_window_size` to be at least 1, but got 0.");
  refuses([](Options& o) { o.num_routed_kv = 4; },
          "`num_routed_kv` to divide `heavy_heads`, 6, but got 4.");
  refuses([](Options& o) { o.routing = "windows"; },
          "`routing` to be \"global\" or \"window\", but got \"windows\".");
  ConditionalRoutedImageAttention module(kPlain);
  const auto refuses_map = [&](at::IntArrayRef shape, const std::string& words) {
    expect_refusal([&] { module(at::randn(shape)); }, name + words);
  };
  refuses_map({2, 4, 8}, "`x` to have shape [batch, height, width, 8], but got [2, 4, 8].");
  refuses_map({2, 4, 4, 7}, "`x` to have shape [batch, height, width, 8], but got [2, 4, 4, 7].");
  refuses_map({2, 4, 5, 8},
              "height and width of `x` to be multiples of `light_window_size`, 2, but got 4 and "
              "5.");
  expect_refusal(
      [&] {
        module->forward(at::randn({2, 4, 4, 8}), {.mask = at::ones({2, 16}, at::kBool)});
      },
      name + "`mask` to have shape [2, 4, 4] like the tokens of `x`, but got [2, 16].");
  module->options.channel_first = true;
  refuses_map({2, 4, 4, 8}, "`x` to have shape [batch, 8, height, width], but got [2, 4, 4, 8].");
}

}  // namespace
}  // namespace weir::nn
