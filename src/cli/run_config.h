// SPDX-License-Identifier: Apache-2.0
// The configuration of a run: the tables [model], [data] and [train] of a TOML file with dotted
// overrides laid on it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cli/arguments.h"
#include "config/document.h"
#include "data/byte_corpus.h"
#include "train/options.h"
#include "weir/models/language_model.h"

namespace weir::cli {

struct RunConfig {
  std::string kind;      ///< of the model
  config::Json options;  ///< of the model
  data::CorpusOptions data;
  train::TrainOptions train;
};

/// Throws config::Error on unknown keys, naming the nearest, and on values of a wrong type or out
/// of range. The options of the model are checked when it is made.
RunConfig read_run_config(config::Json document, const Overrides& overrides);

/// A new model with the weights that train.seed gives. Throws config::Error.
std::shared_ptr<models::LanguageModel> make_model(const RunConfig& config);

/// All of the configuration, defaults too, as TOML that reads back as the same.
std::string to_toml(const RunConfig& config, const models::LanguageModel& model);

/// The dotted keys of all tables.
std::vector<std::string> known_keys(const std::string& kind);

/// Every option of every table with type, default and meaning, for --help.
std::string option_tables();

}  // namespace weir::cli
