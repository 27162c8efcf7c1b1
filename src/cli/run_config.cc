// SPDX-License-Identifier: Apache-2.0
// Documents to options and back.
#include "cli/run_config.h"

#include <torch/utils.h>

#include <algorithm>

#include "config/error.h"
#include "config/options.h"
#include "models/registry.h"

namespace weir::cli {
namespace {

constexpr auto kDefaultKind = "coordinate_descent";

// What the program gives a model unless told otherwise: bytes, a size that two cores can train, and
// the mechanism that the kind is named after. The library's defaults are the published package's.
const config::Json& program_defaults(const std::string& kind) {
  static const config::Json kinds = {{"coordinate_descent",
                                      {{"num_tokens", 256},
                                       {"dim", 128},
                                       {"seq_len", 128},
                                       {"depth", 4},
                                       {"attn_kind", "coordinate_descent"}}},
                                     {"colt5",
                                      {{"num_tokens", 256},
                                       {"dim", 128},
                                       {"max_seq_len", 256},
                                       {"depth", 4},
                                       {"num_heavy_attn_tokens_q", 8},
                                       {"num_heavy_attn_tokens_kv", 32},
                                       {"num_heavy_ff_tokens", 8},
                                       {"light_dim_head", 32},
                                       {"light_heads", 4},
                                       {"light_window_size", 32},
                                       {"heavy_dim_head", 32},
                                       {"heavy_heads", 4}}},
                                     {"local",
                                      {{"num_tokens", 256},
                                       {"dim", 128},
                                       {"max_seq_len", 256},
                                       {"depth", 4},
                                       {"local_attn_window_size", 32}}},
                                     {"sparse",
                                      {{"num_tokens", 256},
                                       {"dim", 128},
                                       {"seq_len", 128},
                                       {"depth", 4},
                                       {"attn_mode", "local+strided"},
                                       {"local_attn_ctx", 16}}}};
  static const config::Json others = config::Json::object();
  const auto found = kinds.find(kind);
  return found == kinds.end() ? others : *found;
}

std::vector<config::Field> model_fields(const std::string& kind) {
  auto fields = models::describe_language_model(kind, "model");
  const config::Json& defaults = program_defaults(kind);
  for (auto& field : fields) {
    const auto given = defaults.find(field.name.substr(std::string("model.").size()));
    if (given != defaults.end()) field.default_value = given->dump();
  }
  return fields;
}

// The kind, taken out of the table [model].
std::string take_kind(config::Json& model) {
  if (!model.contains("kind")) return kDefaultKind;
  if (!model["kind"].is_string()) {
    throw config::Error("`model.kind`: expected a string, but got " + model["kind"].dump());
  }
  const auto kind = model["kind"].get<std::string>();
  model.erase("kind");
  return kind;
}

void check_tables(const config::Json& document, const std::string& kind) {
  config::internal::check_table(document, "", {"model", "data", "train"}, known_keys(kind));
}

std::string table_text(const std::vector<config::Field>& fields) {
  std::string text;
  for (const auto& field : fields) {
    std::string head = "  --" + field.name + "  " + field.type + " [" + field.default_value + "]";
    text += head + "\n        " + field.help + "\n";
  }
  return text;
}

}  // namespace

RunConfig read_run_config(config::Json document, const Overrides& overrides) {
  for (const auto& [key, value] : overrides) config::set(document, key, value);
  config::Json model = document.value("model", config::Json::object());
  if (!model.is_object()) {
    throw config::Error("`model`: expected a table, but got " + model.dump());
  }
  RunConfig result;
  result.kind = take_kind(model);
  check_tables(document, result.kind);
  result.options = program_defaults(result.kind);
  config::merge(result.options, model);
  const auto table = [&](const char* name) { return document.value(name, config::Json::object()); };
  result.data = config::from_json<data::CorpusOptions>(table("data"), "data");
  result.train = config::from_json<train::TrainOptions>(table("train"), "train");
  train::check(result.train);
  return result;
}

std::shared_ptr<models::LanguageModel> make_model(const RunConfig& config) {
  torch::manual_seed(static_cast<std::uint64_t>(config.train.seed));
  return models::make_language_model(config.kind, config.options, "model");
}

std::string to_toml(const RunConfig& config, const models::LanguageModel& model) {
  config::Json document = {{"model", {{"kind", config.kind}}},
                           {"data", config::to_json(config.data)},
                           {"train", config::to_json(config.train)}};
  config::merge(document["model"], config::parse_json(model.options_json(), "model"));
  return config::to_toml(document);
}

std::vector<std::string> known_keys(const std::string& kind) {
  std::vector<std::string> keys = {"model.kind"};
  for (const auto& fields : {model_fields(kind), config::describe<data::CorpusOptions>("data"),
                             config::describe<train::TrainOptions>("train")}) {
    for (const auto& field : fields) keys.push_back(field.name);
  }
  return keys;
}

std::string option_tables() {
  std::string text =
      "Options of a run: keys of the tables [model], [data] and [train] of its file, or on the\n"
      "command line as below. In brackets: the default.\n\n";
  text += table_text({{"model.kind", "string", config::Json(kDefaultKind).dump(),
                       "Which model; each kind has options of its own."}});
  for (const auto& kind : models::language_model_kinds()) {
    text += "\nWith model.kind = \"" + kind + "\":\n" + table_text(model_fields(kind));
  }
  text += "\n" + table_text(config::describe<data::CorpusOptions>("data"));
  return text + "\n" + table_text(config::describe<train::TrainOptions>("train"));
}

}  // namespace weir::cli
