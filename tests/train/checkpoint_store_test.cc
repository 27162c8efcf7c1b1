// SPDX-License-Identifier: Apache-2.0
// Checkpoints of a run: which are kept, which is the latest, what a kill or damage leaves.
#include "train/checkpoint_store.h"

#include <gmock/gmock.h>

#include <system_error>

#include "train/small_run.h"

namespace weir::train {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::UnorderedElementsAre;

class CheckpointStoreTest : public SmallRun {
 protected:
  void save(std::int64_t step, std::int64_t keep_last = 2) {
    TrainerState state;
    state.step = step;
    store_.save(state, *model_, {}, keep_last);
  }
  std::vector<std::string> candidates() {
    std::vector<std::string> names;
    for (const auto& path : store_.candidates()) names.push_back(path.filename().string());
    return names;
  }
  std::vector<std::string> files() {
    std::vector<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      names.push_back(entry.path().filename().string());
    }
    return names;
  }
  std::int64_t newest() { return latest("run")->state.step; }

  std::shared_ptr<models::LanguageModel> model_ = small_model();
  CheckpointStore store_{directory_ / "run"};
  fs::path folder_ = directory_ / "run" / "checkpoints";
};

TEST_F(CheckpointStoreTest, KeepsTheLast) {
  EXPECT_TRUE(candidates().empty());
  for (const std::int64_t step : {5, 10, 99999999, 100000000}) save(step);
  EXPECT_THAT(files(), UnorderedElementsAre("step_99999999", "step_100000000", "latest"));
  EXPECT_THAT(candidates(), ElementsAre("step_100000000", "step_99999999"));
  EXPECT_EQ(config::read_file(folder_ / "latest"), "step_100000000\n");
}

TEST_F(CheckpointStoreTest, KeepsAllOnRequest) {
  for (std::int64_t step = 1; step <= 4; ++step) save(step, 0);
  EXPECT_EQ(candidates().size(), 4u);
}

TEST_F(CheckpointStoreTest, ReplacesACheckpointOfTheSameStep) {
  save(5);
  torch::NoGradGuard no_grad;
  model_->parameters().front().fill_(3);
  save(5);
  EXPECT_THAT(files(), UnorderedElementsAre("step_00000005", "latest"));
  expect_equal_parameters(*latest("run")->model, *model_);
}

TEST_F(CheckpointStoreTest, FallsBackFromADamagedOne) {
  for (std::int64_t step = 1; step <= 3; ++step) save(step, 0);
  config::write_file(folder_ / "step_00000003" / "model.safetensors", "damaged");
  fs::remove(folder_ / "step_00000002" / "trainer.json");
  EXPECT_EQ(newest(), 1);
  ASSERT_EQ(warnings_.size(), 2u);
  EXPECT_THAT(warnings_[0], ::testing::HasSubstr("step_00000003/model.safetensors"));
  EXPECT_THAT(warnings_[1], ::testing::HasSubstr("step_00000002/trainer.json"));
  fs::remove(folder_ / "step_00000001" / "config.json");
  EXPECT_THROW(latest("run"), config::InputError) << "none is left";
}

TEST_F(CheckpointStoreTest, WorksWithoutItsPointer) {
  save(1);
  save(2);
  for (const std::string text : {"", "nonsense", "../../etc", "step_2", "step_00000007"}) {
    config::write_file(folder_ / "latest", text);
    EXPECT_EQ(newest(), 2) << text;
  }
  fs::remove(folder_ / "latest");
  EXPECT_EQ(newest(), 2);
}

TEST_F(CheckpointStoreTest, ForgetsWhatComesAfterARewind) {
  for (std::int64_t step = 1; step <= 3; ++step) save(step, 0);
  store_.rewind(folder_ / "step_00000001");
  EXPECT_THAT(candidates(), ElementsAre("step_00000001"));
  save(2, 0);
  EXPECT_THAT(candidates(), ElementsAre("step_00000002", "step_00000001"));
  fs::create_directories(directory_ / "other" / "step_00000001");
  store_.rewind(directory_ / "other" / "step_00000001");
  EXPECT_EQ(newest(), 2) << "not a checkpoint of this run";
}

TEST_F(CheckpointStoreTest, CleansUpAfterAKill) {
  save(1);
  fs::create_directories(folder_ / ".weir-step_00000002");
  config::write_file(folder_ / ".weir-step_00000002" / "config.json", "{}");
  config::write_file(folder_ / ".weir-12-0.tmp", "");
  config::write_file(directory_ / "run" / ".weir-12-1.tmp", "");
  config::write_file(directory_ / "run" / "notes.txt", "");
  EXPECT_THAT(candidates(), ElementsAre("step_00000001"));
  store_.clean();
  EXPECT_THAT(files(), UnorderedElementsAre("step_00000001", "latest"));
  EXPECT_FALSE(fs::exists(directory_ / "run" / ".weir-12-1.tmp"));
  EXPECT_TRUE(fs::exists(directory_ / "run" / "notes.txt"));
}

TEST_F(CheckpointStoreTest, AFailedSaveLeavesTheOldOnes) {
  save(1);
  // A file where the new checkpoint's folder should be made.
  config::write_file(folder_ / ".weir-step_00000002", "in the way");
  EXPECT_THROW(save(2), std::system_error);
  EXPECT_EQ(newest(), 1);
}

TEST_F(CheckpointStoreTest, ReadsACheckpointByItsOwnPath) {
  save(1);
  save(2);
  const auto found = read_newest(folder_ / "step_00000001", read_checkpoint, nullptr);
  EXPECT_EQ(found.state.step, 1);
  EXPECT_THROW(read_newest(directory_ / "nothing", read_checkpoint, nullptr), config::InputError);
}

}  // namespace
}  // namespace weir::train
