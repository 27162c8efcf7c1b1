// SPDX-License-Identifier: Apache-2.0
// weir generate: text that streams, options, JSON, readers that go away.
#include <gmock/gmock.h>

#include "cli/program.h"

namespace weir::cli {
namespace {

using ::testing::StartsWith;

class GenerateTest : public TrainedWorkplace {
 protected:
  Finished generate(const Arguments& more, const std::string& input = "") {
    return weir(Arguments{"generate", run()} + more, input);
  }
};

TEST_F(GenerateTest, WritesThePromptAndGoesOn) {
  const auto result = generate({"--prompt", "line 1", "--max-new-tokens", "40", "--seed", "1"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, StartsWith("line 1"));
  EXPECT_GE(result.out.size(), 46u);
  EXPECT_TRUE(result.out.ends_with('\n'));
  EXPECT_EQ(result.err, "");
}

TEST_F(GenerateTest, SeedsDecide) {
  const Arguments seed1 = {"--seed", "1"};
  const auto text = generate(seed1).out;
  EXPECT_EQ(text, generate({"--seed", "1", "--no-cache"}).out);
  EXPECT_EQ(text, weir(Arguments{"generate", run() + "/checkpoints/step_00000012"} + seed1).out);
  EXPECT_NE(text, generate({"--seed", "2"}).out);
}

TEST_F(GenerateTest, JsonSaysItAll) {
  const auto result =
      generate({"--json", "--prompt", "lin", "--max-new-tokens", "50", "--temperature", "0"});
  EXPECT_EQ(result.code, 0) << result.err;
  const auto document = config::parse_json(result.out, "out");
  EXPECT_EQ(document["prompt"], "lin");
  EXPECT_EQ(document["prompt_tokens"], 3);
  EXPECT_EQ(document["new_tokens"], 50);
  EXPECT_EQ(document["stop_reason"], "max_new_tokens");
  EXPECT_GT(document["tokens_per_second"].get<double>(), 0);
  const auto streamed =
      generate({"--prompt", "lin", "--max-new-tokens", "50", "--temperature", "0"});
  EXPECT_EQ(streamed.out.substr(3, streamed.out.size() - 4), document["text"].get<std::string>());
}

TEST_F(GenerateTest, PromptsFromFilesAndStandardInput) {
  config::write_file(at("prompt"), "line \xC3\xA9");
  const Arguments few = {"--max-new-tokens", "5", "--prompt-file"};
  const auto from_file = generate(few + Arguments{at("prompt")});
  EXPECT_THAT(from_file.out, StartsWith("line \xC3\xA9"));
  EXPECT_EQ(generate(few + Arguments{"-"}, "line \xC3\xA9").out, from_file.out);
  EXPECT_EQ(generate(few + Arguments{at("none")}).code, 3);
}

TEST_F(GenerateTest, RefusesOptionsOutOfRange) {
  auto result = generate({"--temperature", "-1"});
  EXPECT_EQ(result.code, 2);
  EXPECT_EQ(result.err,
            "weir: weir::generate: expected `temperature` to be finite and at least 0, but got "
            "-1.\n");
  result = generate({"--prompt", ""});
  EXPECT_EQ(result.code, 2);
  EXPECT_EQ(result.err,
            "weir: weir::generate: expected prompt 0 to have at least 1 token, but it is empty.\n");
}

TEST_F(GenerateTest, EndsWhenItsReaderIsGone) {
  const std::string command =
      "\"$0\" generate \"$1\" --max-new-tokens 100000000 2>err | head -c 20; "
      "echo \" ${PIPESTATUS[0]}\"; cat err";
  const auto result =
      Process({"-c", "cd " + at("") + "; " + command, WEIR_PROGRAM, run()}, "", "bash").wait();
  EXPECT_TRUE(result.out.ends_with(" 0\n")) << result.out << result.err;
}

TEST_F(GenerateTest, SigintEndsIt) {
  Process process({"generate", run(), "--max-new-tokens", "100000000"});
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  for (int i = 0; i < 600 && process.running(); ++i) {
    if (i % 100 == 99) process.signal(SIGINT);
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  const auto result = process.wait();
  EXPECT_TRUE(result.code == 130 || result.code == -SIGINT) << result.code;
}

}  // namespace
}  // namespace weir::cli
