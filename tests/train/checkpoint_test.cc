// SPDX-License-Identifier: Apache-2.0
// A checkpoint's files: round trip, damage to each of them, and whether it fits a run.
#include "train/checkpoint.h"

#include "config/error.h"
#include "config/options.h"
#include "train/small_run.h"

namespace weir::train {
namespace {

class CheckpointTest : public SmallRun {
 protected:
  CheckpointTest() {
    Learner learner(model_, corpus_->train(), small_train_options());
    learner.step(1);
    state_.step = 1;
    state_.best_bits_per_byte = 3.25;
    state_.corpus_fingerprint = fingerprint(*corpus_);
    state_.train = small_train_options();
    state_.data = data_;
    optimizer_ = learner.optimizer().state();
    write_checkpoint(path_, state_, *model_, optimizer_);
  }

  void refuses(const std::string& words) {
    try {
      read_checkpoint(path_);
      ADD_FAILURE() << "not refused: " << words;
    } catch (const config::InputError& error) {
      EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
    }
  }

  std::shared_ptr<models::LanguageModel> model_ = small_model();
  TrainerState state_;
  models::TensorMap optimizer_;
  std::filesystem::path path_ = directory_ / "checkpoint";
};

TEST_F(CheckpointTest, ReadsBackWhatWasWritten) {
  const Checkpoint found = read_checkpoint(path_);
  expect_equal_parameters(*found.model, *model_);
  EXPECT_EQ(config::to_json(found.state), config::to_json(state_));
  ASSERT_EQ(found.optimizer.size(), optimizer_.size());
  for (const auto& [name, tensor] : optimizer_) {
    EXPECT_TRUE(found.optimizer.at(name).equal(tensor)) << name;
  }
}

TEST_F(CheckpointTest, EveryFileMustBeThereAndWhole) {
  for (const std::string file :
       {"config.json", "model.safetensors", "optimizer.safetensors", "trainer.json"}) {
    const auto bytes = config::read_file(path_ / file);
    config::write_file(path_ / file, bytes.substr(0, bytes.size() / 2));
    refuses(file);
    std::filesystem::remove(path_ / file);
    refuses(file);
    config::write_file(path_ / file, bytes);
  }
  read_checkpoint(path_);
}

TEST_F(CheckpointTest, TheStateMustBeComplete) {
  config::write_file(path_ / "trainer.json", "{}");
  refuses("trainer.json: the key `step` is missing");
  config::write_file(path_ / "trainer.json", "{\"stpe\": 1}");
  refuses("trainer.json: unknown key `stpe`; did you mean `step`?");
}

TEST_F(CheckpointTest, FitsOnlyItsRun) {
  const Checkpoint found = read_checkpoint(path_);
  const auto refuses = [&](const TrainerState& state, const models::LanguageModel& model,
                           const std::string& words) {
    try {
      check_compatible(found, state, model);
      ADD_FAILURE() << "not refused: " << words;
    } catch (const IncompatibleError& error) {
      EXPECT_EQ(std::string(error.what()), path_.string() + words);
    }
  };
  check_compatible(found, state_, *model_);
  auto options = small_model_options();
  options.heads = 4;
  refuses(state_, models::CoordinateDescentTransformerImpl(options),
          " holds a model with heads = 2, but this run has heads = 4");
  TrainerState other = state_;
  other.corpus_fingerprint = "0123456789abcdef";
  refuses(other, *model_,
          " was trained on another text (fingerprint " + state_.corpus_fingerprint +
              ", now 0123456789abcdef)");
  other = state_;
  other.train_bytes = 77;
  refuses(other, *model_, " was trained on 0 bytes of the text, but this run has 77 to train");
}

}  // namespace
}  // namespace weir::train
