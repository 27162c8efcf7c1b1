// SPDX-License-Identifier: Apache-2.0
// Saving and loading models: config.json and model.safetensors.
#include "weir/models/checkpoint.h"

#include <sstream>

#include "config/atomic_file.h"
#include "config/error.h"
#include "models/registry.h"
#include "models/safetensors.h"
#include "models/state_dict.h"

namespace weir::models {
namespace {

constexpr auto kConfigFile = "config.json";
constexpr auto kWeightsFile = "model.safetensors";

template <class... Parts>
[[noreturn]] void fail(const std::filesystem::path& path, const Parts&... parts) {
  std::ostringstream message;
  message << path.string() << ": ";
  (message << ... << parts);
  throw config::InputError(message.str());
}

std::shared_ptr<LanguageModel> construct(const std::filesystem::path& path) {
  const config::Json document = config::parse_json(config::read_file(path), path.string());
  if (!document.is_object() || !document.contains("kind") || !document["kind"].is_string() ||
      !document.contains("options")) {
    fail(path, "expected an object with the keys `kind`, a string, and `options`");
  }
  try {
    return make_language_model(document["kind"].get<std::string>(), document["options"], "options");
  } catch (const config::Error& error) {
    fail(path, error.what());
  }
}

void check(const std::filesystem::path& path, const TensorMap& expected, const TensorMap& found) {
  for (const auto& [name, tensor] : expected) {
    const auto entry = found.find(name);
    if (entry == found.end()) {
      fail(path, "tensor `", name, "` of shape ", tensor.sizes(), " is missing");
    }
    if (entry->second.sizes() != tensor.sizes()) {
      fail(path, "expected tensor `", name, "` to have shape ", tensor.sizes(), ", but got ",
           entry->second.sizes());
    }
    if (!entry->second.is_floating_point()) {
      fail(path, "expected tensor `", name, "` to be floating point, but got ",
           entry->second.scalar_type());
    }
  }
  for (const auto& [name, tensor] : found) {
    if (!expected.contains(name)) {
      fail(path, "unexpected tensor `", name, "` of shape ", tensor.sizes());
    }
  }
}

}  // namespace

void save_model(const std::filesystem::path& directory, const LanguageModel& model) {
  std::filesystem::create_directories(directory);
  write_safetensors(directory / kWeightsFile, state_dict(model));
  const config::Json document = {
      {"kind", model.kind()},
      {"weir_version", WEIR_VERSION},
      {"options", config::parse_json(model.options_json(), model.kind())}};
  config::write_file(directory / kConfigFile, document.dump(2) + "\n");
}

std::shared_ptr<LanguageModel> load_model(const std::filesystem::path& directory) {
  auto model = construct(directory / kConfigFile);
  const auto path = directory / kWeightsFile;
  const TensorMap found = read_safetensors(path).tensors, expected = state_dict(*model);
  check(path, expected, found);
  at::NoGradGuard no_grad;
  for (auto [name, tensor] : expected) tensor.set_data(found.at(name));
  return model;
}

}  // namespace weir::models
