// SPDX-License-Identifier: Apache-2.0
#include "bind/module_table.h"

#include <c10/util/Exception.h>

#include <array>
#include <optional>
#include <type_traits>
#include <utility>

#include "config/error.h"
#include "config/nearest.h"
#include "weir/models/conditional_routed_transformer.h"
#include "weir/models/conditional_routed_vit.h"
#include "weir/models/coordinate_descent_transformer.h"
#include "weir/models/local_transformer.h"
#include "weir/models/sparse_transformer.h"
#include "weir/nn/conditional_routed_attention.h"
#include "weir/nn/conditional_routed_autoregressive_attention.h"
#include "weir/nn/conditional_routed_cross_attention.h"
#include "weir/nn/conditional_routed_feed_forward.h"
#include "weir/nn/conditional_routed_image_attention.h"
#include "weir/nn/conditional_routed_transformer_block.h"
#include "weir/nn/coordinate_descent_attention.h"
#include "weir/nn/coordinate_descent_feed_forward.h"
#include "weir/nn/coordinate_descent_router.h"
#include "weir/nn/heavy_attention.h"
#include "weir/nn/local_attention.h"
#include "weir/nn/local_feed_forward.h"
#include "weir/nn/local_mha.h"
#include "weir/nn/self_attention.h"
#include "weir/nn/sparse_attention.h"
#include "weir/nn/sparse_self_attention.h"

namespace weir::bind {
namespace {

struct Entry {
  const char* name;
  const char* doc;
  const char* kind;  // of language models, else nullptr
  BoundModule (*make)(const config::Json& options);
  config::Json (*describe)(const Entry& entry);
};

/// For modules whose forward takes one tensor.
struct NoInputs {
  template <class Visitor>
  static void fields(Visitor&&) {}
};

// ---- arguments of a call

template <class T>
constexpr const char* kInputType = nullptr;
template <>
constexpr const char* kInputType<std::optional<at::Tensor>> = "tensor or none";
template <>
constexpr const char* kInputType<std::optional<std::int64_t>> = "integer or none";
template <>
constexpr const char* kInputType<bool> = "boolean";
template <>
constexpr const char* kInputType<std::optional<nn::NumTokens>> = "integer, tensor or none";

struct RequiredInput {
  const char* name;
  const char* help;
  const char* type = "tensor";
};

/// What a module's forward takes first.
template <class Impl>
constexpr std::array kRequired = {RequiredInput{"x", "(batch, n, dim)"}};
template <>
constexpr std::array kRequired<models::ConditionalRoutedViTImpl> = {
    RequiredInput{"img", "(batch, channels, height, width)"}};
template <>
constexpr std::array kRequired<nn::ConditionalRoutedCrossAttentionImpl> = {
    RequiredInput{"x", "(batch, n, dim)"}, RequiredInput{"context", "(batch, m, dim)"}};
template <>
constexpr std::array kRequired<nn::ConditionalRoutedImageAttentionImpl> = {
    RequiredInput{"x", "(batch, height, width, dim); with channel_first dim comes second"}};
template <>
constexpr std::array kRequired<nn::CoordinateDescentFeedForwardImpl> = {
    RequiredInput{"x", "(..., dim)"}};
template <>
constexpr std::array kRequired<nn::CoordinateDescentRouterImpl> = {
    RequiredInput{"x", "(batch, n, dim)"},
    RequiredInput{"num_tokens",
                  "How many tokens to route, at least 1, or int64 (batch) with a number per entry "
                  "of the batch, at least 0",
                  "integer or tensor"}};
template <>
constexpr std::array kRequired<nn::LocalFeedForwardImpl> = {RequiredInput{"x", "(..., dim)"}};
template <>
constexpr std::array kRequired<nn::LocalAttentionImpl> = {
    RequiredInput{"q", "(..., n, dim), leading sizes such as batch, heads"},
    RequiredInput{"k", "(..., n, dim)"}, RequiredInput{"v", "(..., n, dim)"}};
template <>
constexpr std::array kRequired<nn::SparseAttentionImpl> = {
    RequiredInput{"q", "(batch, n, features), features a multiple of heads"},
    RequiredInput{"k", "(batch, n, features)"}, RequiredInput{"v", "(batch, n, features)"}};
template <class Impl>
requires std::is_base_of_v<models::LanguageModel, Impl>
constexpr std::array kRequired<Impl> = {
    RequiredInput{"tokens", "int64 (batch, n), n at most max_length"}};

template <class Impl, class Inputs>
config::Json describe_inputs() {
  config::Json rows = config::Json::array();
  for (const RequiredInput& input : kRequired<Impl>) {
    rows.push_back({{"name", input.name}, {"type", input.type}, {"help", input.help}});
  }
  const Inputs defaults;
  Inputs::fields([&](const char* name, auto member, const char* help) {
    using T = std::remove_cvref_t<decltype(defaults.*member)>;
    static_assert(kInputType<T> != nullptr, "an input of another type: add a line above");
    rows.push_back({{"name", name}, {"type", kInputType<T>}, {"help", help}, {"default", nullptr}});
    if constexpr (std::is_same_v<T, bool>) rows.back()["default"] = defaults.*member;
  });
  return rows;
}

/// An argument, as whatever forward takes there.
struct Argument {
  const char* name;
  c10::IValue value;

