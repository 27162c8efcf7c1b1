// SPDX-License-Identifier: Apache-2.0
// One struct with a field of every type and a nested one, through from_json, to_json and describe.
#include "config/options.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <limits>

#include "config/error.h"
#include "config/expect_message.h"
#include "config/random_document.h"

namespace weir::config {
namespace {

struct ModelOptions {
  std::int64_t dim = 64;
  std::int64_t depth = 2;
  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = ModelOptions;
    field("dim", &Self::dim, "Feature size.");
    field("depth", &Self::depth, "Number of layers.");
  }
};

struct RunOptions {
  std::int64_t steps = 10;
  double lr = 1e-3;
  bool causal = true;
  std::string name = "run";
  std::optional<std::int64_t> seed;
  std::optional<double> clip = 1.0;
  std::vector<std::int64_t> sizes = {1, 2};
  std::vector<std::string> layout = {};
  IntegerOrPair patch = 4;
  ModelOptions model{.dim = 512};
  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = RunOptions;
    field("steps", &Self::steps, "Optimiser steps.");
    field("lr", &Self::lr, "Learning rate.");
    field("causal", &Self::causal, "No look ahead.");
    field("name", &Self::name, "Name of the run.");
    field("seed", &Self::seed, "Seed.");
    field("clip", &Self::clip, "Largest norm.");
    field("sizes", &Self::sizes, "Sizes.");
    field("layout", &Self::layout, "Rows.");
    field("patch", &Self::patch, "Height and width.");
    field("model", &Self::model, "The model.");
  }
};

RunOptions read(const char* text) { return from_json<RunOptions>(Json::parse(text)); }

TEST(Options, ReadsEveryType) {
  const auto run =
      read(R"({"steps": 7, "lr": 0.5, "causal": false, "name": "a", "seed": 3, "clip": 2.5,
                            "sizes": [4, -5], "layout": ["1.", ""], "patch": [3, -2],
                            "model": {"depth": 9}})");
  EXPECT_EQ(run.steps, 7);
  EXPECT_EQ(run.lr, 0.5);
  EXPECT_FALSE(run.causal);
  EXPECT_EQ(run.name, "a");
  EXPECT_EQ(run.seed, 3);
  EXPECT_EQ(run.clip, 2.5);
  EXPECT_EQ(run.sizes, (std::vector<std::int64_t>{4, -5}));
  EXPECT_EQ(run.layout, (std::vector<std::string>{"1.", ""}));
  EXPECT_EQ(run.patch, IntegerOrPair(std::array<std::int64_t, 2>{3, -2}));
  EXPECT_EQ(read(R"({"patch": 7})").patch, IntegerOrPair(7));
  EXPECT_EQ(run.model.depth, 9);
}

TEST(Options, MissingKeysKeepTheirDefaults) {
  const auto run = read(R"({"model": {}})");
  EXPECT_EQ(run.steps, 10);
  EXPECT_EQ(run.clip, 1.0);
  EXPECT_EQ(run.model.dim, 512);  // the default of the outer struct, not of ModelOptions
}

TEST(Options, AcceptsAnIntegerForANumberAndNullForAnOptional) {
  const auto run = read(R"({"lr": 2, "clip": null, "seed": null})");
  EXPECT_EQ(run.lr, 2.0);
  EXPECT_FALSE(run.clip);
  EXPECT_FALSE(run.seed);
}

TEST(Options, RefusesAnUnknownKey) {
  EXPECT_THAT([] { read(R"({"stepz": 1})"); },
              throws<Error>("unknown key `stepz`; did you mean `steps`?"));
  EXPECT_THAT([] { read(R"({"model": {"dpeth": 1}})"); },
              throws<Error>("unknown key `model.dpeth`; did you mean `model.depth`?"));
  EXPECT_THAT([] { read(R"({"depth": 1})"); },
              throws<Error>("unknown key `depth`; did you mean `model.depth`?"));
  EXPECT_THAT([] { read(R"({"modle": {}})"); },
              throws<Error>("unknown key `modle`; did you mean `model`?"));
}

