// SPDX-License-Identifier: Apache-2.0
#include "bind/module_table.h"

#include <c10/util/Exception.h>

#include <optional>
#include <type_traits>

#include "config/error.h"
#include "config/nearest.h"
#include "config/options.h"
#include "weir/models/coordinate_descent_transformer.h"
#include "weir/nn/coordinate_descent_attention.h"
#include "weir/nn/coordinate_descent_feed_forward.h"

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

// ---- options as a list for signatures and help

bool is_required(const std::string& help) { return help.ends_with("required."); }

template <class Options>
config::Json describe_options() {
  config::Json rows = config::Json::array();
  const config::Json defaults = config::to_json(Options());
  for (const config::Field& field : config::describe<Options>()) {
    config::Json row = {{"name", field.name}, {"type", field.type}, {"help", field.help}};
    if (!is_required(field.help)) row["default"] = defaults[field.name];
    rows.push_back(std::move(row));
  }
  return rows;
}

// ---- arguments of a call

template <class T>
constexpr const char* kInputType = nullptr;
template <>
constexpr const char* kInputType<std::optional<at::Tensor>> = "tensor or none";

template <class Inputs>
config::Json describe_inputs(const char* first, const char* first_help) {
  config::Json rows = {{{"name", first}, {"type", "tensor"}, {"help", first_help}}};
  const Inputs defaults;
  Inputs::fields([&](const char* name, auto member, const char* help) {
    using T = std::remove_cvref_t<decltype(defaults.*member)>;
    static_assert(kInputType<T> != nullptr, "an input of another type: add a line above");
    rows.push_back({{"name", name}, {"type", kInputType<T>}, {"help", help}, {"default", nullptr}});
  });
  return rows;
}

template <class Inputs>
Inputs read_inputs(const char* first, const Arguments& arguments) {
  Inputs inputs;
  std::size_t read = 1;
  Inputs::fields([&](const char* name, auto member, const char*) {
    const auto found = arguments.find(name);
    if (found == arguments.end()) return;
    inputs.*member = found->value().to<std::remove_cvref_t<decltype(inputs.*member)>>();
    ++read;
  });
  TORCH_CHECK_VALUE(arguments.contains(first), "expected the argument `", first, "`.");
  TORCH_CHECK_VALUE(arguments.size() == read, "unknown arguments: expected no more than `", first,
                    "` and the optional inputs, but got ", arguments.size(), " arguments.");
  return inputs;
}

/// What a module calls its first argument.
template <class Impl>
struct First {
  static constexpr const char* name = "x";
  static constexpr const char* help = "(batch, n, dim)";
};
template <>
struct First<nn::CoordinateDescentFeedForwardImpl> {
  static constexpr const char* name = "x";
  static constexpr const char* help = "(..., dim)";
};
template <class Impl>
requires std::is_base_of_v<models::LanguageModel, Impl>
struct First<Impl> {
  static constexpr const char* name = "tokens";
  static constexpr const char* help = "int64 (batch, n), n at most seq_len";
};

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
                bound.forward = [impl = module.get()](const Arguments& arguments) -> c10::IValue {
                  const auto inputs = read_inputs<Inputs>(First<Impl>::name, arguments);
                  const at::Tensor x = arguments.at(First<Impl>::name).toTensor();
                  if constexpr (std::is_same_v<Inputs, NoInputs>) {
                    return impl->forward(x);
                  } else {
                    return impl->forward(x, inputs);
                  }
                };
                bound.module = std::move(module);
                return bound;
              },
          .describe =
              [](const Entry& self) {
                return config::Json{
                    {"name", self.name},
                    {"doc", self.doc},
                    {"options", describe_options<Options>()},
                    {"inputs", describe_inputs<Inputs>(First<Impl>::name, First<Impl>::help)}};
              }};
}

constexpr Entry kEntries[] = {
    entry<nn::CoordinateDescentAttentionImpl, nn::CoordinateDescentAttentionOptions,
          nn::CoordinateDescentAttentionInputs>(
        "CoordinateDescentAttention",
        "Causal multi-head attention whose rows are softmax or coordinate-descent weights. "
        "(batch, n, dim) -> (batch, n, dim)"),
    entry<nn::CoordinateDescentFeedForwardImpl, nn::CoordinateDescentFeedForwardOptions>(
        "CoordinateDescentFeedForward",
        "Feed-forward layer whose activation is GELU or coordinate descent over the hidden units. "
        "(..., dim) -> (..., dim)"),
    entry<models::CoordinateDescentTransformerImpl, models::CoordinateDescentTransformerOptions>(
        "CoordinateDescentTransformer",
        "Causal language model of attention and feed-forward layers that may choose by coordinate "
        "descent. (batch, n) -> logits (batch, n, num_tokens)",
        models::CoordinateDescentTransformerImpl::kKind),
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
