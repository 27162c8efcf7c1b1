// SPDX-License-Identifier: Apache-2.0
// set (command line overrides) and merge.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "config/document.h"
#include "config/error.h"
#include "config/expect_message.h"
#include "config/random_document.h"

namespace weir::config {
namespace {

Json value_of(std::string_view text) {
  Json document;
  set(document, "a", text);
  return document.at("a");
}

TEST(Set, ReadsTheValueAsToml) {
  EXPECT_EQ(value_of("256"), 256);
  EXPECT_TRUE(value_of("256").is_number_integer());
  EXPECT_EQ(value_of("1e-3"), 1e-3);
  EXPECT_EQ(value_of("true"), true);
  EXPECT_EQ(value_of("\"256\""), "256");
  EXPECT_EQ(value_of("'x'"), "x");
  EXPECT_EQ(value_of("[1, 2]"), Json({1, 2}));
  EXPECT_EQ(value_of(R"(["1.", '11'])"), Json({"1.", "11"}));
}

TEST(Set, TakesAnythingElseAsAString) {
  for (const char* text : {"iterative", "", " ", "a b", "True", "1,2", "/data/x.txt", "2024-01-01",
                           "{a = 1}", "\"open", "# x", "1\nb = 2", "1\n[b]", "é"}) {
    EXPECT_EQ(value_of(text), text);
  }
}

TEST(Set, MakesTheTablesOnTheWay) {
  Json document = {{"model", {{"dim", 1}}}};
  set(document, "model.dim", "2");
  set(document, "model.attention.heads", "8");
  set(document, "seed", "3");
  EXPECT_EQ(document.dump(), R"({"model":{"dim":2,"attention":{"heads":8}},"seed":3})");
}

TEST(Set, RefusesWhatIsNoKey) {
  Json document = Json::object();
  for (const std::string key : {"", ".", ".a", "a.", "a..b"}) {
    EXPECT_THAT([&] { set(document, key, "1"); },
                throws<Error>("`" + key + "` is not a key; one looks like `model.dim`"));
  }
  std::string deep = "a";
  for (int i = 0; i < kMaxDepth; ++i) deep += ".a";
  EXPECT_THROW(set(document, deep, "1"), Error);
  EXPECT_TRUE(document.empty());
}

TEST(Set, RefusesAKeyBelowAValue) {
  Json document = {{"a", {{"b", 3}}}};
  EXPECT_THAT([&] { set(document, "a.b.c", "1"); },
              throws<Error>("`a.b.c`: `a.b` is not a table, but 3"));
}

TEST(Set, RefusesTextThatIsNotUtf8) {
  Json document;
  EXPECT_THAT([&] { set(document, "name", "\xff"); },
              throws<Error>("`name`: the text is not UTF-8"));
}

TEST(Merge, LaysTablesOverEachOther) {
  Json base = Json::parse(R"({"a": {"x": 1, "y": [1, 2]}, "b": 2})");
  merge(base, Json::parse(R"({"a": {"y": [3]}, "c": {"z": null}, "b": {"w": 1}})"));
  EXPECT_EQ(base.dump(), R"({"a":{"x":1,"y":[3]},"b":{"w":1},"c":{"z":null}})");
}

RC_GTEST_PROP(MergeProperty, AnEmptyTableAndItselfChangeNothing, ()) {
  const auto document = random_object(3);
  auto merged = document;
  merge(merged, Json::object());
  merge(merged, document);
  RC_ASSERT(merged == document);
}

RC_GTEST_PROP(SetProperty, StoresAStringInQuotes, ()) {
  const auto text = *random_text();
  const auto toml = to_toml({{"a", text}});
  const auto begin = toml.find('=') + 1;
  RC_ASSERT(value_of(toml.substr(begin, toml.size() - begin - 1)) == text);
}

}  // namespace
}  // namespace weir::config
