// SPDX-License-Identifier: Apache-2.0
// Lines every so many steps, the bar, and lines above the bar.
#include "train/progress.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

namespace weir::train {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;
using ::testing::StartsWith;

TEST(Progress, LinesShowTheMeanSinceTheLineBefore) {
  std::ostringstream out;
  Progress progress(out, Progress::Style::kLines);
  progress.start(0, 5, 2);
  for (int step = 1; step <= 5; ++step) progress.step(step, step, 12345);
  std::istringstream lines(out.str());
  std::vector<std::string> found;
  for (std::string line; std::getline(lines, line);) found.push_back(line);
  ASSERT_EQ(found.size(), 3u) << out.str();
  EXPECT_THAT(found[0], StartsWith("step 2/5  loss 1.5000  2.164 bits/byte  12.3k bytes/s  0:00"));
  EXPECT_THAT(found[1], StartsWith("step 4/5  loss 3.5000 "));
  EXPECT_THAT(found[2], MatchesRegex("step 5/5  loss 5.0000 .* ETA 0:00"));
}

TEST(Progress, NoLinesIfNotAsked) {
  std::ostringstream out;
  Progress progress(out, Progress::Style::kLines);
  progress.start(0, 5, 0);
  for (int step = 1; step <= 5; ++step) progress.step(step, step, 1);
  progress.finish();
  EXPECT_EQ(out.str(), "");
}

TEST(Progress, TheBarIsRedrawnSeldomAndStaysLast) {
  std::ostringstream out;
  Progress progress(out, Progress::Style::kBar);
  progress.start(0, 1000, 10);
  for (int step = 1; step < 1000; ++step) progress.step(step, 1, 1);
  const std::string first = out.str();
  EXPECT_THAT(first, StartsWith("\r"));
  EXPECT_THAT(first, HasSubstr("1/1000  loss 1.0000  1.443 bits/byte  1 bytes/s"));
  EXPECT_LT(first.size(), 1000u) << "not at every step";
  progress.note("a note");
  const std::string note = out.str().substr(first.size());
  EXPECT_THAT(note, StartsWith("\r\x1b[Kweir: a note\n"));
  EXPECT_THAT(note, HasSubstr("loss 1.0000"));
  progress.step(1000, 1, 1);
  EXPECT_THAT(out.str(), HasSubstr("1000/1000")) << "the last step is always drawn";
  progress.finish();
  progress.finish();
  EXPECT_THAT(out.str(), ::testing::EndsWith("\x1b[K\n"));
}

TEST(Progress, Evaluations) {
  std::ostringstream out;
  Progress progress(out, Progress::Style::kLines);
  progress.start(0, 10, 0);
  progress.evaluation(5, 2.34567);
  EXPECT_EQ(out.str(), "step 5/10  held-out text: 2.3457 bits/byte\n");
}

}  // namespace
}  // namespace weir::train