TEST(Options, ListsTheKeysWhenNoneIsNear) {
  EXPECT_THAT([] { read(R"({"colour": 1})"); },
              throws<Error>("unknown key `colour`; the keys are `steps`, `lr`, `causal`, `name`, "
                            "`seed`, `clip`, `sizes`, `layout`, `patch`, `model`"));
  EXPECT_THAT([] { read(R"({"model": {"colour": 1}})"); },
              throws<Error>("unknown key `model.colour`; the keys of `model` are `dim`, `depth`"));
}

TEST(Options, PrefixesKeysByWhere) {
  EXPECT_THAT([] { from_json<ModelOptions>(Json::parse(R"({"dim": "x"})"), "model"); },
              throws<Error>("`model.dim`: expected an integer, but got \"x\""));
  EXPECT_THAT([] { from_json<ModelOptions>(Json::parse(R"({"dimm": 1})"), "model"); },
              throws<Error>("unknown key `model.dimm`; did you mean `model.dim`?"));
}

TEST(Options, RefusesAValueOfAnotherType) {
  EXPECT_THAT([] { read(R"({"steps": "many"})"); },
              throws<Error>("`steps`: expected an integer, but got \"many\""));
  EXPECT_THAT([] { read(R"({"steps": 3.0})"); },
              throws<Error>("`steps`: expected an integer, but got 3.0"));
  EXPECT_THAT([] { read(R"({"steps": null})"); },
              throws<Error>("`steps`: expected an integer, but got null"));
  EXPECT_THAT([] { read(R"({"steps": true})"); },
              throws<Error>("`steps`: expected an integer, but got true"));
  EXPECT_THAT([] { read(R"({"lr": "1"})"); },
              throws<Error>("`lr`: expected a number, but got \"1\""));
  EXPECT_THAT([] { read(R"({"causal": 1})"); },
              throws<Error>("`causal`: expected true or false, but got 1"));
  EXPECT_THAT([] { read(R"({"name": {}})"); },
              throws<Error>("`name`: expected a string, but got a table"));
  EXPECT_THAT([] { read(R"({"seed": 1.5})"); },
              throws<Error>("`seed`: expected an integer, but got 1.5"));
  EXPECT_THAT([] { read(R"({"clip": []})"); },
              throws<Error>("`clip`: expected a number, but got []"));
  EXPECT_THAT([] { read(R"({"sizes": 3})"); },
              throws<Error>("`sizes`: expected a list of integers, but got 3"));
  EXPECT_THAT([] { read(R"({"sizes": [1, "b"]})"); },
              throws<Error>("`sizes[1]`: expected an integer, but got \"b\""));
  EXPECT_THAT([] { read(R"({"layout": "1."})"); },
              throws<Error>("`layout`: expected a list of strings, but got \"1.\""));
  EXPECT_THAT([] { read(R"({"layout": ["1.", 11]})"); },
              throws<Error>("`layout[1]`: expected a string, but got 11"));
  EXPECT_THAT([] { read(R"({"patch": [1, 2, 3]})"); },
              throws<Error>("`patch`: expected an integer or two integers, but got [1,2,3]"));
  EXPECT_THAT([] { read(R"({"patch": 1.5})"); },
              throws<Error>("`patch`: expected an integer or two integers, but got 1.5"));
  EXPECT_THAT([] { read(R"({"patch": [1, 2.5]})"); },
              throws<Error>("`patch[1]`: expected an integer, but got 2.5"));
  EXPECT_THAT([] { read(R"({"model": 3})"); },
              throws<Error>("`model`: expected a table, but got 3"));
  EXPECT_THAT([] { read("[]"); }, throws<Error>("expected a table, but got []"));
}

