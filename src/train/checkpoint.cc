// SPDX-License-Identifier: Apache-2.0
// The files of a checkpoint, and whether it fits a run.
#include "train/checkpoint.h"

#include <cstdio>

#include "config/atomic_file.h"
#include "config/error.h"
#include "config/options.h"
#include "weir/models/checkpoint.h"

namespace weir::train {
namespace {

constexpr auto kOptimizerFile = "optimizer.safetensors";
constexpr auto kStateFile = "trainer.json";

// The first option in which two models of one kind differ: "dim = 256, but this run has dim = 128".
std::string difference(const config::Json& saved, const config::Json& wanted) {
  for (const auto& [key, value] : wanted.items()) {
    const config::Json before = saved.value(key, config::Json());
    if (before == value) continue;
    return key + " = " + before.dump() + ", but this run has " + key + " = " + value.dump();
  }
  return "";
}

}  // namespace

std::string fingerprint(const data::ByteCorpus& corpus) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx",
                static_cast<unsigned long long>(corpus.fingerprint()));
  return text;
}

void write_checkpoint(const std::filesystem::path& directory, const TrainerState& state,
                      const models::LanguageModel& model, const models::TensorMap& optimizer) {
  models::save_model(directory, model);
  models::write_safetensors(directory / kOptimizerFile, optimizer);
  config::write_file(directory / kStateFile, config::to_json(state).dump(2) + "\n");
}

TrainerState read_trainer_state(const std::filesystem::path& directory) {
  const auto path = directory / kStateFile;
  const config::Json document = config::parse_json(config::read_file(path), path.string());
  try {
    const auto state = config::from_json<TrainerState>(document);
    const config::Json complete = config::to_json(state);
    for (const auto& [key, unused] : complete.items()) {
      if (!document.contains(key)) throw config::Error("the key `" + key + "` is missing");
    }
    return state;
  } catch (const config::Error& error) {
    throw config::InputError(path.string() + ": " + error.what());
  }
}

Checkpoint read_checkpoint(const std::filesystem::path& directory) {
  return {.path = directory,
          .state = read_trainer_state(directory),
          .model = models::load_model(directory),
          .optimizer = models::read_safetensors(directory / kOptimizerFile).tensors};
}

void check_compatible(const Checkpoint& checkpoint, const TrainerState& state,
                      const models::LanguageModel& model) {
  const std::string name = checkpoint.path.string();
  if (checkpoint.model->kind() != model.kind()) {
    throw IncompatibleError(name + " holds a model of kind `" + checkpoint.model->kind() +
                            "`, but this run has `" + model.kind() + "`");
  }
  const auto options = difference(config::parse_json(checkpoint.model->options_json(), name),
                                  config::parse_json(model.options_json(), "model"));
  if (!options.empty()) throw IncompatibleError(name + " holds a model with " + options);
  if (checkpoint.state.corpus_fingerprint != state.corpus_fingerprint) {
    throw IncompatibleError(name + " was trained on another text (fingerprint " +
                            checkpoint.state.corpus_fingerprint + ", now " +
                            state.corpus_fingerprint + ")");
  }
  if (checkpoint.state.train_bytes != state.train_bytes) {
    throw IncompatibleError(
        name + " was trained on " + std::to_string(checkpoint.state.train_bytes) +
        " bytes of the text, but this run has " + std::to_string(state.train_bytes) + " to train");
  }
}

}  // namespace weir::train
