// SPDX-License-Identifier: Apache-2.0
// The loop of a run. Order within a step: update, its row, evaluation, its row, checkpoint.
#include "train/trainer.h"

#include <torch/utils.h>
#include <torch/version.h>

#include <numbers>
#include <system_error>
#include <utility>

#include "config/error.h"
#include "train/evaluation.h"

namespace weir::train {
namespace {

TrainerSetup checked(TrainerSetup setup) {
  check(setup.train);
  setup.corpus.check_sequence(setup.model->max_length());
  if (setup.model->num_tokens() == 256) return setup;
  throw config::Error("train: expected a model of bytes, `num_tokens` = 256, but got " +
                      std::to_string(setup.model->num_tokens()) + ".");
}

TrainerState initial_state(const TrainerSetup& setup) {
  TrainerState state;
  state.corpus_fingerprint = fingerprint(setup.corpus);
  state.train_bytes = std::ssize(setup.corpus.train());
  state.threads = torch::get_num_threads();
  state.weir_version = WEIR_VERSION;
  state.torch_version = TORCH_VERSION;
  state.train = setup.train;
  state.data = setup.data;
  return state;
}

void warn_of_changes(const TrainerState& saved, const TrainerState& now, Progress& progress) {
  const auto warn = [&](const std::string& what) {
    progress.note("warning: " + what + "; results may differ in their last bits");
  };
  if (saved.threads != now.threads) {
    warn("the checkpoint is from a run with " + std::to_string(saved.threads) +
         " threads, now there are " + std::to_string(now.threads));
  }
  if (saved.torch_version != now.torch_version) {
    warn("the checkpoint is from torch " + saved.torch_version + ", this is " + now.torch_version);
  }
}

}  // namespace

Trainer::Trainer(TrainerSetup setup, const std::optional<Checkpoint>& checkpoint,
                 Progress& progress, StopCheck stop)
    : setup_(checked(std::move(setup))),
      progress_(progress),
      stop_(std::move(stop)),
      learner_(setup_.model, setup_.corpus.train(), setup_.train),
      state_(initial_state(setup_)),
      store_(setup_.directory) {
  if (checkpoint) restore(*checkpoint);
  store_.clean();
  metrics_.emplace(setup_.directory / "metrics.jsonl", state_.step, state_.evaluated_step);
}

void Trainer::restore(const Checkpoint& checkpoint) {
  check_compatible(checkpoint, state_, *setup_.model);
  warn_of_changes(checkpoint.state, state_, progress_);
  at::NoGradGuard no_grad;
  const auto weights = checkpoint.model->named_parameters();
  for (auto& item : setup_.model->named_parameters()) item.value().set_data(weights[item.key()]);
  learner_.optimizer().load_state(checkpoint.optimizer, checkpoint.path.string());
  state_.step = saved_step_ = checkpoint.state.step;
  state_.evaluated_step = checkpoint.state.evaluated_step;
  state_.best_bits_per_byte = checkpoint.state.best_bits_per_byte;
  state_.best_step = checkpoint.state.best_step;
  seconds_before_ = checkpoint.state.seconds;
  // An older one than the latest, because it was asked for or because the latest is damaged: what
  // comes after it no longer counts.
  store_.rewind(checkpoint.path);
}

Outcome Trainer::run() {
  started_ = Clock::now();
  progress_.start(state_.step, setup_.train.steps, setup_.train.log_every);
  // A run that was stopped in an evaluation owes it.
  std::optional<Outcome> outcome;
  if (evaluation_due() && !evaluate()) outcome = Outcome::kStopped;
  while (!outcome && state_.step < setup_.train.steps) outcome = advance();
  if (outcome != Outcome::kNumericalStop) save();
  progress_.finish();
  return outcome.value_or(Outcome::kFinished);
}

std::optional<Outcome> Trainer::advance() {
  const auto begin = Clock::now();
  const auto result = learner_.step(state_.step + 1, stop_);
  if (!result) return Outcome::kStopped;
  ++state_.step;
  record(*result, std::chrono::duration<double>(Clock::now() - begin).count());
  skipped_ = result->skipped ? skipped_ + 1 : 0;
  const bool last = state_.step == setup_.train.steps;
  if (skipped_ >= setup_.train.max_nan_steps || (last && skipped_ > 0)) {
    return Outcome::kNumericalStop;
  }
  if (evaluation_due() && !evaluate()) return Outcome::kStopped;
  if (due(setup_.train.save_every)) save();
  return std::nullopt;
}

void Trainer::record(const StepResult& result, double seconds) {
  const double bytes = static_cast<double>(setup_.train.batch_size * setup_.train.accumulate *
                                           setup_.model->max_length());
  config::Json row = {{"type", "step"},
                      {"step", state_.step},
                      {"loss", result.loss},
                      {"bits_per_byte", result.loss / std::numbers::ln2},
                      {"learning_rate", result.learning_rate},
                      {"grad_norm", result.grad_norm},
                      {"tokens_per_second", bytes / seconds},
                      {"seconds", this->seconds()}};
  if (result.skipped) row["skipped"] = true;
  metrics_->append(row);
  progress_.step(state_.step, result.loss, bytes / seconds);
  if (result.skipped) {
    progress_.note("warning: step " + std::to_string(state_.step) +
                   ": loss or gradient is not finite; the weights are left as they were");
  }
}

bool Trainer::evaluate() {
  const auto result = train::evaluate(*setup_.model, setup_.corpus.validation(),
                                      setup_.train.batch_size, setup_.train.eval_batches, stop_);
  if (!result) return false;
  state_.evaluated_step = state_.step;
  saved_step_ = -1;  // if this step is saved, then as one that owes an evaluation
  if (!state_.best_bits_per_byte || result->bits_per_byte < *state_.best_bits_per_byte) {
    state_.best_bits_per_byte = result->bits_per_byte;
    state_.best_step = state_.step;
  }
  metrics_->append({{"type", "evaluation"},
                    {"step", state_.step},
                    {"eval_loss", result->loss},
                    {"eval_bits_per_byte", result->bits_per_byte},
                    {"seconds", seconds()}});
  progress_.evaluation(state_.step, result->bits_per_byte);
  return true;
}

// After a step that was skipped the weights may be ones that give no finite loss any more; then the
// last checkpoint is a better place to go on from.
void Trainer::save() {
  if (skipped_ > 0 || saved_step_ == state_.step) return;
  state_.seconds = seconds();
  try {
    metrics_->sync();
    store_.save(state_, *setup_.model, learner_.optimizer().state(), setup_.train.keep_last);
    saved_step_ = state_.step;
  } catch (const std::system_error& error) {
    progress_.note("warning: step " + std::to_string(state_.step) +
                   " is not saved: " + error.what());
    save_failed_ = true;
  }
}

bool Trainer::due(std::int64_t every) const {
  return state_.step == setup_.train.steps || (every > 0 && state_.step % every == 0);
}

bool Trainer::evaluation_due() const {
  return setup_.train.eval_every > 0 && !setup_.corpus.validation().empty() && state_.step > 0 &&
         due(setup_.train.eval_every) && state_.evaluated_step != state_.step;
}

double Trainer::seconds() const {
  return seconds_before_ + std::chrono::duration<double>(Clock::now() - started_).count();
}

}  // namespace weir::train
