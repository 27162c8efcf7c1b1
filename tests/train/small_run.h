// SPDX-License-Identifier: Apache-2.0
// A text and a model that train in a second, and what a run has left of itself.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "config/atomic_file.h"
#include "config/document.h"
#include "data/byte_corpus.h"
#include "support/temporary_directory.h"
#include "train/trainer.h"
#include "weir/models/coordinate_descent_transformer.h"

namespace weir::train {

/// Sentences of a few words in an order that repeats only after long.
inline std::string small_text(int sentences = 200) {
  const char* subjects[] = {"the cat", "a dog", "one bird", "every fish", "my horse"};
  const char* verbs[] = {" sees ", " likes ", " follows ", " finds "};
  std::string text;
  for (int i = 0; i < sentences; ++i) {
    text += subjects[i % 5] + std::string(verbs[i % 4]) + subjects[i * i % 5] + ".\n";
  }
  return text;
}

inline models::CoordinateDescentTransformerOptions small_model_options() {
  return {.num_tokens = 256,
          .dim = 16,
          .seq_len = 16,
          .depth = 1,
          .dim_head = 8,
          .heads = 2,
          .ff_mult = 2,
          .attn_use_coor_descent = true};
}

inline std::shared_ptr<models::CoordinateDescentTransformerImpl> small_model(
    std::uint64_t seed = 1) {
  torch::manual_seed(seed);
  return std::make_shared<models::CoordinateDescentTransformerImpl>(small_model_options());
}

inline TrainOptions small_train_options() {
  return {.steps = 12,
          .batch_size = 4,
          .accumulate = 2,
          .learning_rate = 1e-2,
          .min_learning_rate = 1e-3,
          .warmup_steps = 3,
          .eval_every = 4,
          .eval_batches = 2,
          .save_every = 3};
}

/// Equal names and equal bits.
inline void expect_equal_parameters(const torch::nn::Module& a, const torch::nn::Module& b) {
  const auto others = b.named_parameters();
  ASSERT_EQ(a.named_parameters().size(), others.size());
  for (const auto& item : a.named_parameters()) {
    EXPECT_TRUE(item.value().equal(others[item.key()])) << item.key();
  }
}

/// The rows of metrics.jsonl without what the clock decides.
inline std::vector<std::string> trace(const std::filesystem::path& run) {
  std::istringstream lines(config::read_file(run / "metrics.jsonl"));
  std::vector<std::string> rows;
  for (std::string line; std::getline(lines, line);) {
    auto row = config::parse_json(line, "metrics.jsonl");
    row.erase("seconds");
    row.erase("tokens_per_second");
    rows.push_back(row.dump());
  }
  return rows;
}

/// A directory with a text; trains the small model in it.
class SmallRun : public ::testing::Test {
 protected:
  SmallRun() {
    std::ofstream(directory_ / "text.txt") << small_text();
    data_ = {.path = (directory_ / "text.txt").string()};
    corpus_ = std::make_unique<data::ByteCorpus>(data_);
  }

  TrainerSetup setup(const std::string& name) {
    std::filesystem::create_directories(directory_ / name);
    return {.directory = directory_ / name,
            .model = small_model(),
            .corpus = *corpus_,
            .data = data_,
            .train = small_train_options()};
  }

  Outcome train(const TrainerSetup& setup, const std::optional<Checkpoint>& checkpoint = {},
                const StopCheck& stop = nullptr) {
    Trainer trainer(setup, checkpoint, progress_, stop);
    const Outcome outcome = trainer.run();
    save_failed_ = trainer.save_failed();
    return outcome;
  }

  /// The latest checkpoint, or nothing.
  std::optional<Checkpoint> latest(const std::string& name) {
    const CheckpointStore store(directory_ / name);
    if (store.candidates().empty()) return std::nullopt;
    return read_newest(directory_ / name, read_checkpoint,
                       [this](const std::string& line) { warnings_.push_back(line); });
  }

  tests::TemporaryDirectory directory_;
  data::CorpusOptions data_;
  std::unique_ptr<data::ByteCorpus> corpus_;
  std::ostringstream printed_;
  Progress progress_{printed_, Progress::Style::kLines};
  std::vector<std::string> warnings_;
  bool save_failed_ = false;
};

}  // namespace weir::train