TEST(Options, RefusesNumbersOutOfRange) {
  EXPECT_EQ(read(R"({"steps": 9223372036854775807})").steps,
            std::numeric_limits<std::int64_t>::max());
  EXPECT_EQ(read(R"({"steps": -9223372036854775808})").steps,
            std::numeric_limits<std::int64_t>::min());
  EXPECT_THAT(
      [] { read(R"({"steps": 9223372036854775808})"); },
      throws<Error>("`steps`: expected an integer below 2^63, but got 9223372036854775808"));
  EXPECT_THROW(read(R"({"steps": 100000000000000000000})"), Error);
  const Json infinite = {{"lr", std::numeric_limits<double>::infinity()}};
  EXPECT_THAT([&] { from_json<RunOptions>(infinite); },
              throws<Error>("`lr`: expected a finite number, but got inf"));
  const Json nan = {{"clip", std::numeric_limits<double>::quiet_NaN()}};
  EXPECT_THAT([&] { from_json<RunOptions>(nan); },
              throws<Error>("`clip`: expected a finite number, but got nan"));
}

TEST(Options, WritesKeysInTheirOrder) {
  EXPECT_EQ(to_json(RunOptions()).dump(),
            R"({"steps":10,"lr":0.001,"causal":true,"name":"run","seed":null,"clip":1.0,)"
            R"("sizes":[1,2],"layout":[],"patch":4,"model":{"dim":512,"depth":2}})");
}

TEST(Options, DescribesEveryFieldWithADottedName) {
  const auto fields = describe<RunOptions>("run");
  std::vector<std::string> rows;
  for (const auto& field : fields) {
    rows.push_back(field.name + "|" + field.type + "|" + field.default_value + "|" + field.help);
  }
  EXPECT_EQ(rows, (std::vector<std::string>{
                      "run.steps|integer|10|Optimiser steps.",
                      "run.lr|number|0.001|Learning rate.",
                      "run.causal|boolean|true|No look ahead.",
                      "run.name|string|\"run\"|Name of the run.",
                      "run.seed|integer or none|none|Seed.",
                      "run.clip|number or none|1.0|Largest norm.",
                      "run.sizes|list of integers|[1,2]|Sizes.",
                      "run.layout|list of strings|[]|Rows.",
                      "run.patch|integer or two integers|4|Height and width.",
                      "run.model.dim|integer|512|Feature size.",
                      "run.model.depth|integer|2|Number of layers.",
                  }));
  EXPECT_EQ(describe<ModelOptions>().front().name, "dim");
}

template <class T>
std::optional<T> maybe(const T& value) {
  return *rc::gen::arbitrary<bool>() ? std::optional(value) : std::nullopt;
}

RunOptions random_options() {
  return {.steps = *rc::gen::arbitrary<std::int64_t>(),
          .lr = *random_finite(),
          .causal = *rc::gen::arbitrary<bool>(),
          .name = *random_text(),
          .seed = maybe(*rc::gen::arbitrary<std::int64_t>()),
          .clip = maybe(*random_finite()),
          .sizes = *rc::gen::arbitrary<std::vector<std::int64_t>>(),
          .layout = *rc::gen::container<std::vector<std::string>>(random_text()),
          .patch = *rc::gen::arbitrary<bool>()
                       ? IntegerOrPair(*rc::gen::arbitrary<std::int64_t>())
                       : IntegerOrPair(*rc::gen::arbitrary<std::array<std::int64_t, 2>>()),
          .model = {.dim = *rc::gen::arbitrary<std::int64_t>()}};
}

RC_GTEST_PROP(OptionsProperty, RoundTripsThroughJsonText, ()) {
  const auto document = to_json(random_options());
  const auto again = from_json<RunOptions>(parse_json(document.dump(), "test"));
  RC_ASSERT(to_json(again) == document);
}

RC_GTEST_PROP(OptionsProperty, RoundTripsThroughToml, ()) {
  auto options = random_options();
  options.clip = 1.0;  // an empty one is not written, and its default is not empty
  const auto again = from_json<RunOptions>(parse_toml(to_toml(to_json(options)), "test"));
  RC_ASSERT(to_json(again) == to_json(options));
}

}  // namespace
}  // namespace weir::config
