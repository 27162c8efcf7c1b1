// SPDX-License-Identifier: Apache-2.0
// Whole runs: what they leave, that interrupted ones end as if they had not been, and what happens
// to numbers and disks that fail.
#include "train/trainer.h"

#include <gmock/gmock.h>

#include <cmath>
#include <set>

#include "config/error.h"
#include "train/small_run.h"

namespace weir::train {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class TrainerTest : public SmallRun {};

// Gives no finite loss from call `first` to call `last` of its forward.
class Poisoned : public models::CoordinateDescentTransformerImpl {
 public:
  Poisoned(int first, int last)
      : CoordinateDescentTransformerImpl(small_model_options()), first_(first), last_(last) {}
  at::Tensor forward(const at::Tensor& tokens) override {
    const at::Tensor logits = CoordinateDescentTransformerImpl::forward(tokens);
    ++calls_;
    return calls_ >= first_ && calls_ <= last_ ? logits * NAN : logits;
  }

 private:
  int first_, last_, calls_ = 0;
};

std::size_t count(const std::vector<std::string>& rows, const std::string& text) {
  return static_cast<std::size_t>(std::ranges::count_if(
      rows, [&](const std::string& row) { return row.find(text) != std::string::npos; }));
}

TEST_F(TrainerTest, LeavesCheckpointsAndMetrics) {
  EXPECT_EQ(train(setup("run")), Outcome::kFinished);
  const auto rows = trace(directory_ / "run");
  EXPECT_EQ(rows.size(), 1u + 12 + 3);
  EXPECT_EQ(count(rows, "\"loss\":"), 12u);
  EXPECT_EQ(count(rows, "\"eval_bits_per_byte\":"), 3u);
  EXPECT_THAT(rows[1], HasSubstr("{\"type\":\"step\",\"step\":1,\"loss\":"));
  const auto checkpoint = latest("run");
  ASSERT_TRUE(checkpoint);
  EXPECT_EQ(checkpoint->state.step, 12);
  EXPECT_EQ(checkpoint->state.evaluated_step, 12);
  EXPECT_EQ(CheckpointStore(directory_ / "run").candidates().size(), 2u);
  EXPECT_FALSE(save_failed_);
}

// A session ends at its poll number `polls` + 1, which falls between micro-batches, steps, or
// batches of an evaluation. Two are enough for a step or an evaluation.
TEST_F(TrainerTest, StoppedAndResumedRunsEndAsIfTheyHadNotBeen) {
  const auto whole = setup("whole");
  train(whole);
  for (const int polls : {2, 3, 4, 5, 7, 11, 23}) {
    const std::string name = "polls" + std::to_string(polls);
    Outcome outcome = Outcome::kStopped;
    int sessions = 0;
    std::shared_ptr<models::LanguageModel> model;
    for (; outcome == Outcome::kStopped && sessions < 50; ++sessions) {
      const auto resumed = setup(name);
      int seen = 0;
      outcome = train(resumed, latest(name), [&] { return ++seen > polls; });
      model = resumed.model;
    }
    EXPECT_EQ(outcome, Outcome::kFinished) << polls;
    EXPECT_GT(sessions, 1) << polls;
    EXPECT_EQ(trace(directory_ / name), trace(directory_ / "whole")) << polls;
    expect_equal_parameters(*model, *whole.model);
  }
}

TEST_F(TrainerTest, GoesBackToAnOlderCheckpoint) {
  auto whole = setup("whole");
  whole.train.keep_last = 0;
  train(whole);
  auto again = setup("again");
  again.train.keep_last = 0;
  train(again);
  const auto old = read_checkpoint(directory_ / "again" / "checkpoints" / "step_00000006");
  EXPECT_EQ(train(setup("again"), old), Outcome::kFinished);
  EXPECT_EQ(trace(directory_ / "again"), trace(directory_ / "whole"));
  EXPECT_EQ(latest("again")->state.step, 12);
}

TEST_F(TrainerTest, FallsBackFromADamagedCheckpoint) {
  train(setup("whole"));
  train(setup("run"));
  config::write_file(directory_ / "run" / "checkpoints" / "step_00000012" / "optimizer.safetensors",
                     "");
  const auto checkpoint = latest("run");
  ASSERT_EQ(checkpoint->state.step, 9);
  const auto resumed = setup("run");
  EXPECT_EQ(train(resumed, checkpoint), Outcome::kFinished);
  EXPECT_EQ(trace(directory_ / "run"), trace(directory_ / "whole"));
}

TEST_F(TrainerTest, RunsThatAreDoneStayAsTheyAre) {
  train(setup("run"));
  const auto before = config::read_file(directory_ / "run" / "metrics.jsonl");
  EXPECT_EQ(train(setup("run"), latest("run")), Outcome::kFinished);
  EXPECT_EQ(config::read_file(directory_ / "run" / "metrics.jsonl"), before);
}

TEST_F(TrainerTest, SkipsStepsThatAreNotFinite) {
  auto run = setup("run");
  run.model = std::make_shared<Poisoned>(3, 5);  // steps 2 and 3, of two micro-batches each
  run.train.eval_every = 0;
  EXPECT_EQ(train(run), Outcome::kFinished);
  const auto rows = trace(directory_ / "run");
  EXPECT_EQ(count(rows, "\"loss\":null"), 2u);
  EXPECT_EQ(count(rows, "\"skipped\":true"), 2u);
  EXPECT_THAT(printed_.str(), HasSubstr("warning: step 2: loss or gradient is not finite"));
}

TEST_F(TrainerTest, StopsWhenNothingIsFiniteAnyMore) {
  auto run = setup("run");
  run.train.eval_every = 0;
  run.train.max_nan_steps = 4;
  run.model = std::make_shared<Poisoned>(2 * 5 + 1, 1000);
  EXPECT_EQ(train(run), Outcome::kNumericalStop);
  EXPECT_EQ(latest("run")->state.step, 3) << "of the steps that were saved, the last good one";
  EXPECT_EQ(trace(directory_ / "run").size(), 1u + 9);
}

TEST_F(TrainerTest, TheLastStepMustBeFinite) {
  auto run = setup("run");
  run.train.eval_every = 0;
  run.model = std::make_shared<Poisoned>(2 * 11 + 1, 1000);
  EXPECT_EQ(train(run), Outcome::kNumericalStop);
}

TEST_F(TrainerTest, GoesOnWhenACheckpointCannotBeSaved) {
  auto run = setup("run");
  fs::create_directories(run.directory / "checkpoints");
  Trainer trainer(run, std::nullopt, progress_);
  // A file in the way of the checkpoint of step 3, put there after the trainer has cleaned up.
  config::write_file(run.directory / "checkpoints" / ".weir-step_00000003", "in the way");
  EXPECT_EQ(trainer.run(), Outcome::kFinished);
  EXPECT_TRUE(trainer.save_failed());
  EXPECT_THAT(printed_.str(), HasSubstr("warning: step 3 is not saved: "));
  EXPECT_EQ(latest("run")->state.step, 12);
}

TEST_F(TrainerTest, WarnsOfOtherThreads) {
  train(setup("run"));
  auto checkpoint = latest("run");
  checkpoint->state.threads = 77;
  auto longer = setup("run");
  longer.train.steps = 13;
  train(longer, checkpoint);
  EXPECT_THAT(printed_.str(), HasSubstr("warning: the checkpoint is from a run with 77 threads"));
}

TEST_F(TrainerTest, RefusesWhatDoesNotFit) {
  train(setup("run"));
  auto other = setup("run");
  std::ofstream(directory_ / "other.txt") << small_text(150);
  const data::ByteCorpus corpus({.path = (directory_ / "other.txt").string()});
  const TrainerSetup on_other_text = {.directory = other.directory,
                                      .model = other.model,
                                      .corpus = corpus,
                                      .data = other.data,
                                      .train = other.train};
  EXPECT_THROW(train(on_other_text, latest("run")), IncompatibleError);
  EXPECT_EQ(latest("run")->state.step, 12) << "nothing is touched";

  other.train.steps = 0;
  EXPECT_THROW(train(other), config::Error);
  auto options = small_model_options();
  options.num_tokens = 100;
  auto wrong_model = setup("new");
  wrong_model.model = std::make_shared<models::CoordinateDescentTransformerImpl>(options);
  EXPECT_THROW(train(wrong_model), config::Error);
  options = small_model_options();
  options.seq_len = 100000;
  wrong_model.model = std::make_shared<models::CoordinateDescentTransformerImpl>(options);
  EXPECT_THROW(train(wrong_model), config::InputError);
}

}  // namespace
}  // namespace weir::train
