// SPDX-License-Identifier: Apache-2.0
// Run files, dotted overrides, --print-config and --help.
#include <gmock/gmock.h>

#include "cli/program.h"

namespace weir::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

using ConfigurationTest = Workplace;

TEST_F(ConfigurationTest, PrintsWhatReadsBackAsTheSame) {
  const auto first = weir(train({"--print-config", "--model.coor_descent_eps=0.25"}));
  EXPECT_EQ(first.code, 0) << first.err;
  EXPECT_THAT(first.out, StartsWith("[model]\nkind = \"coordinate_descent\"\nnum_tokens = 256\n"));
  EXPECT_THAT(first.out, HasSubstr("\ndim = 32\n"));
  EXPECT_THAT(first.out, HasSubstr("\ncoor_descent_eps = 0.25\n"));
  EXPECT_THAT(first.out, HasSubstr("\n[data]\npath = \"" + text_ + "\"\n"));
  EXPECT_THAT(first.out, HasSubstr("\nsteps = 12\n"));
  const auto second = weir({"train", "--config", "-", "--print-config"}, first.out);
  EXPECT_EQ(second.out, first.out);
  EXPECT_EQ(second.err, "");
}

TEST_F(ConfigurationTest, TheRunKeepsIt) {
  ASSERT_EQ(weir(train({"--out", at("run"), "--train.steps", "1"})).code, 0);
  EXPECT_EQ(config::read_file(at("run/config.toml")),
            weir(train({"--train.steps", "1", "--print-config"})).out);
}

TEST_F(ConfigurationTest, OverridesComeLastAndInBothForms) {
  const auto result = weir(
      train({"--print-config", "--model.dim", "64", "--model.depth=2", "--model.attn_kind",
             "softmax", "--train.clip", "0.5", "--train.seed", "-3", "--data.pattern", "*.txt"}));
  EXPECT_EQ(result.code, 0) << result.err;
  for (const char* line : {"dim = 64", "depth = 2", "attn_kind = \"softmax\"", "clip = 0.5",
                           "seed = -3", "pattern = \"*.txt\""}) {
    EXPECT_THAT(result.out, HasSubstr("\n" + std::string(line) + "\n"));
  }
}

TEST_F(ConfigurationTest, TheDemoIsValid) {
  const auto result = weir({"train", "--config", WEIR_EXAMPLES "/demo.toml", "--print-config"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("\nattn_kind = \"coordinate_descent\"\n"));
}

TEST_F(ConfigurationTest, AListOfStringsFromTheCommandLine) {
  const std::vector<std::string> run = {"train", "--config", WEIR_EXAMPLES "/sparse.toml",
                                        "--print-config"};
  EXPECT_THAT(weir(run).out, HasSubstr("\nattn_mode = \"local,strided\"\n"));
  auto changed = run;
  for (const char* word : {"--model.attn_mode", "custom", "--model.block_size", "128",
                           "--model.layout", R"(["1.", '11'])"}) {
    changed.push_back(word);
  }
  const auto result = weir(changed);
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("\nlayout = [\"1.\", \"11\"]\n"));
  changed.back() = "[1, 2]";
  EXPECT_THAT(weir(changed).err, HasSubstr("`model.layout[0]`: expected a string, but got 1"));
}

TEST_F(ConfigurationTest, HelpListsEveryOption) {
  const auto help = weir({"help", "train"});
  EXPECT_EQ(help.code, 0);
  EXPECT_EQ(help.out, weir({"train", "--help"}).out);
  for (const char* text :
       {"--out", "--resume", "--print-config", "With model.kind = \"coordinate_descent\":",
        "--model.num_tokens  integer [256]", "--model.coor_descent_solver  string [\"iterative\"]",
        "--model.ff_coor_descent_sparsity_k  number or none [none]", "--data.limit  integer [0]",
        "With model.kind = \"sparse\":", "--model.attn_mode  string [\"local+strided\"]",
        "--model.layout  list of strings [[]]",
        "--train.learning_rate  number [0.001]\n        Highest learning rate, after the "
        "warm-up."}) {
    EXPECT_THAT(help.out, HasSubstr(text));
  }
  EXPECT_THAT(weir({"--help"}).out, HasSubstr("generate "));
  EXPECT_THAT(weir({"help", "generate"}).out, HasSubstr("--max-new-tokens"));
  EXPECT_THAT(weir({"--version"}).out, StartsWith("weir 0."));
}

}  // namespace
}  // namespace weir::cli
