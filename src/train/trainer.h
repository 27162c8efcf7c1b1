// SPDX-License-Identifier: Apache-2.0
// A training run in a directory:
//
//   RUN/checkpoints/    see train/checkpoint_store.h
//   RUN/metrics.jsonl   see train/metrics_writer.h
//
// A run that was killed at any point and resumed writes the same losses and the same weights, bit
// for bit, as one that was not.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>

#include "data/byte_corpus.h"
#include "train/checkpoint_store.h"
#include "train/learner.h"
#include "train/metrics_writer.h"
#include "train/options.h"
#include "train/progress.h"
#include "train/stop_signals.h"
#include "weir/export.h"
#include "weir/models/language_model.h"

namespace weir::train {

/// How a run ended.
enum class Outcome {
  kFinished,
  kStopped,        ///< the StopCheck said so
  kNumericalStop,  ///< max_nan_steps in a row; the last good checkpoint is the latest
};

struct TrainerSetup {
  std::filesystem::path directory;  ///< must exist, and be locked by the caller
  std::shared_ptr<models::LanguageModel> model;
  const data::ByteCorpus& corpus;
  data::CorpusOptions data;
  TrainOptions train;
};

class WEIR_API Trainer {
 public:
  /// From the beginning, or from `checkpoint`, whose weights `setup.model` takes on. Throws
  /// config::Error on options out of range, config::InputError on a corpus that is too short,
  /// IncompatibleError when the checkpoint is not of this run. `progress` must outlive the trainer.
  Trainer(TrainerSetup setup, const std::optional<Checkpoint>& checkpoint, Progress& progress,
          StopCheck stop = nullptr);

  /// Trains to the last step.
  Outcome run();

  const TrainerState& state() const { return state_; }

  /// Whether a save failed, for want of disk space most likely. The run goes on nevertheless.
  bool save_failed() const { return save_failed_; }

 private:
  using Clock = std::chrono::steady_clock;

  void restore(const Checkpoint& checkpoint);
  std::optional<Outcome> advance();
  void record(const StepResult& result, double seconds);
  bool evaluate();
  void save();
  bool due(std::int64_t every) const;
  bool evaluation_due() const;
  double seconds() const;

  TrainerSetup setup_;
  Progress& progress_;
  StopCheck stop_;
  Learner learner_;
  TrainerState state_;
  CheckpointStore store_;
  std::optional<MetricsWriter> metrics_;
  Clock::time_point started_ = Clock::now();
  double seconds_before_ = 0;
  std::int64_t skipped_ = 0;  // in a row
  std::int64_t saved_step_ = -1;
  bool save_failed_ = false;
};

}  // namespace weir::train
