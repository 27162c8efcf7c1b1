// SPDX-License-Identifier: Apache-2.0
// Patches of an image through routed layers. Tokens keep rows and columns for the windows of the
// attention; parameters are named by their places in the published nn.Sequential.
#include "weir/models/conditional_routed_vit.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/pow.h>

#include <utility>

#include "nn/check.h"
#include "nn/heavy_branch.h"

namespace weir::models {
namespace {

constexpr auto kName = "ConditionalRoutedViT";
constexpr double kLongestWave = 10000;  // over 2 pi, in patches

std::array<std::int64_t, 2> both(const HeightAndWidth& size) {
  if (const auto* one = std::get_if<std::int64_t>(&size)) return {*one, *one};
  return std::get<1>(size);
}

void check_attention(const ConditionalRoutedViTOptions& options) {
  nn::check_size(kName, "attn_num_heavy_tokens_q", options.attn_num_heavy_tokens_q);
  nn::check_size(kName, "attn_num_heavy_tokens_kv", options.attn_num_heavy_tokens_kv);
  nn::check_size(kName, "attn_heavy_dim_head", options.attn_heavy_dim_head);
  nn::check_size(kName, "attn_heavy_heads", options.attn_heavy_heads);
  nn::check_size(kName, "attn_light_dim_head", options.attn_light_dim_head);
  nn::check_size(kName, "attn_light_heads", options.attn_light_heads);
  nn::check_size(kName, "attn_light_window_size", options.attn_light_window_size);
  nn::check_size(kName, "attn_num_routed_kv", options.attn_num_routed_kv);
  nn::check_routes(kName, "attn_num_routed_kv", options.attn_num_routed_kv, "attn_heavy_heads",
                   options.attn_heavy_heads);
}

void check_image(const ConditionalRoutedViTOptions& options) {
  const auto image = both(options.image_size), patch = both(options.patch_size);
  const std::int64_t w = options.attn_light_window_size;
  TORCH_CHECK_VALUE(options.channels > 1 || patch[0] * patch[1] > 1, "weir::", kName,
                    ": expected patches of more than one value: they are normalised, and a single "
                    "one becomes 0.");
  for (const std::size_t side : {0, 1}) {
    nn::check_size(kName, "image_size", image[side]);
    nn::check_size(kName, "patch_size", patch[side]);
    TORCH_CHECK_VALUE(image[side] % patch[side] == 0, "weir::", kName,
                      ": expected `patch_size` to divide `image_size`, ", image[side], ", but got ",
                      patch[side], ".");
    TORCH_CHECK_VALUE(image[side] / patch[side] % w == 0, "weir::", kName,
                      ": expected `attn_light_window_size` to divide the ",
                      image[side] / patch[side], " patches of a side, but got ", w, ".");
  }
}

void check(const ConditionalRoutedViTOptions& options) {
  nn::check_size(kName, "num_classes", options.num_classes);
  nn::check_size(kName, "depth", options.depth);
  nn::check_size(kName, "channels", options.channels);
  nn::check_size(kName, "dim", options.dim, 8);
  TORCH_CHECK_VALUE(options.dim % 4 == 0, "weir::", kName,
                    ": expected `dim` to be a multiple of 4, but got ", options.dim, ".");
  check_attention(options);
  nn::check_size(kName, "ff_num_heavy_tokens", options.ff_num_heavy_tokens);
  nn::check_hidden(kName, "ff_heavy_mult", options.dim, options.ff_heavy_mult);
  nn::check_hidden(kName, "ff_light_mult", options.dim, options.ff_light_mult);
  check_image(options);
}

nn::ConditionalRoutedImageAttentionOptions attention_options(
    const ConditionalRoutedViTOptions& options) {
  return {.dim = options.dim,
          .num_heavy_tokens_q = options.attn_num_heavy_tokens_q,
          .num_heavy_tokens_kv = options.attn_num_heavy_tokens_kv,
          .num_routed_kv = options.attn_num_routed_kv,
          .light_dim_head = options.attn_light_dim_head,
          .light_heads = options.attn_light_heads,
          .light_window_size = options.attn_light_window_size,
          .heavy_dim_head = options.attn_heavy_dim_head,
          .heavy_heads = options.attn_heavy_heads,
          .router_straight_through = options.router_straight_through,
          .router_kwargs = options.router_kwargs,
          .routing = options.routing};
}

nn::ConditionalRoutedFeedForwardOptions feed_forward_options(
    const ConditionalRoutedViTOptions& options) {
  return {.dim = options.dim,
          .num_heavy_tokens = options.ff_num_heavy_tokens,
          .light_ff_mult = options.ff_light_mult,
          .heavy_ff_mult = options.ff_heavy_mult,
          .router_straight_through = options.router_straight_through,
          .router_kwargs = options.router_kwargs};
}

// Sines and cosines (count, dim / 2) of 0 ... count - 1 times kLongestWave^(-i / (dim / 4 - 1)).
at::Tensor waves(std::int64_t count, std::int64_t dim, const at::TensorOptions& options) {
  const std::int64_t quarter = dim / 4;
  const at::Tensor steps = at::arange(quarter, options) / (quarter - 1);
  const at::Tensor angles = at::arange(count, options).unsqueeze(1) * at::pow(kLongestWave, -steps);
  return at::cat({angles.sin(), angles.cos()}, 1);
}

// (rows, columns, dim): waves of the column, then of the row.
at::Tensor positions(const at::Tensor& x) {
  const auto [rows, columns, dim] = std::tuple(x.size(1), x.size(2), x.size(3));
  const auto wide = x.options().dtype(at::kDouble).requires_grad(false);
  const at::Tensor across = waves(columns, dim, wide).unsqueeze(0).expand({rows, -1, -1}),
                   down = waves(rows, dim, wide).unsqueeze(1).expand({-1, columns, -1});
  return at::cat({across, down}, 2).to(x.scalar_type());
}

torch::nn::LayerNorm layer_norm(std::int64_t dim) {
  return torch::nn::LayerNorm(torch::nn::LayerNormOptions({dim}));
}

}  // namespace

ConditionalRoutedViTEmbeddingImpl::ConditionalRoutedViTEmbeddingImpl(
    std::array<std::int64_t, 2> patch_, std::int64_t channels_, std::int64_t dim_)
    : patch(patch_), channels(channels_), dim(dim_) {
  reset();
}

void ConditionalRoutedViTEmbeddingImpl::reset() {
  const std::int64_t features = patch[0] * patch[1] * channels;
  norm_in = register_module("1", layer_norm(features));
  proj = register_module("2", torch::nn::Linear(features, dim));
  norm_out = register_module("3", layer_norm(dim));
}

at::Tensor ConditionalRoutedViTEmbeddingImpl::forward(const at::Tensor& img) {
  const at::Tensor cut = img.unflatten(3, {img.size(3) / patch[1], patch[1]})
                             .unflatten(2, {img.size(2) / patch[0], patch[0]});
  const at::Tensor patches = cut.permute({0, 2, 4, 3, 5, 1}).flatten(3);
  return norm_out(proj(norm_in(patches)));
}

ConditionalRoutedViTLayerImpl::ConditionalRoutedViTLayerImpl(
    nn::ConditionalRoutedImageAttentionOptions attention_options_,
    nn::ConditionalRoutedFeedForwardOptions feed_forward_options_)
    : attention_options(std::move(attention_options_)),
      feed_forward_options(std::move(feed_forward_options_)) {
  reset();
}

void ConditionalRoutedViTLayerImpl::reset() {
  attention = register_module("0", nn::ConditionalRoutedImageAttention(attention_options));
  feed_forward = register_module("1", nn::ConditionalRoutedFeedForward(feed_forward_options));
}

at::Tensor ConditionalRoutedViTLayerImpl::forward(const at::Tensor& x) {
  const at::Tensor attended = x + attention(x);
  return attended + feed_forward(attended.flatten(1, 2)).view(attended.sizes());
}

ConditionalRoutedViTEncoderImpl::ConditionalRoutedViTEncoderImpl(
    const ConditionalRoutedViTOptions& options_)
    : options(options_) {
  reset();
}

void ConditionalRoutedViTEncoderImpl::reset() {
  layers = register_module("layers", torch::nn::ModuleList());
  while (std::ssize(*layers) < options.depth) {
    layers->push_back(
        ConditionalRoutedViTLayer(attention_options(options), feed_forward_options(options)));
  }
}

at::Tensor ConditionalRoutedViTEncoderImpl::forward(const at::Tensor& x) {
  at::Tensor out = x;
  for (std::size_t i = 0; i < layers->size(); ++i) {
    out = layers->at<ConditionalRoutedViTLayerImpl>(i).forward(out);
  }
  return out;
}

ConditionalRoutedViTHeadImpl::ConditionalRoutedViTHeadImpl(std::int64_t dim_,
                                                           std::int64_t num_classes_)
    : dim(dim_), num_classes(num_classes_) {
  reset();
}

void ConditionalRoutedViTHeadImpl::reset() {
  norm = register_module("1", layer_norm(dim));
  proj = register_module("2", torch::nn::Linear(dim, num_classes));
}

at::Tensor ConditionalRoutedViTHeadImpl::forward(const at::Tensor& x) {
  return proj(norm(x.flatten(1, 2).mean(1)));
}

ConditionalRoutedViTImpl::ConditionalRoutedViTImpl(const ConditionalRoutedViTOptions& options_)
    : options(options_) {
  check(options);
  reset();
}

void ConditionalRoutedViTImpl::reset() {
  to_patch_embedding = register_module(
      "to_patch_embedding",
      ConditionalRoutedViTEmbedding(both(options.patch_size), options.channels, options.dim));
  transformer = register_module("transformer", ConditionalRoutedViTEncoder(options));
  linear_head =
      register_module("linear_head", ConditionalRoutedViTHead(options.dim, options.num_classes));
}

at::Tensor ConditionalRoutedViTImpl::forward(const at::Tensor& img) {
  const auto patch = both(options.patch_size);
  const std::int64_t height = patch[0] * options.attn_light_window_size,
                     width = patch[1] * options.attn_light_window_size;
  TORCH_CHECK_VALUE(img.dim() == 4 && img.size(1) == options.channels, "weir::", kName,
                    ": expected `img` to have shape [batch, ", options.channels,
                    ", height, width], but got ", img.sizes(), ".");
  TORCH_CHECK_VALUE(
      img.size(2) > 0 && img.size(3) > 0 && img.size(2) % height == 0 && img.size(3) % width == 0,
      "weir::", kName, ": expected height and width of `img` to be multiples of ", height, " and ",
      width, ", windows of patches, but got ", img.sizes(), ".");
  const at::Tensor x = to_patch_embedding(img);
  return linear_head(transformer(x + positions(x)));
}

void ConditionalRoutedViTImpl::pretty_print(std::ostream& stream) const {
  const auto image = both(options.image_size), patch = both(options.patch_size);
  stream << "weir::models::" << kName << "(image_size=" << image[0] << "x" << image[1]
         << ", patch_size=" << patch[0] << "x" << patch[1]
         << ", num_classes=" << options.num_classes << ", dim=" << options.dim
         << ", depth=" << options.depth << ", routing=" << options.routing << ")";
}

}  // namespace weir::models
