// SPDX-License-Identifier: Apache-2.0
// Models by name: construction from JSON, descriptions, and the words for what is not known.
#include "models/registry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "config/error.h"
#include "models/small_models.h"

namespace weir::models {
namespace {

using ::testing::StrEq;
using ::testing::ThrowsMessage;

TEST(Registry, MakesTheModelThatOptionsDescribe) {
  for (const auto& [name, options] : small_cases()) {
    const auto model = make_language_model("coordinate_descent", config::to_json(options));
    EXPECT_EQ(model->kind(), "coordinate_descent");
    EXPECT_EQ(model->max_length(), 12);
    EXPECT_EQ(model->num_tokens(), 23);
    EXPECT_EQ(model->options_json(), config::to_json(options).dump());
  }
}

TEST(Registry, DescribesTheOptions) {
  for (const auto& kind : language_model_kinds()) {
    const auto fields = describe_language_model(kind, "model");
    EXPECT_EQ(fields.front().name, "model.num_tokens");
    for (const auto& field : fields) EXPECT_FALSE(field.help.empty()) << field.name;
  }
}

TEST(Registry, RefusesWhatItDoesNotKnow) {
  const auto make = [](const char* kind, const char* options) {
    return [=] { make_language_model(kind, config::Json::parse(options), "model"); };
  };
  EXPECT_THAT(make("coordinate_decent", "{}"),
              ThrowsMessage<config::Error>(StrEq(
                  "unknown model kind `coordinate_decent`; did you mean `coordinate_descent`? "
                  "The kinds are `colt5`, `coordinate_descent`, `local`, `sparse`.")));
  EXPECT_THAT(make("xyz", "{}"), ThrowsMessage<config::Error>(
                                     StrEq("unknown model kind `xyz`. The kinds are "
                                           "`colt5`, `coordinate_descent`, `local`, `sparse`.")));
  EXPECT_THAT(
      make("coordinate_descent", R"({"dimm": 3})"),
      ThrowsMessage<config::Error>(StrEq("unknown key `model.dimm`; did you mean `model.dim`?")));
  EXPECT_THAT(make("coordinate_descent", R"({"num_tokens": 3})"),
              ThrowsMessage<config::Error>(
                  StrEq("weir::CoordinateDescentTransformer: expected `dim` to be at least 1, but "
                        "got 0.")));
}

}  // namespace
}  // namespace weir::models
