// SPDX-License-Identifier: Apache-2.0
// torch.classes.weir.Module: any module of the table, constructed from its name and its options as
// JSON. No Python headers: torch's own class registry carries it, so one libweir.so serves every
// Python version.
#include <torch/custom_class.h>
#include <torch/library.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bind/module_table.h"
#include "config/error.h"
#include "models/state_dict.h"
#include "weir/models/checkpoint.h"
#include "weir/models/generate.h"
#include "weir/nn/route_back.h"

namespace weir::bind {
namespace {

/// Errors in options and files arrive in Python as ValueError.
template <class Body>
auto translated(const Body& body) {
  try {
    return body();
  } catch (const config::Error& error) {
    TORCH_CHECK_VALUE(false, error.what());
  } catch (const config::InputError& error) {
    TORCH_CHECK_VALUE(false, error.what());
  }
}

class Module : public torch::CustomClassHolder {
 public:
  Module(std::string name, const std::string& options) : name_(std::move(name)) {
    translated([&] { bound_ = make_module(name_, config::parse_json(options, name_)); });
  }

  std::string name() const { return name_; }
  std::string options() const { return bound_.options.dump(); }

  /// Tensors by their dotted names, in the order of registration. They are the module's own.
  c10::Dict<std::string, at::Tensor> parameters() const {
    c10::Dict<std::string, at::Tensor> result;
    for (const auto& item : bound_.module->named_parameters()) {
      result.insert(item.key(), item.value());
    }
    return result;
  }
  c10::Dict<std::string, at::Tensor> buffers() const {
    c10::Dict<std::string, at::Tensor> result;
    for (const auto& item : bound_.module->named_buffers()) result.insert(item.key(), item.value());
    return result;
  }

  void train(bool mode) { bound_.module->train(mode); }

  c10::IValue forward(const Arguments& arguments) { return bound_.forward(arguments); }

  /// Of language models: the new tokens of each prompt.
  std::vector<std::vector<std::int64_t>> generate(
      const std::vector<std::vector<std::int64_t>>& prompts, const std::string& options) {
    return translated([&] {
      const auto parsed =
          config::from_json<models::GenerateOptions>(config::parse_json(options, "generate"));
      std::vector<std::vector<std::int64_t>> rows;
      for (auto& row : models::generate(language_model(), prompts, parsed)) {
        rows.push_back(std::move(row.tokens));
      }
      return rows;
    });
  }

  /// Of language models: config.json and model.safetensors, as the program writes and reads them.
  void save(const std::string& directory) {
    translated([&] { models::save_model(directory, language_model()); });
  }

  /// Takes the weights of the model in `directory`; what it is must be what this is.
  void load_weights(const std::string& directory) {
    translated([&] {
      const auto model = models::load_model(directory);
      const at::NoGradGuard no_grad;
      auto own = models::state_dict(language_model());
      for (const auto& [name, tensor] : models::state_dict(*model)) {
        own.at(name).set_data(tensor);
      }
    });
  }

 private:
  models::LanguageModel& language_model() const {
    auto* model = dynamic_cast<models::LanguageModel*>(bound_.module.get());
    TORCH_CHECK_TYPE(model != nullptr, name_, " is not a language model.");
    return *model;
  }

  std::string name_;
  BoundModule bound_;
};

TORCH_LIBRARY_FRAGMENT(weir, m) {
  m.class_<Module>("Module")
      .def(torch::init<std::string, std::string>())
      .def("name", &Module::name)
      .def("options", &Module::options)
      .def("parameters", &Module::parameters)
      .def("buffers", &Module::buffers)
      .def("train", &Module::train)
      .def("forward", &Module::forward)
      .def("generate", &Module::generate)
      .def("save", &Module::save)
      .def("load_weights", &Module::load_weights);
  m.def("_version() -> str", [] { return std::string(WEIR_VERSION); });
  m.def("_module_names() -> str[]", module_names);
  m.def("_route_back(Tensor src, Tensor tokens, Tensor indices, Tensor? mask=None) -> Tensor",
        nn::route_back);
  m.def("_describe_module(str name) -> str", [](const std::string& name) {
    return translated([&] { return describe_module(name).dump(); });
  });
  m.def("_describe_generate() -> str",
        [] { return describe_options<models::GenerateOptions>().dump(); });
  m.def("_language_model_name(str kind) -> str", [](const std::string& kind) {
    return translated([&] { return language_model_name(kind); });
  });
}

}  // namespace
}  // namespace weir::bind
