// SPDX-License-Identifier: Apache-2.0
// The lock of a run directory, and the signals.
#include "train/run_lock.h"

#include <csignal>

#include "config/error.h"
#include "train/small_run.h"
#include "train/stop_signals.h"

namespace weir::train {
namespace {

TEST(RunLock, IsForOneAtATimeAndGoesWithItsHolder) {
  const tests::TemporaryDirectory directory;
  const auto run = directory / "a/b";
  {
    const RunLock lock(run);
    EXPECT_THROW(RunLock second(run), config::Error);
  }
  const RunLock again(run);
  EXPECT_TRUE(std::filesystem::is_empty(run)) << "leaves no file";
}

TEST(StopSignals, AreAFlag) {
  {
    const StopSignals signals;
    EXPECT_EQ(StopSignals::received(), 0);
    std::raise(SIGTERM);
    EXPECT_EQ(StopSignals::received(), SIGTERM);
  }
  const StopSignals signals;
  EXPECT_EQ(StopSignals::received(), 0);
}

TEST(StopSignalsDeathTest, TheSecondEndsTheProcess) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(
      {
        const StopSignals signals;
        std::raise(SIGINT);
        std::raise(SIGINT);
      },
      ::testing::ExitedWithCode(130), "");
}

}  // namespace
}  // namespace weir::train
