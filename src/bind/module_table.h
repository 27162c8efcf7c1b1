// SPDX-License-Identifier: Apache-2.0
// The modules that other languages can construct by name. A new module is one line in
// module_table.cc.
#pragma once

#include <ATen/core/Dict.h>
#include <ATen/core/ivalue.h>
#include <torch/nn/module.h>

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "config/document.h"
#include "config/options.h"

namespace weir::bind {

/// Arguments of a call by their names: tensors, numbers, bools, none.
using Arguments = c10::Dict<std::string, c10::IValue>;

struct BoundModule {
  std::shared_ptr<torch::nn::Module> module;
  std::function<c10::IValue(const Arguments&)> forward;
  config::Json options;  // all of them, with those that were left at their defaults
};

/// Options as rows {"name", "type", "help", "default" unless required}. Options inside options are
/// one row of type "table", whose default, {}, leaves all of them at their own defaults.
template <class Options>
config::Json describe_options() {
  config::Json rows = config::Json::array();
  const config::Json defaults = config::to_json(Options());
  for (const config::Field& field : config::describe<Options>()) {
    const std::size_t dot = field.name.find('.');
    if (dot == std::string::npos) {
      config::Json row = {{"name", field.name}, {"type", field.type}, {"help", field.help}};
      if (!field.help.ends_with("required.")) row["default"] = defaults[field.name];
      rows.push_back(std::move(row));
      continue;
    }
    const std::string table = field.name.substr(0, dot), name = field.name.substr(dot + 1);
    if (rows.empty() || rows.back()["name"] != table) {
      rows.push_back({{"name", table},
                      {"type", "table"},
                      {"help", "Any of the options " + name},
                      {"default", config::Json::object()}});
    } else {
      rows.back()["help"] = rows.back()["help"].get<std::string>() + ", " + name;
    }
  }
  return rows;
}

/// A new module. Throws config::Error on an unknown name and on options that do not fit.
BoundModule make_module(std::string_view name, const config::Json& options);

/// {"name", "doc", "options": [{"name", "type", "help", "default" unless required}], "inputs": [the
/// same], "outputs": [names, none for one tensor]}
config::Json describe_module(std::string_view name);

std::vector<std::string> module_names();

/// The name of the language model that run files and checkpoints call `kind`.
std::string language_model_name(std::string_view kind);

}  // namespace weir::bind
