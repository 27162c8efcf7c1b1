// SPDX-License-Identifier: Apache-2.0
// Models on disk: what is saved is loaded to the bit, and a directory that does not hold exactly
// one model is refused.
#include "weir/models/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <functional>

#include "config/atomic_file.h"
#include "config/document.h"
#include "config/error.h"
#include "models/safetensors.h"
#include "models/small_models.h"
#include "support/temporary_directory.h"

namespace weir::models {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

TEST(Checkpoint, HoldsTheWholeModel) {
  for (const auto& [name, options] : small_cases()) {
    for (const auto dtype : {at::kFloat, at::kBFloat16}) {
      tests::TemporaryDirectory directory;
      auto model = small_model(options);
      model->to(dtype);
      save_model(directory / "deep" / "er", *model);
      const auto loaded = load_model(directory / "deep" / "er");
      const at::Tensor tokens = at::arange(10, at::kLong).view({2, 5});
      EXPECT_TRUE(loaded->forward(tokens).equal(model(tokens)));
      EXPECT_TRUE(loaded->is_training());
      for (const auto& parameter : loaded->parameters()) {
        EXPECT_EQ(parameter.scalar_type(), dtype);
        EXPECT_EQ(parameter.requires_grad(), parameter.numel() > 0);  // null_kv may be empty
      }
    }
  }
}

TEST(Checkpoint, SaysWhatItIs) {
  tests::TemporaryDirectory directory;
  save_model(directory.path(), *small_model(small_cases()[0].options));
  const auto document = config::parse_json(config::read_file(directory / "config.json"), "config");
  EXPECT_EQ(document["kind"], "coordinate_descent");
  EXPECT_EQ(document["weir_version"], WEIR_VERSION);
  EXPECT_EQ(document["options"]["seq_len"], 12);
}

class DamagedCheckpoint : public ::testing::Test {
 protected:
  DamagedCheckpoint() { save_model(directory_.path(), *small_model(small_cases()[0].options)); }

  void expect_refused(const std::string& file, const std::string& words) const {
    EXPECT_THAT([&] { load_model(directory_.path()); },
                ThrowsMessage<config::InputError>((directory_ / file).string() + words));
  }
  void rewrite(const std::function<void(TensorMap&)>& change) const {
    TensorMap tensors = read_safetensors(directory_ / "model.safetensors").tensors;
    change(tensors);
    write_safetensors(directory_ / "model.safetensors", tensors);
  }
  void write_config(const std::string& text) const {
    config::write_file(directory_ / "config.json", text);
  }

  tests::TemporaryDirectory directory_;
};

TEST_F(DamagedCheckpoint, MissingTensor) {
  rewrite([](TensorMap& tensors) { tensors.erase("layers.1.0.to_qkv.weight"); });
  expect_refused("model.safetensors",
                 ": tensor `layers.1.0.to_qkv.weight` of shape [36, 12] is missing");
}

TEST_F(DamagedCheckpoint, UnexpectedTensor) {
  rewrite([](TensorMap& tensors) { tensors["layers.2.0.norm.bias"] = at::zeros({12}); });
  expect_refused("model.safetensors", ": unexpected tensor `layers.2.0.norm.bias` of shape [12]");
}

TEST_F(DamagedCheckpoint, WrongShape) {
  rewrite([](TensorMap& tensors) { tensors["pos_emb.weight"] = at::zeros({13, 12}); });
  expect_refused("model.safetensors",
                 ": expected tensor `pos_emb.weight` to have shape [12, 12], but got [13, 12]");
}

TEST_F(DamagedCheckpoint, WrongKindOfNumber) {
  rewrite([](TensorMap& tensors) { tensors["pos_emb.weight"] = at::zeros({12, 12}, at::kLong); });
  expect_refused("model.safetensors",
                 ": expected tensor `pos_emb.weight` to be floating point, but got Long");
}

TEST_F(DamagedCheckpoint, ConfigThatIsNone) {
  write_config("[]");
  expect_refused("config.json",
                 ": expected an object with the keys `kind`, a string, and `options`");
  write_config(R"({"kind": "coordinate_descent", "options": {"dimm": 3}})");
  expect_refused("config.json", ": unknown key `options.dimm`; did you mean `options.dim`?");
  write_config(R"({"kind": "coordinate_descent", "options": 3})");
  expect_refused("config.json", ": `options`: expected a table, but got 3");
  write_config(R"({"kind": "coordinate_descent", "options": {}})");
  expect_refused(
      "config.json",
      ": weir::CoordinateDescentTransformer: expected `num_tokens` to be at least 1, but "
      "got 0.");
}

TEST_F(DamagedCheckpoint, MissingFiles) {
  std::filesystem::remove(directory_ / "model.safetensors");
  EXPECT_THAT([&] { load_model(directory_.path()); },
              ThrowsMessage<config::InputError>(HasSubstr("model.safetensors")));
  EXPECT_THAT([&] { load_model(directory_ / "nowhere"); },
              ThrowsMessage<config::InputError>(HasSubstr("nowhere/config.json")));
}

}  // namespace
}  // namespace weir::models
