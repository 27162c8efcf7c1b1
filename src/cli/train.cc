// SPDX-License-Identifier: Apache-2.0
// weir train: reads the configuration, then hands over to train::Trainer.
#include <torch/utils.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <string>

#include "cli/errors.h"
#include "cli/run_config.h"
#include "cli/verbs.h"
#include "config/atomic_file.h"
#include "config/error.h"
#include "models/registry.h"
#include "train/run_lock.h"
#include "train/trainer.h"

namespace weir::cli {
namespace {

namespace fs = std::filesystem;

struct TrainArguments {
  std::string out, config, data;
  std::optional<std::string> resume;  // "auto" or a path
  int threads = 0;
  bool print_config = false, dry_run = false, no_progress = false;
};

// The run file: the one that is named, or that of the run that is resumed.
config::Json read_document(const TrainArguments& arguments) {
  if (!arguments.config.empty()) return config::read_toml(arguments.config);
  const fs::path own = fs::path(arguments.out) / "config.toml";
  if (arguments.resume && !arguments.out.empty() && fs::exists(own)) return config::read_toml(own);
  return config::Json::object();
}

RunConfig read_config(const TrainArguments& arguments, const Overrides& overrides) {
  config::Json document = read_document(arguments);
  // In quotes, or a path like 2024 would be a number.
  if (!arguments.data.empty()) {
    config::set(document, "data.path", config::Json(arguments.data).dump());
  }
  return read_run_config(std::move(document), overrides);
}

std::string describe(const models::LanguageModel& model) {
  std::int64_t parameters = 0;
  for (const auto& parameter : model.parameters()) parameters += parameter.numel();
  char text[80];
  std::snprintf(text, sizeof text, ", %.2f million parameters, sequences of %lld bytes",
                static_cast<double>(parameters) / 1e6, static_cast<long long>(model.max_length()));
  return model.kind() + text;
}

// Makes two steps in memory and says how long a run would take.
int dry_run(const RunConfig& config, const std::shared_ptr<models::LanguageModel>& model,
            const data::ByteCorpus& corpus) {
  corpus.check_sequence(model->max_length());
  train::Learner learner(model, corpus.train(), config.train);
  learner.step(1);
  const auto begin = std::chrono::steady_clock::now();
  learner.step(2);
  const std::chrono::duration<double> step = std::chrono::steady_clock::now() - begin;
  std::printf("corpus: %s\nmodel: %s\n", corpus.description().c_str(), describe(*model).c_str());
  std::printf("threads: %d\none step: %.3f s; %lld steps: about %.1f minutes\n",
              torch::get_num_threads(), step.count(), static_cast<long long>(config.train.steps),
              step.count() * static_cast<double>(config.train.steps) / 60);
  return kOk;
}

bool holds_run(const fs::path& out) {
  return fs::exists(out / "metrics.jsonl") || fs::exists(out / "checkpoints");
}

// Where to go on, or nothing: begin. Throws config::Error rather than overwrite a run.
std::optional<train::Checkpoint> find_checkpoint(const TrainArguments& arguments) {
  const fs::path out = arguments.out;
  if (!arguments.resume) {
    if (!holds_run(out)) return std::nullopt;
    throw config::Error(out.string() +
                        " already holds a run; continue it with --resume, or choose another --out");
  }
  const bool automatic = *arguments.resume == "auto";
  if (automatic && train::CheckpointStore(out).candidates().empty()) return std::nullopt;
  const fs::path from = automatic ? out : fs::path(*arguments.resume);
  auto checkpoint = train::read_newest(
      from, train::read_checkpoint, [](const std::string& line) { complain("warning: " + line); });
  const auto inside = fs::relative(checkpoint.path, out);
  if (holds_run(out) && inside.native().starts_with("..")) {
    throw config::Error(out.string() + " already holds another run than " + from.string() +
                        "; choose another --out");
  }
  return checkpoint;
}

int exit_code(const train::Trainer& trainer, train::Outcome outcome) {
  if (outcome == train::Outcome::kStopped) return kSignal + train::StopSignals::received();
  if (outcome == train::Outcome::kNumericalStop) return kNumericalStop;
  return trainer.save_failed() ? kResource : kOk;
}

std::string ending(const train::Trainer& trainer, train::Outcome outcome) {
  const std::string step = std::to_string(trainer.state().step);
  if (outcome == train::Outcome::kStopped)
    return "stopped after step " + step + "; continue with --resume";
  if (outcome == train::Outcome::kFinished) return "finished " + step + " steps";
  return "stopped after step " + step +
         ": loss or gradient was not finite for too long; try a lower train.learning_rate";
}

int train_run(const TrainArguments& arguments, const RunConfig& config,
              const std::shared_ptr<models::LanguageModel>& model, const data::ByteCorpus& corpus) {
  const train::RunLock lock(arguments.out);
  const auto checkpoint = find_checkpoint(arguments);
  train::Progress progress(std::cerr, arguments.no_progress ? train::Progress::Style::kLines
                                                            : train::Progress::style_of_terminal());
  train::Trainer trainer({.directory = arguments.out,
                          .model = model,
                          .corpus = corpus,
                          .data = config.data,
                          .train = config.train},
                         checkpoint, progress, [] { return train::StopSignals::received() != 0; });
  config::write_file(fs::path(arguments.out) / "config.toml", to_toml(config, *model));
  progress.note("corpus: " + corpus.description());
  progress.note("model: " + describe(*model));
  progress.note(
      (checkpoint ? "continuing " + checkpoint->path.string() : "training in " + arguments.out) +
      " with " + std::to_string(torch::get_num_threads()) + " threads");
  const auto outcome = trainer.run();
  progress.note(ending(trainer, outcome));
  return exit_code(trainer, outcome);
}

int train(const TrainArguments& arguments, const Overrides& overrides) {
  const train::StopSignals signals;
  if (arguments.threads > 0) torch::set_num_threads(arguments.threads);
  const RunConfig config = read_config(arguments, overrides);
  const auto model = make_model(config);
  if (arguments.print_config) {
    std::cout << to_toml(config, *model);
    return kOk;
  }
  if (arguments.out.empty() && !arguments.dry_run) {
    throw config::Error("weir train needs --out DIR, the directory of the run");
  }
  const data::ByteCorpus corpus(config.data);
  if (arguments.dry_run) return dry_run(config, model, corpus);
  return train_run(arguments, config, model, corpus);
}

}  // namespace

void add_train(CLI::App& program, Session& session) {
  auto* verb = program.add_subcommand("train", "Train a language model on text");
  const auto arguments = std::make_shared<TrainArguments>();
  verb->add_option("--out", arguments->out, "Directory of the run");
  verb->add_option("--config", arguments->config, "Run file, TOML; - reads the standard input");
  verb->add_option("--data", arguments->data, "Text to train on; short for --data.path");
  verb->add_option("--resume", arguments->resume,
                   "Go on from the latest checkpoint if there is one, or from PATH")
      ->expected(0, 1)
      ->default_str("auto")
      ->type_name("[auto|PATH]");
  verb->add_option("--threads", arguments->threads, "Threads; default: torch's choice")
      ->check(CLI::Range(1, 4096));
  verb->add_flag("--print-config", arguments->print_config,
                 "Print the whole configuration, and end");
  verb->add_flag("--dry-run", arguments->dry_run, "Check all, make two steps, and write nothing");
  verb->add_flag("--no-progress", arguments->no_progress, "Lines instead of a bar");
  verb->footer(option_tables);
  verb->allow_extras();
  verb->callback([verb, arguments, &session] {
    refuse_leftovers(*verb, known_keys(models::language_model_kinds().front()));
    session.exit_code = train(*arguments, session.overrides);
  });
}

}  // namespace weir::cli
