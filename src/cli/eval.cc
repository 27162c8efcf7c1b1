// SPDX-License-Identifier: Apache-2.0
// weir eval: how well a model predicts text it was not trained on.
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <string>

#include "cli/errors.h"
#include "cli/verbs.h"
#include "config/document.h"
#include "config/error.h"
#include "data/byte_corpus.h"
#include "train/checkpoint_store.h"
#include "train/evaluation.h"
#include "weir/models/checkpoint.h"

namespace weir::cli {
namespace {

namespace fs = std::filesystem;

struct EvalArguments {
  std::string path, data;
  std::int64_t batches = 0;
  bool json = false;
};

// A model, and how it was trained if the trainer wrote it.
struct Subject {
  std::shared_ptr<models::LanguageModel> model;
  std::optional<train::TrainerState> state;
};

Subject read_subject(const fs::path& path) {
  Subject subject = {.model = models::load_model(path), .state = std::nullopt};
  if (fs::exists(path / "trainer.json")) subject.state = train::read_trainer_state(path);
  if (subject.model->num_tokens() == 256) return subject;
  throw train::IncompatibleError(path.string() +
                                 ": expected a model of bytes, `num_tokens` = 256, but got " +
                                 std::to_string(subject.model->num_tokens()));
}

void print(const EvalArguments& arguments, const Subject& subject, const data::ByteCorpus& corpus,
           const train::Evaluation& result) {
  if (arguments.json) {
    config::Json document = {{"eval_bits_per_byte", result.bits_per_byte},
                             {"eval_loss", result.loss},
                             {"bytes", result.bytes},
                             {"corpus", corpus.description()}};
    if (subject.state) document["step"] = subject.state->step;
    std::cout << document.dump() << std::endl;
    return;
  }
  std::printf("%.4f bits per byte (loss %.4f, %lld bytes held out of %s)\n", result.bits_per_byte,
              result.loss, static_cast<long long>(result.bytes), corpus.description().c_str());
}

int eval(const EvalArguments& arguments) {
  const train::StopSignals signals;
  const auto warn = [](const std::string& line) { complain("warning: " + line); };
  const Subject subject = train::read_newest(arguments.path, read_subject, warn);
  data::CorpusOptions options = subject.state ? subject.state->data : data::CorpusOptions();
  if (!arguments.data.empty()) options.path = arguments.data;
  const data::ByteCorpus corpus(options);
  if (subject.state && arguments.data.empty() &&
      subject.state->corpus_fingerprint != train::fingerprint(corpus)) {
    warn("the text has changed since training; what is held out now may have been trained on");
  }
  if (corpus.validation().empty()) {
    throw config::Error("nothing is held out: data.validation_fraction is 0 for this run");
  }
  const std::int64_t batch_size = subject.state ? subject.state->train.batch_size : 8;
  const auto result =
      train::evaluate(*subject.model, corpus.validation(), batch_size, arguments.batches,
                      [] { return train::StopSignals::received() != 0; });
  if (!result) return kSignal + train::StopSignals::received();
  print(arguments, subject, corpus, *result);
  return kOk;
}

}  // namespace

void add_eval(CLI::App& program, Session& session) {
  auto* verb = program.add_subcommand("eval", "Measure bits per byte on held-out text");
  const auto arguments = std::make_shared<EvalArguments>();
  verb->add_option("DIR", arguments->path, "A run (its latest checkpoint) or a checkpoint")
      ->required();
  verb->add_option("--data", arguments->data,
                   "Another text; of it, the part that training would hold out");
  verb->add_option("--batches", arguments->batches, "Batches, spread over the text; 0: all of it")
      ->capture_default_str()
      ->check(CLI::NonNegativeNumber);
  verb->add_flag("--json", arguments->json, "Print one JSON object");
  verb->allow_extras();
  verb->callback([verb, arguments, &session] {
    refuse_overrides(*verb, session.overrides);
    refuse_leftovers(*verb, {});
    session.exit_code = eval(*arguments);
  });
}

}  // namespace weir::cli
