// SPDX-License-Identifier: Apache-2.0
// ConditionalRoutedViT: equal to its parts put together by hand, from single pixels on; sizes of
// images, entries of a batch apart, gradients, dtypes, names, copies, messages.
#include "weir/models/conditional_routed_vit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "nn/module_contract.h"
#include "support/tolerance.h"

namespace weir::models {
namespace {

using nn::distance;
using nn::expect_refusal;
using Options = ConditionalRoutedViTOptions;
using Case = nn::Named<Options>;
using Pair = std::array<std::int64_t, 2>;

const Options kPlain = {.image_size = Pair{8, 12},
                        .patch_size = Pair{2, 3},
                        .num_classes = 5,
                        .dim = 12,
                        .depth = 2,
                        .attn_num_heavy_tokens_q = 3,
                        .attn_num_heavy_tokens_kv = 2,
                        .attn_heavy_dim_head = 4,
                        .attn_heavy_heads = 4,
                        .attn_light_dim_head = 4,
                        .attn_light_heads = 3,
                        .attn_light_window_size = 2,
                        .ff_num_heavy_tokens = 6,
                        .ff_heavy_mult = 2,
                        .ff_light_mult = 0.5,
                        .channels = 2,
                        .router_kwargs = {.eps = 8}};

Options with(void (*change)(Options&)) {
  Options options = kPlain;
  change(options);
  return options;
}

const Case kCases[] = {
    {"global", kPlain},
    {"window", with([](Options& o) { o.routing = "window"; })},
    {"soft_routes",
     with([](Options& o) { o.router_straight_through = false, o.attn_num_routed_kv = 2; })},
};

ConditionalRoutedViT doubles(const Options& options) {
  torch::manual_seed(0);
  ConditionalRoutedViT model(options);
  nn::randomise(*model);
  model->to(at::kDouble);
  return model;
}

at::Tensor images(std::int64_t batch = 2, std::int64_t height = 8, std::int64_t width = 12) {
  return at::randn({batch, 2, height, width}, at::kDouble);
}

class ViTMode : public ::testing::TestWithParam<Case> {
 protected:
  ConditionalRoutedViT model_ = doubles(GetParam().options);
};

/// The place of a patch in scalar double: waves of its column, then of its row.
double position(std::int64_t row, std::int64_t column, std::int64_t feature) {
  const std::int64_t quarter = kPlain.dim / 4, wave = feature % quarter;
  const double frequency =
      std::pow(10000.0, -static_cast<double>(wave) / static_cast<double>(quarter - 1));
  const double angle = static_cast<double>(feature < 2 * quarter ? column : row) * frequency;
  return feature / quarter % 2 == 0 ? std::sin(angle) : std::cos(angle);
}

/// Embedded patches (batch, rows, columns, dim), pixel by pixel.
at::Tensor embedded(ConditionalRoutedViT& model, const at::Tensor& img) {
  const std::int64_t rows = img.size(2) / 2, columns = img.size(3) / 3;
  at::Tensor patches = at::empty({img.size(0), rows, columns, 12}, at::kDouble);
  for (std::int64_t y = 0; y < img.size(2); ++y) {
    for (std::int64_t x = 0; x < img.size(3); ++x) {
      for (std::int64_t c = 0; c < 2; ++c) {
        patches.select(1, y / 2)
            .select(1, x / 3)
            .select(1, (y % 2 * 3 + x % 3) * 2 + c)
            .copy_(img.select(1, c).select(1, y).select(1, x));
      }
    }
  }
  auto weights = model->named_parameters();
  const auto norm = [&](const at::Tensor& x, const std::string& name) {
    const std::string path = "to_patch_embedding." + name;
    return at::layer_norm(x, {12}, weights[path + ".weight"], weights[path + ".bias"]);
  };
  const at::Tensor tokens =
      norm(at::linear(norm(patches, "1"), weights["to_patch_embedding.2.weight"],
                      weights["to_patch_embedding.2.bias"]),
           "3");
  at::Tensor table = at::empty({rows, columns, 12}, at::kDouble);
  for (std::int64_t i = 0; i < table.numel(); ++i) {
    table.view(-1)[i] = position(i / 12 / columns, i / 12 % columns, i % 12);
  }
  return tokens + table;
}

TEST_P(ViTMode, IsTheSumOfItsParts) {
  for (const Pair size : {Pair{8, 12}, Pair{4, 18}}) {
    const at::Tensor img = images(2, size[0], size[1]);
    at::Tensor x = embedded(model_, img);
    for (std::size_t i = 0; i < 2; ++i) {
      auto& layer = model_->transformer->layers->at<ConditionalRoutedViTLayerImpl>(i);
      x = x + layer.attention(x);
      x = x + layer.feed_forward(x.flatten(1, 2)).view(x.sizes());
    }
    auto weights = model_->named_parameters();
    const at::Tensor mean = x.flatten(1, 2).mean(1);
    const at::Tensor expected = at::linear(
        at::layer_norm(mean, {12}, weights["linear_head.1.weight"], weights["linear_head.1.bias"]),
        weights["linear_head.2.weight"], weights["linear_head.2.bias"]);
    EXPECT_LE(distance(model_(img), expected), tests::kFloat64.weights);
  }
}

TEST_P(ViTMode, HandsOnItsOptions) {
  const Options& o = GetParam().options;
  const auto& layer = model_->transformer->layers->at<ConditionalRoutedViTLayerImpl>(1);
  const auto& attention = layer.attention->options;
  EXPECT_EQ(attention.routing, o.routing);
  EXPECT_EQ(attention.num_routed_kv, o.attn_num_routed_kv);
  EXPECT_EQ(attention.num_heavy_tokens_q, 3);
  EXPECT_EQ(attention.num_heavy_tokens_kv, 2);
  EXPECT_EQ(attention.router_straight_through, o.router_straight_through);
  EXPECT_EQ(layer.attention->q_router->options.eps, 8);
  EXPECT_EQ(layer.feed_forward->options.num_heavy_tokens, 6);
  EXPECT_EQ(layer.feed_forward->heavy_ff->hidden(), 24);
  EXPECT_EQ(layer.feed_forward->light_ff->hidden(), 6);
  EXPECT_EQ(layer.feed_forward->router->options.straight_through, o.router_straight_through);
  EXPECT_EQ(layer.feed_forward->router->options.eps, 8);
  EXPECT_EQ(ConditionalRoutedViTOptions().router_kwargs.eps, 1);
}

TEST_P(ViTMode, EntriesOfABatchAreIndependent) {
  const at::Tensor img = images(3).requires_grad_(), out = model_(img);
  EXPECT_LE(distance(out[1], model_(img.narrow(0, 1, 1))[0]), tests::kFloat64.weights);
  const auto grad = torch::autograd::grad({out[1].square().sum()}, {img})[0];
  EXPECT_EQ(grad[0].abs().max().item<double>(), 0);
  EXPECT_GT(grad[1].abs().max().item<double>(), 0);
  EXPECT_EQ(model_(images(0)).sizes(), at::IntArrayRef({0, 5}));
}

TEST_P(ViTMode, GradientsReachEveryParameter) {
  model_(images()).square().sum().backward();
  nn::expect_gradients_everywhere(*model_);
}

TEST_P(ViTMode, CopiesAgree) {
  nn::expect_copies_agree(model_, doubles(GetParam().options), images());
}

INSTANTIATE_TEST_SUITE_P(Modes, ViTMode, ::testing::ValuesIn(kCases));

TEST(ConditionalRoutedViT, OneNumberIsHeightAndWidth) {
  Options square = kPlain, pair = kPlain;
  square.image_size = 12, square.patch_size = 3;
  pair.image_size = Pair{12, 12}, pair.patch_size = Pair{3, 3};
  const at::Tensor img = images(2, 12, 12);
  EXPECT_TRUE(doubles(square)(img).equal(doubles(pair)(img)));
}

TEST(ConditionalRoutedViT, RunsInSixteenBits) {
  ConditionalRoutedViT model(kPlain);
  for (const auto dtype : {at::kBFloat16, at::kHalf}) {
    model->to(dtype);
    const at::Tensor out = model(images().to(dtype));
    EXPECT_EQ(out.scalar_type(), dtype);
    EXPECT_TRUE(out.isfinite().all().item<bool>());
  }
}

TEST(ConditionalRoutedViT, HasThePublishedNames) {
  const auto names = nn::parameter_names(*ConditionalRoutedViT(kPlain));
  EXPECT_THAT(names, ::testing::IsSupersetOf(
                         {"to_patch_embedding.1.weight", "to_patch_embedding.2.bias",
                          "to_patch_embedding.3.weight", "transformer.layers.0.0.null_q_token",
                          "transformer.layers.1.0.light_attn.norm.gamma",
                          "transformer.layers.1.1.heavy_ff.3.bias", "linear_head.1.weight",
                          "linear_head.2.bias"}));
  EXPECT_EQ(names.size(), 6 + 2 * (11 + 11) + 4);
}

TEST(ConditionalRoutedViT, RefusesWhatDoesNotFit) {
  const std::string name = "weir::ConditionalRoutedViT: expected ";
  const auto refuses = [&](void (*change)(Options&), const std::string& words) {
    const Options options = with(change);
    expect_refusal([&] { ConditionalRoutedViT model(options); }, name + words);
  };
  const auto refuses_zero = [&](const std::string& option, std::int64_t Options::*member) {
    Options options = kPlain;
    options.*member = 0;
    expect_refusal([&] { ConditionalRoutedViT model(options); },
                   name + "`" + option + "` to be at least 1, but got 0.");
  };
  refuses_zero("num_classes", &Options::num_classes);
  refuses_zero("depth", &Options::depth);
  refuses_zero("channels", &Options::channels);
  refuses_zero("attn_num_heavy_tokens_q", &Options::attn_num_heavy_tokens_q);
  refuses_zero("attn_num_heavy_tokens_kv", &Options::attn_num_heavy_tokens_kv);
  refuses_zero("attn_heavy_dim_head", &Options::attn_heavy_dim_head);
  refuses_zero("attn_heavy_heads", &Options::attn_heavy_heads);
  refuses_zero("attn_light_dim_head", &Options::attn_light_dim_head);
  refuses_zero("attn_light_heads", &Options::attn_light_heads);
  refuses_zero("attn_light_window_size", &Options::attn_light_window_size);
  refuses_zero("attn_num_routed_kv", &Options::attn_num_routed_kv);
  refuses_zero("ff_num_heavy_tokens", &Options::ff_num_heavy_tokens);
  refuses([](Options& o) { o.dim = 4; }, "`dim` to be at least 8, but got 4.");
  refuses([](Options& o) { o.dim = 10; }, "`dim` to be a multiple of 4, but got 10.");
  refuses([](Options& o) { o.attn_num_routed_kv = 3; },
          "`attn_num_routed_kv` to divide `attn_heavy_heads`, 4, but got 3.");
  refuses([](Options& o) { o.ff_light_mult = 0; },
          "`dim` * `ff_light_mult` to lie in [1, 1073741824], but got 12 * 0.");
  refuses([](Options& o) { o.image_size = 0; }, "`image_size` to be at least 1, but got 0.");
  refuses([](Options& o) { o.patch_size = 5; },
          "`patch_size` to divide `image_size`, 8, but got 5.");
  refuses([](Options& o) { o.channels = 1, o.patch_size = 1; },
          "patches of more than one value: they are normalised, and a single one becomes 0.");
  refuses([](Options& o) { o.attn_light_window_size = 3; },
          "`attn_light_window_size` to divide the 4 patches of a side, but got 3.");
  auto model = doubles(kPlain);
  const auto refuses_images = [&](const at::Tensor& img, const std::string& words) {
    expect_refusal([&] { model(img); }, name + words);
  };
  refuses_images(at::randn({2, 3, 8, 12}),
                 "`img` to have shape [batch, 2, height, width], but got [2, 3, 8, 12].");
  refuses_images(images(2, 8, 10),
                 "height and width of `img` to be multiples of 4 and 6, windows of patches, but "
                 "got [2, 2, 8, 10].");
}

}  // namespace
}  // namespace weir::models
