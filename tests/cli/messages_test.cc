// SPDX-License-Identifier: Apache-2.0
// Each kind of mistake: its exit code, and its one line on standard error.
#include "cli/program.h"

namespace weir::cli {
namespace {

struct Mistake {
  Arguments arguments;
  int code;
  std::string message;
};

class MessagesTest : public Workplace {
 protected:
  void expect(const std::vector<Mistake>& mistakes) {
    for (const auto& [arguments, code, message] : mistakes) {
      const auto result = weir(arguments);
      EXPECT_EQ(result.code, code) << message;
      EXPECT_EQ(result.err, "weir: " + message + "\n");
      EXPECT_EQ(result.out, "");
    }
  }
};

TEST_F(MessagesTest, UnknownWords) {
  expect(
      {{{"trian"}, 2, "unknown verb trian; did you mean train?"},
       {{"xyz"}, 2, "unknown verb xyz; see weir --help"},
       {{"train", "--otu", "x"}, 2, "weir train: unknown option --otu; did you mean --out?"},
       {{"train", "--dim", "x"}, 2, "weir train: unknown option --dim; did you mean --model.dim?"},
       {{"train", "--qwertz"}, 2, "weir train: unknown option --qwertz; see weir train --help"},
       {{"train", "file"}, 2, "weir train: unexpected argument file"},
       {{"train", "--model.dmi", "3"}, 2, "unknown key `model.dmi`; did you mean `model.dim`?"},
       {{"train", "--modle.dim", "3"}, 2, "unknown key `modle`; did you mean `model`?"},
       {{"train", "--model.kind", "coordinate_decent"},
        2,
        "unknown model kind `coordinate_decent`; did you mean `coordinate_descent`? The kinds "
        "are `colt5`, `coordinate_descent`, `local`, `sparse`."},
       {{"generate", "x", "--promt", "y"},
        2,
        "weir generate: unknown option --promt; did you mean --prompt?"},
       {{"generate", "x", "--model.dim", "3"},
        2,
        "weir generate: unknown option --model.dim; only weir train takes the options of a run"}});
}

TEST_F(MessagesTest, ValuesThatDoNotFit) {
  expect(
      {{train({"--train.steps", "many"}), 2,
        "`train.steps`: expected an integer, but got \"many\""},
       {train({"--train.steps", "0"}), 2, "train: expected `steps` to be at least 1, but got 0."},
       {train({"--model.dim", "true"}), 2, "`model.dim`: expected an integer, but got true"},
       {train({"--train.clip"}), 2, "--train.clip needs a value, as in --train.clip true"},
       {train({"--model.num_tokens", "100", "--out", at("run")}), 2,
        "train: expected a model of bytes, `num_tokens` = 256, but got 100."},
       {train({"--threads", "0"}), 2, "--threads: Value 0 not in range 1 to 4096"},
       {train({"--train.batch_size", "1000000000000", "--dry-run"}), 5,
        "out of memory; a smaller train.batch_size or model may fit"},
       {train({}), 2, "weir train needs --out DIR, the directory of the run"},
       {{"generate"}, 2, "DIR is required"},
       {{"generate", "x", "--prompt", "a", "--prompt-file", "b"},
        2,
        "--prompt excludes --prompt-file"}});
}

TEST_F(MessagesTest, FilesThatDoNotFit) {
  config::write_file(at("bad.toml"), "[model]\ndim = \n");
  config::write_file(at("short.txt"), "too short");
  expect(
      {{{"train", "--config", at("no.toml")},
        3,
        "cannot read " + at("no.toml") + ": No such file or directory"},
       {{"train", "--config", at("bad.toml")},
        2,
        at("bad.toml") + ":2:7: Error while parsing key-value pair: expected value, saw '\\n'"},
       {train({"--out", at("run"), "--data.path", at("no.txt")}), 3,
        at("no.txt") + ": expected a file or a folder, but No such file or directory; set it with "
                       "--data.path."},
       {{"generate", at("nothing")},
        3,
        at("nothing") + ": expected a run or a checkpoint, but there is none"},
       {{"eval", at("nothing")},
        3,
        at("nothing") + ": expected a run or a checkpoint, but there is none"},
       {train({"--out", at("new"), "--resume", at("nothing")}), 3,
        at("nothing") + ": expected a run or a checkpoint, but there is none"},
       {train({"--out", text_ + "/run"}), 5,
        "filesystem error: cannot create directories: Not a directory [" + text_ + "/run]"}});
}

}  // namespace
}  // namespace weir::cli
