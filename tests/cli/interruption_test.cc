// SPDX-License-Identifier: Apache-2.0
// Training that is interrupted: signals save and stop; SIGKILL at any point, and again, and the run
// still ends with the losses of one that was never disturbed, bit for bit.
#include <gmock/gmock.h>

#include <algorithm>
#include <random>

#include "cli/program.h"

namespace weir::cli {
namespace {

using ::testing::HasSubstr;

class InterruptionTest : public Workplace {
 protected:
  Arguments long_run(const std::string& name) {
    return Arguments{"train",
                     "--config",
                     config_,
                     "--data",
                     text_,
                     "--out",
                     at(name),
                     "--resume",
                     "auto",
                     "--threads",
                     "2",
                     "--train.steps=150",
                     "--train.save_every=4"};
  }

  std::size_t steps(const std::string& name) {
    std::ifstream file(at(name) + "/metrics.jsonl");
    std::size_t count = 0;
    for (std::string line; std::getline(file, line);) ++count;
    return count;
  }

  // Without the weights in the message, and of the rows only the first that differs.
  void expect_same_trace(const std::string& a, const std::string& b) {
    const auto first = rows(at(a), "step"), second = rows(at(b), "step");
    ASSERT_EQ(first.size(), second.size());
    const auto [one, other] = std::ranges::mismatch(first, second);
    if (one != first.end()) FAIL() << *one << "\nis not\n" << *other;
    EXPECT_EQ(rows(at(a), "loss").size(), 150u);
    const std::string weights = "/checkpoints/step_00000150/model.safetensors";
    EXPECT_TRUE(config::read_file(at(a) + weights) == config::read_file(at(b) + weights));
  }
};

TEST_F(InterruptionTest, KilledRunsEndAsIfTheyHadNotBeen) {
  ASSERT_EQ(weir(long_run("whole")).code, 0);
  const auto seed = std::random_device()();
  SCOPED_TRACE("seed " + std::to_string(seed));
  std::mt19937 random(seed);
  int kills = 0;
  for (; kills < 6; ++kills) {
    Process process(long_run("killed"));
    const std::size_t target = steps("killed") + random() % 25;
    wait_until(process, [&] { return steps("killed") > target; });
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 5000));
    process.signal(SIGKILL);
    if (process.wait().code != -SIGKILL) break;  // it was faster
  }
  EXPECT_GE(kills, 3);
  const auto result = weir(long_run("killed"));
  EXPECT_EQ(result.code, 0) << result.err;
  expect_same_trace("killed", "whole");
}

TEST_F(InterruptionTest, SignalsSaveAndStop) {
  ASSERT_EQ(weir(long_run("whole")).code, 0);
  for (const int number : {SIGINT, SIGTERM}) {
    Process process(long_run("stopped") + Arguments{"--train.save_every=1000"});
    const std::size_t before = steps("stopped");
    wait_until(process, [&] { return steps("stopped") > before + 5; });
    process.signal(number);
    const auto result = process.wait();
    EXPECT_EQ(result.code, 128 + number) << result.err;
    EXPECT_THAT(result.err, HasSubstr("; continue with --resume\n"));
  }
  EXPECT_EQ(weir(long_run("stopped")).code, 0);
  expect_same_trace("stopped", "whole");
}

TEST_F(InterruptionTest, OneProcessAtATime) {
  Process process(long_run("run") + Arguments{"--train.steps=100000"});
  wait_until(process, [&] { return steps("run") > 2; });
  const auto result = weir(long_run("run"));
  EXPECT_EQ(result.code, 2);
  EXPECT_EQ(result.err, "weir: another process is training in " + at("run") + "\n");
}

}  // namespace
}  // namespace weir::cli
