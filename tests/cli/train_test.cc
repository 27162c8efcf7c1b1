// SPDX-License-Identifier: Apache-2.0
// weir train: what a run leaves, resuming, and what is refused.
#include <gmock/gmock.h>

#include "cli/program.h"

namespace weir::cli {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

using TrainTest = Workplace;

TEST_F(TrainTest, LeavesARun) {
  const auto result = weir(train({"--out", at("run")}));
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_THAT(result.err, HasSubstr("weir: corpus: " + text_ + " (1 file, "));
  EXPECT_THAT(result.err, HasSubstr("step 8/12  loss "));
  EXPECT_THAT(result.err, HasSubstr("step 12/12  held-out text: "));
  EXPECT_THAT(result.err, HasSubstr("weir: finished 12 steps\n"));
  EXPECT_EQ(rows(at("run"), "loss").size(), 12u);
  EXPECT_EQ(rows(at("run"), "eval_bits_per_byte").size(), 3u);
  EXPECT_EQ(config::read_file(at("run/checkpoints/latest")), "step_00000012\n");
  for (const char* file :
       {"config.json", "model.safetensors", "optimizer.safetensors", "trainer.json"}) {
    EXPECT_TRUE(fs::exists(at("run/checkpoints/step_00000012/") + file)) << file;
  }
}

TEST_F(TrainTest, ResumesBitForBit) {
  ASSERT_EQ(weir(train({"--out", at("whole")})).code, 0);
  ASSERT_EQ(weir(train({"--out", at("run"), "--train.save_every=3"})).code, 0);
  fs::remove_all(at("run/checkpoints/step_00000012"));  // as if killed after step 9
  const auto result = weir({"train", "--out", at("run"), "--resume", "--threads", "1"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.err, HasSubstr("continuing " + at("run/checkpoints/step_00000009")));
  EXPECT_EQ(rows(at("run"), "step"), rows(at("whole"), "step"));
  for (const char* file : {"model.safetensors", "optimizer.safetensors"}) {
    EXPECT_EQ(config::read_file(at("run/checkpoints/step_00000012/") + file),
              config::read_file(at("whole/checkpoints/step_00000012/") + file));
  }
}

struct Example {
  const char* file;
  Arguments small;  // sizes for a test
};

class ExampleTest : public TrainTest, public ::testing::WithParamInterface<Example> {};

TEST_P(ExampleTest, TrainsResumesAndGenerates) {
  const Arguments run = Arguments{"train",
                                  "--config",
                                  std::string(WEIR_EXAMPLES "/") + GetParam().file,
                                  "--data",
                                  text_,
                                  "--threads",
                                  "1",
                                  "--model.dim",
                                  "32",
                                  "--model.depth",
                                  "2",
                                  "--train.batch_size",
                                  "2",
                                  "--train.steps",
                                  "8",
                                  "--train.save_every",
                                  "3",
                                  "--train.eval_every",
                                  "8"} +
                        GetParam().small;
  ASSERT_EQ(weir(run + Arguments{"--out", at("whole")}).code, 0);
  ASSERT_EQ(weir(run + Arguments{"--out", at("run")}).code, 0);
  fs::remove_all(at("run/checkpoints/step_00000008"));
  ASSERT_EQ(weir({"train", "--out", at("run"), "--resume", "--threads", "1"}).code, 0);
  EXPECT_EQ(config::read_file(at("run/checkpoints/step_00000008/model.safetensors")),
            config::read_file(at("whole/checkpoints/step_00000008/model.safetensors")));
  const Arguments generate = {"generate",         at("run"), "--prompt",      "line",
                              "--max-new-tokens", "80",      "--temperature", "0"};
  const auto result = weir(generate);
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_EQ(result.out, weir(generate + Arguments{"--no-cache"}).out);
}

INSTANTIATE_TEST_SUITE_P(Examples, ExampleTest,
                         ::testing::Values(Example{"sparse.toml", {"--model.seq_len", "64"}},
                                           Example{"colt5.toml",
                                                   {"--model.max_seq_len", "64",
                                                    "--model.light_window_size", "16",
                                                    "--model.router_kwargs.eps", "0.5"}}),
                         [](const auto& info) { return info.index == 0 ? "sparse" : "colt5"; });

TEST_F(TrainTest, ResumeAutoStartsOrGoesOn) {
  const auto arguments = train({"--out", at("run"), "--resume", "auto"});
  EXPECT_EQ(weir(arguments + Arguments{"--train.steps", "4"}).code, 0);
  const auto result = weir(arguments);
  EXPECT_EQ(result.code, 0);
  EXPECT_THAT(result.err, HasSubstr("continuing " + at("run/checkpoints/step_00000004")));
  EXPECT_EQ(rows(at("run"), "loss").size(), 12u);
}

TEST_F(TrainTest, BeginsANewRunFromTheCheckpointOfAnother) {
  ASSERT_EQ(weir(train({"--out", at("first")})).code, 0);
  const auto checkpoint = at("first/checkpoints/step_00000010");
  const auto longer = train({"--resume", checkpoint, "--train.steps", "15", "--out"});
  EXPECT_EQ(weir(longer + Arguments{at("second")}).code, 0);
  EXPECT_EQ(rows(at("second"), "loss").size(), 5u);
  ASSERT_EQ(weir(train({"--out", at("third"), "--train.steps", "1"})).code, 0);
  const auto result = weir(longer + Arguments{at("third")});
  EXPECT_EQ(result.code, 2);
  EXPECT_EQ(result.err, "weir: " + at("third") + " already holds another run than " + checkpoint +
                            "; choose another --out\n");
}

TEST_F(TrainTest, TakesTheCheckpointBeforeADamagedOne) {
  ASSERT_EQ(weir(train({"--out", at("whole")})).code, 0);
  ASSERT_EQ(weir(train({"--out", at("run")})).code, 0);
  const auto damaged = at("run/checkpoints/step_00000012/optimizer.safetensors");
  config::write_file(damaged, "damaged");
  const auto result = weir(train({"--out", at("run"), "--resume"}));
  EXPECT_EQ(result.code, 0);
  EXPECT_THAT(result.err, HasSubstr("weir: warning: " + damaged));
  EXPECT_THAT(result.err, HasSubstr("; taking the checkpoint before it\n"));
  EXPECT_EQ(rows(at("run"), "step"), rows(at("whole"), "step"));
}

TEST_F(TrainTest, LeavesRunsAlone) {
  ASSERT_EQ(weir(train({"--out", at("run")})).code, 0);
  const auto before = config::read_file(at("run/metrics.jsonl"));
  auto result = weir(train({"--out", at("run")}));
  EXPECT_EQ(result.code, 2);
  EXPECT_EQ(result.err, "weir: " + at("run") +
                            " already holds a run; continue it with --resume, or choose another "
                            "--out\n");
  result = weir(train({"--out", at("run"), "--resume", "--model.dim", "64"}));
  EXPECT_EQ(result.code, 4);
  EXPECT_EQ(result.err, "weir: " + at("run/checkpoints/step_00000012") +
                            " holds a model with dim = 32, but this run has dim = 64\n");
  config::write_file(text_, config::read_file(text_) + "more\n");
  result = weir(train({"--out", at("run"), "--resume"}));
  EXPECT_EQ(result.code, 4);
  EXPECT_THAT(result.err, HasSubstr(" was trained on another text (fingerprint "));
  EXPECT_EQ(config::read_file(at("run/metrics.jsonl")), before);
}

TEST_F(TrainTest, ADryRunWritesNothing) {
  const auto result = weir(train({"--out", at("run"), "--dry-run"}));
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("model: coordinate_descent, 0.03 million parameters"));
  EXPECT_THAT(result.out, HasSubstr("; 12 steps: about "));
  EXPECT_FALSE(fs::exists(at("run")));
}

TEST_F(TrainTest, StopsWhenNumbersFail) {
  const auto result = weir(
      train({"--out", at("run"), "--train.learning_rate", "1e30", "--train.clip", "0",
             "--train.max_nan_steps", "3", "--train.steps", "100", "--train.eval_every", "0"}));
  EXPECT_EQ(result.code, 7) << result.err;
  EXPECT_THAT(result.err, HasSubstr(": loss or gradient was not finite for too long; try a lower "
                                    "train.learning_rate\n"));
}

// ulimit -f counts in units of 1 KiB in bash and 512 bytes in sh; 20 is below the size of the
// weights in both, and above that of the metrics.
TEST_F(TrainTest, GoesOnWithoutRoomForCheckpointsAndSaysSo) {
  std::string command = "trap '' XFSZ; ulimit -f 20; exec \"$0\" \"$@\"";
  const auto arguments = train({"--out", at("run")});
  const auto result = Process(Arguments{"-c", command, WEIR_PROGRAM} + arguments, "", "sh").wait();
  EXPECT_EQ(result.code, 5) << result.err;
  EXPECT_THAT(result.err, HasSubstr("weir: warning: step 5 is not saved: cannot write "));
  EXPECT_THAT(result.err, HasSubstr("weir: finished 12 steps\n"));
  EXPECT_EQ(rows(at("run"), "loss").size(), 12u);
  EXPECT_TRUE(fs::is_empty(at("run/checkpoints")));
}

}  // namespace
}  // namespace weir::cli
