// SPDX-License-Identifier: Apache-2.0
// weir eval: the same number as training found, and other texts.
#include <gmock/gmock.h>

#include "cli/program.h"

namespace weir::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::MatchesRegex;

using EvalTest = TrainedWorkplace;

TEST_F(EvalTest, MeasuresBitsPerByte) {
  const auto result = weir({"eval", run()});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, MatchesRegex("[0-9.]+ bits per byte \\(loss .* bytes held out of .*\n"));
  EXPECT_EQ(result.err, "");
}

TEST_F(EvalTest, AgreesWithTheTrainer) {
  const auto result = weir({"eval", run(), "--batches", "2", "--json"});
  EXPECT_EQ(result.code, 0) << result.err;
  const auto found = config::parse_json(result.out, "out");
  const auto expected =
      config::parse_json(rows(run(), "eval_bits_per_byte").back(), "metrics.jsonl");
  EXPECT_EQ(found["step"], 12);
  EXPECT_NEAR(found["eval_loss"].get<double>(), expected["eval_loss"].get<double>(), 1e-5)
      << "other threads may sum in another order";
}

TEST_F(EvalTest, AnotherText) {
  const auto result = weir({"eval", run(), "--data", config_, "--json"});
  EXPECT_EQ(result.code, 3) << "too short: " << result.err;
  config::write_file(at("other.txt"), std::string(2000, 'x'));
  const auto other = weir({"eval", run(), "--data", at("other.txt"), "--json"});
  EXPECT_EQ(other.code, 0) << other.err;
  EXPECT_THAT(other.out, HasSubstr("other.txt"));
}

}  // namespace
}  // namespace weir::cli
