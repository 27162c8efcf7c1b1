// SPDX-License-Identifier: Apache-2.0
// The table of language models. A new model is one line in kEntries.
#include "models/registry.h"

#include <c10/util/Exception.h>

#include "config/error.h"
#include "config/nearest.h"
#include "weir/models/conditional_routed_transformer.h"
#include "weir/models/coordinate_descent_transformer.h"
#include "weir/models/local_transformer.h"
#include "weir/models/sparse_transformer.h"

namespace weir::models {
namespace {

struct Entry {
  const char* kind;
  std::shared_ptr<LanguageModel> (*make)(const config::Json& options, std::string_view where);
  std::vector<config::Field> (*describe)(std::string_view prefix);
};

template <class Model, class Options>
constexpr Entry entry() {
  return {.kind = Model::kKind,
          .make = [](const config::Json& options,
                     std::string_view where) -> std::shared_ptr<LanguageModel> {
            return std::make_shared<Model>(config::from_json<Options>(options, where));
          },
          .describe = config::describe<Options>};
}

constexpr Entry kEntries[] = {
    entry<ConditionalRoutedTransformerImpl, ConditionalRoutedTransformerOptions>(),
    entry<CoordinateDescentTransformerImpl, CoordinateDescentTransformerOptions>(),
    entry<LocalTransformerImpl, LocalTransformerOptions>(),
    entry<SparseTransformerImpl, SparseTransformerOptions>(),
};

const Entry& find(std::string_view kind) {
  for (const Entry& entry : kEntries) {
    if (entry.kind == kind) return entry;
  }
  const auto kinds = language_model_kinds();
  std::string message = "unknown model kind `" + std::string(kind) + "`";
  const auto meant = config::nearest(kind, kinds);
  message += meant.empty() ? "." : "; did you mean `" + meant + "`?";
  message += " The kinds are";
  for (const auto& name : kinds) message += (&name == &kinds.front() ? " `" : ", `") + name + "`";
  throw config::Error(message + ".");
}

}  // namespace

std::shared_ptr<LanguageModel> make_language_model(std::string_view kind,
                                                   const config::Json& options,
                                                   std::string_view where) {
  const Entry& entry = find(kind);
  try {
    return entry.make(options, where);
  } catch (const c10::Error& error) {
    throw config::Error(error.what_without_backtrace());
  }
}

std::vector<config::Field> describe_language_model(std::string_view kind, std::string_view prefix) {
  return find(kind).describe(prefix);
}

std::vector<std::string> language_model_kinds() {
  std::vector<std::string> kinds;
  for (const Entry& entry : kEntries) kinds.push_back(entry.kind);
  return kinds;
}

}  // namespace weir::models
