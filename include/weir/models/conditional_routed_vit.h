// SPDX-License-Identifier: Apache-2.0
// A vision transformer whose layers choose the patches that are worth their heavy branches.
//
//   x = LayerNorm(Linear(LayerNorm(patches))) + sines and cosines of rows and columns
//   depth times:  x += ConditionalRoutedImageAttention(x);  x += ConditionalRoutedFeedForward(x)
//   logits = Linear(LayerNorm(mean of x))
//
// Ainslie et al. 2023, "CoLT5", arXiv:2303.09752; Beyer et al. 2022, "Better plain ViT baselines
// for ImageNet-1k", arXiv:2205.01580.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/modulelist.h>
#include <torch/nn/modules/linear.h>
#include <torch/nn/modules/normalization.h>

#include <array>
#include <cstdint>
#include <ostream>
#include <string>
#include <variant>

#include "weir/export.h"
#include "weir/nn/conditional_routed_feed_forward.h"
#include "weir/nn/conditional_routed_image_attention.h"
#include "weir/nn/module.h"
#include "weir/nn/router_kwargs.h"

namespace weir::models {

/// One number for both, or height and width: `.image_size = 256`, or `= std::array{128L, 256L}`.
using HeightAndWidth = std::variant<std::int64_t, std::array<std::int64_t, 2>>;

/// The arguments of the published `ConditionalRoutedViT`, and `routing`. The routers' eps is 1
/// unless router_kwargs says otherwise.
struct ConditionalRoutedViTOptions {
  HeightAndWidth image_size = 0;
  HeightAndWidth patch_size = 0;
  std::int64_t num_classes = 0;
  std::int64_t dim = 0;
  std::int64_t depth = 0;
  std::int64_t attn_num_heavy_tokens_q = 0;
  std::int64_t attn_num_heavy_tokens_kv = 0;
  std::int64_t attn_heavy_dim_head = 0;
  std::int64_t attn_heavy_heads = 0;
  std::int64_t attn_light_dim_head = 0;
  std::int64_t attn_light_heads = 0;
  std::int64_t attn_light_window_size = 0;
  std::int64_t ff_num_heavy_tokens = 0;
  double ff_heavy_mult = 0;
  double ff_light_mult = 0;
  std::int64_t channels = 3;
  bool router_straight_through = true;
  nn::RouterKwargs router_kwargs = {.eps = 1};
  std::int64_t attn_num_routed_kv = 1;
  std::string routing = "global";

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = ConditionalRoutedViTOptions;
    field("image_size", &Self::image_size, "Of images, or their height and width; required.");
    field("patch_size", &Self::patch_size, "Of patches, or their height and width; required.");
    field("num_classes", &Self::num_classes, "Number of logits; required.");
    field("dim", &Self::dim, "Features per patch, a multiple of 4 from 8 on; required.");
    field("depth", &Self::depth, "Number of layers; required.");
    field("attn_num_heavy_tokens_q", &Self::attn_num_heavy_tokens_q,
          "Patches whose queries the heavy attention gets; required.");
    field("attn_num_heavy_tokens_kv", &Self::attn_num_heavy_tokens_kv,
          "Patches, per route, whose keys and values it gets; required.");
    field("attn_heavy_dim_head", &Self::attn_heavy_dim_head,
          "Feature size of a heavy head; required.");
    field("attn_heavy_heads", &Self::attn_heavy_heads, "Number of heavy heads; required.");
    field("attn_light_dim_head", &Self::attn_light_dim_head,
          "Feature size of a light head; required.");
    field("attn_light_heads", &Self::attn_light_heads, "Number of light heads; required.");
    field("attn_light_window_size", &Self::attn_light_window_size,
          "Patches down and across in a window of the light attention; required.");
    field("ff_num_heavy_tokens", &Self::ff_num_heavy_tokens,
          "Patches that the heavy feed-forward takes; required.");
    field("ff_heavy_mult", &Self::ff_heavy_mult,
          "Hidden units of the heavy feed-forward as a multiple of dim; required.");
    field("ff_light_mult", &Self::ff_light_mult, "The same of the light one; required.");
    field("channels", &Self::channels, "Of images.");
    field("router_straight_through", &Self::router_straight_through,
          "Scores are 1 in value and have the gradient of coordinate descent.");
    field("router_kwargs", &Self::router_kwargs, "Options of the routers.");
    field("attn_num_routed_kv", &Self::attn_num_routed_kv,
          "Routes of keys and values, each for an equal share of the heavy heads.");
    field("routing", &Self::routing,
          "Of the attention. global: from all patches; window: from each window.");
  }
};

