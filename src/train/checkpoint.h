// SPDX-License-Identifier: Apache-2.0
// A checkpoint is a directory:
//
//   config.json, model.safetensors   the model, as models::save_model writes it
//   optimizer.safetensors            Optimizer::state
//   trainer.json                     TrainerState
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>

#include "data/byte_corpus.h"
#include "models/safetensors.h"
#include "train/options.h"
#include "weir/export.h"
#include "weir/models/language_model.h"

namespace weir::train {

/// A checkpoint is sound, but not one of this run: other model, other text. Exit code 4.
class WEIR_API IncompatibleError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// What a run needs besides weights and optimizer to go on as if it had never stopped, and what
/// tells whether it may.
struct TrainerState {
  std::int64_t step = 0;            // steps done
  std::int64_t evaluated_step = 0;  // the last step with an evaluation
  double seconds = 0;
  std::optional<double> best_bits_per_byte;
  std::int64_t best_step = 0;
  std::string corpus_fingerprint;
  std::int64_t train_bytes = 0;
  std::int64_t threads = 0;
  std::string weir_version, torch_version;
  TrainOptions train;
  data::CorpusOptions data;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = TrainerState;
    field("step", &Self::step, "Steps done.");
    field("evaluated_step", &Self::evaluated_step, "The last step with an evaluation.");
    field("seconds", &Self::seconds, "Time spent on the run.");
    field("best_bits_per_byte", &Self::best_bits_per_byte, "Lowest of all evaluations.");
    field("best_step", &Self::best_step, "The step of that evaluation.");
    field("corpus_fingerprint", &Self::corpus_fingerprint, "ByteCorpus::fingerprint, in hex.");
    field("train_bytes", &Self::train_bytes, "Size of the part of the corpus to train on.");
    field("threads", &Self::threads, "Threads of the process that saved.");
    field("weir_version", &Self::weir_version, "Version that saved.");
    field("torch_version", &Self::torch_version, "Version of torch that saved.");
    field("train", &Self::train, "Options of the run.");
    field("data", &Self::data, "Options of the corpus.");
  }
};

/// What TrainerState::corpus_fingerprint says of `corpus`.
WEIR_API std::string fingerprint(const data::ByteCorpus& corpus);

struct Checkpoint {
  std::filesystem::path path;
  TrainerState state;
  std::shared_ptr<models::LanguageModel> model;
  models::TensorMap optimizer;
};

/// Writes the files of a checkpoint into `directory`. Throws std::system_error.
WEIR_API void write_checkpoint(const std::filesystem::path& directory, const TrainerState& state,
                               const models::LanguageModel& model,
                               const models::TensorMap& optimizer);

/// Throws config::InputError when a part is missing or damaged.
WEIR_API Checkpoint read_checkpoint(const std::filesystem::path& directory);
WEIR_API TrainerState read_trainer_state(const std::filesystem::path& directory);

/// Throws IncompatibleError, naming what differs, unless `checkpoint` continues a run of `model` on
/// the text that `state` describes.
WEIR_API void check_compatible(const Checkpoint& checkpoint, const TrainerState& state,
                               const models::LanguageModel& model);

}  // namespace weir::train
