// SPDX-License-Identifier: Apache-2.0
// parse_json: what it reads, the words and positions of its errors, duplicates and depth.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "config/document.h"
#include "config/error.h"
#include "config/expect_message.h"
#include "config/random_document.h"

namespace weir::config {
namespace {

auto parsing(std::string text) {
  return [text = std::move(text)] { parse_json(text, "config.json"); };
}

TEST(ParseJson, ReadsAndKeepsTheOrderOfKeys) {
  const auto document = parse_json("{\"b\": [1, 2.5, null], \"a\": {\"b\": \"x\"}}", "config.json");
  EXPECT_EQ(document.dump(), R"({"b":[1,2.5,null],"a":{"b":"x"}})");
  EXPECT_EQ(parse_json(" 3 ", "x"), 3);
}

TEST(ParseJson, SaysWhereAndWhatIsWrong) {
  EXPECT_THAT(
      parsing("{\n  \"a\": 1,\n}"),
      throws<InputError>("config.json:3:1: syntax error while parsing object key - unexpected "
                         "'}'; expected string literal"));
  EXPECT_THAT(parsing("[1 2]"),
              throws<InputError>("config.json:1:4: syntax error while parsing array - unexpected "
                                 "number literal; expected ']'"));
  EXPECT_THAT(
      parsing("{\"a\": tru}"),
      throws<InputError>("config.json:1:10: syntax error while parsing value - invalid literal"));
  EXPECT_THAT(parsing("1e999"),
              throws<InputError>("config.json:1:5: number overflow parsing '1e999'"));
  EXPECT_THAT(parsing(""), throws<InputError>(
                               "config.json:1:1: syntax error while parsing value - unexpected end "
                               "of input; expected '[', '{', or a literal"));
  EXPECT_THROW(parsing("\"\xff\"")(), InputError);
  EXPECT_THROW(parsing("{} {}")(), InputError);
}

TEST(ParseJson, RefusesAKeyThatStandsTwice) {
  EXPECT_THAT(parsing("{\"a\": 1,\n \"a\": 2}"),
              throws<InputError>("config.json:2:4: the key \"a\" stands twice in this object"));
  EXPECT_THROW(parsing(R"({"x": [{"a": 1, "\u0061": 2}]})")(), InputError);
  EXPECT_NO_THROW(parsing(R"({"a": {"a": {"b": 1}}, "b": [{"a": 1}, {"a": 2}]})")());
}

TEST(ParseJson, RefusesDeepNesting) {
  EXPECT_NO_THROW(parsing(std::string(kMaxDepth, '[') + std::string(kMaxDepth, ']'))());
  EXPECT_THAT(parsing(std::string(1'000'000, '[')),
              throws<InputError>("config.json:1:102: nested deeper than 100 levels"));
}

RC_GTEST_PROP(ParseJsonProperty, ReadsWhatDumpWrites, ()) {
  const auto document = random_object(3);
  RC_ASSERT(parse_json(document.dump(), "test") == document);
}

RC_GTEST_PROP(ParseJsonProperty, GivesADocumentOrAnInputError, (const std::string& text)) {
  try {
    parse_json(text, "test");
  } catch (const InputError&) {
  }
}

}  // namespace
}  // namespace weir::config
