// SPDX-License-Identifier: Apache-2.0
// parse_toml, read_toml and to_toml.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <cmath>
#include <fstream>
#include <iostream>
#include <limits>
#include <sstream>

#include "config/document.h"
#include "config/error.h"
#include "config/expect_message.h"
#include "config/random_document.h"
#include "support/temporary_directory.h"

namespace weir::config {
namespace {

auto parsing(std::string text) {
  return [text = std::move(text)] { parse_toml(text, "run.toml"); };
}

// Without regard to the order of keys, of which toml++ keeps none.
nlohmann::json sorted(const Json& document) { return nlohmann::json(document); }

TEST(ParseToml, ReadsEveryKindOfValue) {
  const auto document = parse_toml(R"(
    seed = 3                       # a comment
    name = "a\tb"
    model.dim = 64
    [train]
    lr = 1e-3
    fast = true
    sizes = [1, [2, 3], {x = 1}]
    [[stage]]
    steps = 1
    [[stage]]
    steps = 2)",
                                   "run.toml");
  EXPECT_EQ(sorted(document), sorted(Json::parse(R"({
    "seed": 3, "name": "a\tb", "model": {"dim": 64},
    "train": {"lr": 0.001, "fast": true, "sizes": [1, [2, 3], {"x": 1}]},
    "stage": [{"steps": 1}, {"steps": 2}]})")));
  EXPECT_TRUE(std::isnan(parse_toml("x = nan", "").at("x").get<double>()));
}

TEST(ParseToml, SaysWhereAndWhatIsWrong) {
  EXPECT_THAT(
      parsing("a = 1\na = 2"),
      throws<Error>("run.toml:2:5: Error while parsing key-value pair: cannot redefine existing "
                    "integer 'a'"));
  EXPECT_THAT(
      parsing("steps = "),
      throws<Error>("run.toml:1:9: Error while parsing key-value pair: encountered end-of-file"));
  EXPECT_THAT(
      parsing("[train\nx = 1"),
      throws<Error>("run.toml:1:7: Error while parsing table header: expected ']', saw '\\n'"));
  EXPECT_THROW(parsing("a = 9223372036854775808")(), Error);
  EXPECT_THROW(parsing("a = \"\xff\"")(), Error);
}

TEST(ParseToml, RefusesDatesAndTimes) {
  for (const char* value : {"2024-01-01", "12:00:00", "2024-01-01T12:00:00Z"}) {
    EXPECT_THAT(parsing("[train]\nstart = " + std::string(value)),
                throws<Error>("run.toml:2:9: dates and times are not supported; put it in quotes"));
  }
}

TEST(ParseToml, RefusesDeepNestingAndLargeTexts) {
  std::string deep = "a";
  while (deep.size() < 60'000) deep += ".a";
  EXPECT_THAT(parsing(deep + " = 1"),
              throws<Error>("run.toml:1:201: nested deeper than 100 levels"));
  EXPECT_THAT(parsing("[" + deep + "]"),
              throws<Error>("run.toml:1:1: nested deeper than 100 levels"));
  EXPECT_THROW(parsing("a = " + std::string(60'000, '['))(), Error);
  EXPECT_THAT(parsing(std::string(64 * 1024 + 1, '\n')),
              throws<Error>("run.toml: larger than 64 KiB, too large for a run file"));
}

TEST(ReadToml, ReadsAFile) {
  const tests::TemporaryDirectory directory;
  std::ofstream(directory / "run.toml") << "seed = 3\n";
  EXPECT_EQ(read_toml(directory / "run.toml").dump(), R"({"seed":3})");
  const auto missing = directory / "missing.toml";
  EXPECT_THAT([&] { read_toml(missing); }, throws<InputError>("cannot read " + missing.string() +
                                                              ": No such file or directory"));
}

class StandardInput {
 public:
  explicit StandardInput(const std::string& text)
      : text_(text), old_(std::cin.rdbuf(text_.rdbuf())) {}
  ~StandardInput() {
    std::cin.rdbuf(old_);
    std::cin.clear();
  }

 private:
  std::istringstream text_;
  std::streambuf* old_;
};

TEST(ReadToml, ReadsTheStandardInputForADash) {
  const StandardInput input("seed = 3\n");
  EXPECT_EQ(read_toml("-").dump(), R"({"seed":3})");
}

TEST(ReadToml, NamesTheStandardInput) {
  const StandardInput input("seed\n");
  EXPECT_THAT(
      [] { read_toml("-"); },
      throws<Error>("stdin:1:5: Error while parsing key-value pair: expected '=', saw '\\n'"));
}

TEST(ToToml, WritesTablesLastAndNullsAsComments) {
  const auto document = Json::parse(R"({
    "model": {"dim": 64, "eps_init": null, "router": {"eps": 0.1}, "causal": true},
    "seed": 3, "a b": "x\"y", "empty": {}, "stages": [{"steps": 1}, {}]})");
  EXPECT_EQ(to_toml(document), R"(seed = 3
"a b" = "x\"y"
stages = [{steps = 1}, {}]

[model]
dim = 64
# eps_init =
causal = true

[model.router]
eps = 0.1

[empty]
)");
  EXPECT_EQ(to_toml(Json::object()), "");
}

TEST(ToToml, WritesNumbersThatAreNotFinite) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(to_toml({{"a", kInfinity}, {"b", -kInfinity}, {"c", std::nan("")}}),
            "a = inf\nb = -inf\nc = nan\n");
}

TEST(ToToml, RefusesWhatTomlLacks) {
  EXPECT_THAT([] { to_toml(Json::parse(R"({"a": [null]})")); },
              throws<Error>("TOML has no null inside a list"));
  EXPECT_THAT([] { to_toml(Json::parse(R"({"a": 9223372036854775808})")); },
              throws<Error>("TOML has no integer 9223372036854775808; the largest is 2^63 - 1"));
}

RC_GTEST_PROP(TomlProperty, RoundTrips, ()) {
  const auto document = random_object(3);
  RC_ASSERT(sorted(parse_toml(to_toml(document), "test")) == sorted(document));
}

RC_GTEST_PROP(TomlProperty, GivesADocumentOrAnError, (const std::string& text)) {
  try {
    parse_toml(text, "test");
  } catch (const Error&) {
  }
}

}  // namespace
}  // namespace weir::config