  operator at::Tensor() const { return value.toTensor(); }  // NOLINT
  operator nn::NumTokens() const {                          // NOLINT
    TORCH_CHECK_TYPE(value.isInt() || value.isTensor(), "expected `", name,
                     "` to be an integer or a tensor, but got ", value.tagKind(), ".");
    return value.isInt() ? nn::NumTokens(value.toInt()) : nn::NumTokens(value.toTensor());
  }
};

template <class Impl, std::size_t index>
Argument argument(const Arguments& arguments) {
  constexpr const char* name = kRequired<Impl>[index].name;
  return {name, arguments.at(name)};
}

// ---- results of a call

/// A tensor, or a struct of results as a tuple of its fields.
template <class Result>
c10::IValue returned(const Result& result) {
  if constexpr (std::is_same_v<Result, at::Tensor>) {
    return result;
  } else {
    std::vector<c10::IValue> values;
    Result::fields([&](const char*, auto member) { values.emplace_back(result.*member); });
    return c10::ivalue::Tuple::create(std::move(values));
  }
}

/// The names of those fields; none for a tensor.
template <class Result>
config::Json describe_outputs() {
  config::Json names = config::Json::array();
  if constexpr (!std::is_same_v<Result, at::Tensor>) {
    Result::fields([&](const char* name, auto) { names.push_back(name); });
  }
  return names;
}

template <class Impl, class Inputs>
auto invoke(Impl& module, const Arguments& arguments, const Inputs& inputs) {
  return [&]<std::size_t... index>(std::index_sequence<index...>) {
    if constexpr (std::is_same_v<Inputs, NoInputs>) {
      return module.forward(argument<Impl, index>(arguments)...);
    } else {
      return module.forward(argument<Impl, index>(arguments)..., inputs);
    }
  }
  (std::make_index_sequence<kRequired<Impl>.size()>());
}

template <class Impl, class Inputs>
using ResultOf = decltype(invoke(std::declval<Impl&>(), std::declval<const Arguments&>(),
                                 std::declval<const Inputs&>()));

template <class Impl, class Inputs>
c10::IValue call(Impl& module, const Arguments& arguments) {
  std::size_t read = 0;
  for (const RequiredInput& input : kRequired<Impl>) {
    TORCH_CHECK_VALUE(arguments.contains(input.name), "expected the argument `", input.name, "`.");
    ++read;
  }
  Inputs inputs;
  Inputs::fields([&](const char* name, auto member, const char*) {
    const auto found = arguments.find(name);
    if (found == arguments.end()) return;
    using T = std::remove_cvref_t<decltype(inputs.*member)>;
    if constexpr (std::is_same_v<T, std::optional<nn::NumTokens>>) {
      if (!found->value().isNone())
        inputs.*member = Argument{name, found->value()}.operator nn::NumTokens();
    } else {
      inputs.*member = found->value().to<T>();
    }
    ++read;
  });
  TORCH_CHECK_VALUE(arguments.size() == read, "expected no more than ", read,
                    " of the arguments, but got ", arguments.size(), ".");
  return returned(invoke(module, arguments, inputs));
}

template <class Impl, class Options, class Inputs = NoInputs>
constexpr Entry entry(const char* name, const char* doc, const char* kind = nullptr) {
  return {.name = name,
          .doc = doc,
          .kind = kind,
          .make =
              [](const config::Json& document) {
                auto module = std::make_shared<Impl>(config::from_json<Options>(document));
                BoundModule bound;
                bound.options = config::to_json(module->options);
                bound.forward = [impl = module.get()](const Arguments& arguments) {
                  return call<Impl, Inputs>(*impl, arguments);
                };
                bound.module = std::move(module);
                return bound;
              },
          .describe =
              [](const Entry& self) {
                return config::Json{{"name", self.name},
                                    {"doc", self.doc},
                                    {"options", describe_options<Options>()},
                                    {"inputs", describe_inputs<Impl, Inputs>()},
                                    {"outputs", describe_outputs<ResultOf<Impl, Inputs>>()}};
              }};
}

constexpr Entry kEntries[] = {
    entry<nn::ConditionalRoutedAttentionImpl, nn::ConditionalRoutedAttentionOptions,
          nn::ConditionalRoutedAttentionInputs>(
        "ConditionalRoutedAttention",
        "Local attention for all tokens and full attention for those that routers choose. (batch, "
        "n, dim) -> (batch, n, dim)"),
    entry<nn::ConditionalRoutedAutoregressiveAttentionImpl,
          nn::ConditionalRoutedAutoregressiveAttentionOptions,
          nn::ConditionalRoutedAutoregressiveAttentionInputs>(
        "ConditionalRoutedAutoregressiveAttention",
        "Causal local attention for all tokens, and attention to all that came before for those "
        "that routers choose. (batch, n, dim) -> (batch, n, dim)"),
    entry<nn::ConditionalRoutedCrossAttentionImpl, nn::ConditionalRoutedCrossAttentionOptions,
          nn::ConditionalRoutedCrossAttentionInputs>(
        "ConditionalRoutedCrossAttention",
        "Attention of the tokens that a router chooses to those that another chooses from a "
        "context, such as a million memories. (batch, n, dim) -> (batch, n, dim)"),
    entry<nn::ConditionalRoutedFeedForwardImpl, nn::ConditionalRoutedFeedForwardOptions,
          nn::ConditionalRoutedFeedForwardInputs>(
        "ConditionalRoutedFeedForward",
        "Feed-forward layer in two branches: a light one for all tokens, a heavy one for those "
        "that "
        "a router chooses. (batch, n, dim) -> (batch, n, dim)"),
    entry<nn::ConditionalRoutedImageAttentionImpl, nn::ConditionalRoutedImageAttentionOptions,
          nn::ConditionalRoutedImageAttentionInputs>(
        "ConditionalRoutedImageAttention",
        "Attention inside windows for all places of a map and full attention for those that "
        "routers choose. (batch, height, width, dim) -> the same"),
    entry<nn::ConditionalRoutedTransformerBlockImpl, nn::ConditionalRoutedTransformerBlockOptions,
          nn::ConditionalRoutedTransformerBlockInputs>(
        "ConditionalRoutedTransformerBlock",
        "ConditionalRoutedAttention and ConditionalRoutedFeedForward, each around a residual. "
        "(batch, n, dim) -> (batch, n, dim)"),
    entry<models::ConditionalRoutedViTImpl, models::ConditionalRoutedViTOptions>(
        "ConditionalRoutedViT",
        "Vision transformer whose layers choose the patches for their heavy branches. (batch, "
        "channels, height, width) -> logits (batch, num_classes)"),
    entry<models::ConditionalRoutedTransformerImpl, models::ConditionalRoutedTransformerOptions>(
        "ConditionalRoutedTransformer",
        "Causal language model whose layers have a light branch for all tokens and a heavy one for "
        "those that routers choose. (batch, n) -> logits (batch, n, num_tokens)",
        models::ConditionalRoutedTransformerImpl::kKind),
    entry<nn::CoordinateDescentAttentionImpl, nn::CoordinateDescentAttentionOptions,
          nn::CoordinateDescentAttentionInputs>(
        "CoordinateDescentAttention",
        "Causal multi-head attention: softmax, coordinate descent, top-k or low-rank. (batch, n, "
        "dim) -> (batch, n, dim)"),
    entry<nn::CoordinateDescentFeedForwardImpl, nn::CoordinateDescentFeedForwardOptions>(
        "CoordinateDescentFeedForward",
        "Feed-forward layer whose activation is GELU or coordinate descent over the hidden units. "
        "(..., dim) -> (..., dim)"),
    entry<nn::CoordinateDescentRouterImpl, nn::CoordinateDescentRouterOptions,
          nn::CoordinateDescentRouterInputs>(
        "CoordinateDescentRouter",
        "Chooses num_tokens of the tokens x for each routing token. (batch, n, dim) -> the named "
        "tuple indices, scores (batch, k), routed_tokens (batch, k, dim), routed_mask; with "
        "several "
        "routing tokens (batch, num_routing_tokens, k)"),
    entry<models::CoordinateDescentTransformerImpl, models::CoordinateDescentTransformerOptions>(
        "CoordinateDescentTransformer",
        "Causal language model of attention and feed-forward layers that may choose by coordinate "
        "descent. (batch, n) -> logits (batch, n, num_tokens)",
        models::CoordinateDescentTransformerImpl::kKind),
    entry<nn::HeavyAttentionImpl, nn::HeavyAttentionOptions, nn::HeavyAttentionInputs>(
        "HeavyAttention",
        "Attention of a few queries to a few keys, one or several routes of them, and to a null "
        "key. (batch, n, dim) -> (batch, n, dim)"),
    entry<nn::LocalAttentionImpl, nn::LocalAttentionOptions, nn::LocalAttentionInputs>(
        "LocalAttention",
        "Attention of queries to the keys of their bucket and its neighbours, or of a window "
        "around "
        "them. (..., n, dim) -> the same"),
    entry<nn::LocalFeedForwardImpl, nn::LocalFeedForwardOptions>(
        "LocalFeedForward", "Feed-forward layer gated by GELU. (..., dim) -> (..., dim)"),
    entry<nn::LocalMHAImpl, nn::LocalMHAOptions, nn::LocalMHAInputs>(
        "LocalMHA",
        "Multi-head local attention with its projections. (batch, n, dim) -> (batch, n, dim)"),
    entry<models::LocalTransformerImpl, models::LocalTransformerOptions>(
        "LocalTransformer",
        "Causal language model of local attention and gated feed-forward layers in several "
        "residual streams. (batch, n) -> logits (batch, n, num_tokens)",
        models::LocalTransformerImpl::kKind),
    entry<nn::SelfAttentionImpl, nn::SelfAttentionOptions, nn::SelfAttentionInputs>(
        "SelfAttention",
        "Multi-head attention of all tokens to all. (batch, n, dim) -> (batch, n, dim)"),
    entry<nn::SparseAttentionImpl, nn::SparseAttentionOptions, nn::SparseAttentionInputs>(
        "SparseAttention",
        "Attention over a pattern of positions: all, local, strided, fixed, a layout of one's own, "
        "or several. (batch, n, features) -> the same"),
    entry<nn::SparseSelfAttentionImpl, nn::SparseSelfAttentionOptions>(
        "SparseSelfAttention",
        "Causal multi-head attention over the patterns of SparseAttention, with projections. "
        "(batch, n, dim) -> (batch, n, dim)"),
    entry<models::SparseTransformerImpl, models::SparseTransformerOptions>(
        "SparseTransformer",
        "Causal language model whose layers see only a pattern of positions. (batch, n) -> logits "
        "(batch, n, num_tokens)",
        models::SparseTransformerImpl::kKind),
};

const Entry& find(std::string_view name) {
  for (const Entry& entry : kEntries) {
    if (entry.name == name) return entry;
  }
  const auto meant = config::nearest(name, module_names());
  throw config::Error("unknown module `" + std::string(name) + "`" +
                      (meant.empty() ? "." : "; did you mean `" + meant + "`?"));
}

}  // namespace

BoundModule make_module(std::string_view name, const config::Json& options) {
  return find(name).make(options);
}

config::Json describe_module(std::string_view name) {
  const Entry& entry = find(name);
  return entry.describe(entry);
}

std::vector<std::string> module_names() {
  std::vector<std::string> names;
  for (const Entry& entry : kEntries) names.push_back(entry.name);
  return names;
}

std::string language_model_name(std::string_view kind) {
  for (const Entry& entry : kEntries) {
    if (entry.kind != nullptr && entry.kind == kind) return entry.name;
  }
  throw config::Error("no module is a language model of kind `" + std::string(kind) + "`.");
}

}  // namespace weir::bind