/// Images (batch, channels, height, width) -> (batch, rows, columns, dim) of patches.
class WEIR_API ConditionalRoutedViTEmbeddingImpl
    : public torch::nn::Cloneable<ConditionalRoutedViTEmbeddingImpl> {
 public:
  ConditionalRoutedViTEmbeddingImpl(std::array<std::int64_t, 2> patch, std::int64_t channels,
                                    std::int64_t dim);
  void reset() override;
  at::Tensor forward(const at::Tensor& img);

  std::array<std::int64_t, 2> patch;
  std::int64_t channels, dim;
  torch::nn::LayerNorm norm_in{nullptr}, norm_out{nullptr};  ///< "1" and "3" in the state dict
  torch::nn::Linear proj{nullptr};                           ///< "2"
};

TORCH_MODULE(ConditionalRoutedViTEmbedding);

/// One layer. (batch, rows, columns, dim) -> the same.
class WEIR_API ConditionalRoutedViTLayerImpl
    : public torch::nn::Cloneable<ConditionalRoutedViTLayerImpl> {
 public:
  ConditionalRoutedViTLayerImpl(nn::ConditionalRoutedImageAttentionOptions attention_options,
                                nn::ConditionalRoutedFeedForwardOptions feed_forward_options);
  void reset() override;
  at::Tensor forward(const at::Tensor& x);

  nn::ConditionalRoutedImageAttentionOptions attention_options;
  nn::ConditionalRoutedFeedForwardOptions feed_forward_options;
  nn::ConditionalRoutedImageAttention attention{nullptr};  ///< "0" in the state dict
  nn::ConditionalRoutedFeedForward feed_forward{nullptr};  ///< "1"
};

TORCH_MODULE(ConditionalRoutedViTLayer);

/// The layers. (batch, rows, columns, dim) -> the same.
class WEIR_API ConditionalRoutedViTEncoderImpl
    : public torch::nn::Cloneable<ConditionalRoutedViTEncoderImpl> {
 public:
  explicit ConditionalRoutedViTEncoderImpl(const ConditionalRoutedViTOptions& options);
  void reset() override;
  at::Tensor forward(const at::Tensor& x);

  ConditionalRoutedViTOptions options;
  torch::nn::ModuleList layers{nullptr};
};

TORCH_MODULE(ConditionalRoutedViTEncoder);

/// The mean over patches as logits. (batch, rows, columns, dim) -> (batch, num_classes).
class WEIR_API ConditionalRoutedViTHeadImpl
    : public torch::nn::Cloneable<ConditionalRoutedViTHeadImpl> {
 public:
  ConditionalRoutedViTHeadImpl(std::int64_t dim, std::int64_t num_classes);
  void reset() override;
  at::Tensor forward(const at::Tensor& x);

  std::int64_t dim, num_classes;
  torch::nn::LayerNorm norm{nullptr};  ///< "1" in the state dict
  torch::nn::Linear proj{nullptr};     ///< "2"
};

TORCH_MODULE(ConditionalRoutedViTHead);

class WEIR_API ConditionalRoutedViTImpl : public torch::nn::Cloneable<ConditionalRoutedViTImpl> {
 public:
  /// Throws c10::ValueError on options that do not fit.
  explicit ConditionalRoutedViTImpl(const ConditionalRoutedViTOptions& options);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// Images (batch, channels, height, width) -> logits (batch, num_classes). Images of another size
  /// than image_size may come too, of whole windows of patches. Throws c10::Error on others.
  at::Tensor forward(const at::Tensor& img);

  ConditionalRoutedViTOptions options;
  ConditionalRoutedViTEmbedding to_patch_embedding{nullptr};
  ConditionalRoutedViTEncoder transformer{nullptr};
  ConditionalRoutedViTHead linear_head{nullptr};
};

WEIR_MODULE(ConditionalRoutedViT);

}  // namespace weir::models
