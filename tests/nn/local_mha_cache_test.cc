// SPDX-License-Identifier: Apache-2.0
// LocalMHA with a cache: steps of any size, over rows of any lengths, equal the full pass.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>

#include "nn/module_contract.h"
#include "nn/small_mha.h"
#include "weir/nn/dynamic_position_bias.h"

namespace weir::nn {
namespace {

class MhaCache : public MhaMode {};

// Matrices of other shapes sum in another order, and angles are those of other positions.
constexpr double kCachedFloat64 = 1e-10;
constexpr double kCachedFloat32 = 1e-5;

at::Tensor positions_of(const std::vector<std::int64_t>& lengths, std::int64_t count) {
  return at::tensor(lengths, at::kLong).unsqueeze(-1) + at::arange(count, at::kLong);
}

TEST_P(MhaCache, StepsGiveWhatTheFullPassGives) {
  torch::NoGradGuard no_grad;
  constexpr std::int64_t kLength = 64;
  const at::Tensor x = at::randn({2, kLength, 12}), table = at::randn({2, kLength});
  const std::int64_t w = GetParam().options.window_size;
  const std::int64_t span = (GetParam().options.look_backward + 1) * w;
  for (const bool biased : {false, true}) {
    for (const auto& [dtype, tolerance] :
         {std::pair(at::kFloat, kCachedFloat32), std::pair(at::kDouble, kCachedFloat64)}) {
      module_->to(dtype);
      const auto distances = biased ? std::optional(table.to(dtype)) : std::nullopt;
      LocalMHAInputs inputs;
      if (biased) inputs.attn_bias = position_bias(*distances, w, span);
      const at::Tensor expected = module_->forward(x.to(dtype), inputs);
      for (const std::int64_t chunk : {1, 2, 9, 23, 64}) {
        KeyValues past = module_->make_cache(2);
        std::vector<at::Tensor> parts;
        for (std::int64_t begin = 0; begin < kLength; begin += chunk) {
          const std::int64_t count = std::min(chunk, kLength - begin);
          parts.push_back(module_->step(x.to(dtype).narrow(1, begin, count),
                                        positions_of({begin, begin}, count), past, distances));
        }
        EXPECT_LE(distance(at::cat(parts, 1), expected), tolerance) << "chunks of " << chunk;
        const std::int64_t reach = module_->attn_fn->reach();
        EXPECT_LE(past.slots(), reach + reach / 4 + 16 + chunk);
      }
    }
  }
}

TEST_P(MhaCache, RowsOfTheCacheHaveTheirOwnLengths) {
  torch::NoGradGuard no_grad;
  module_->to(at::kDouble);
  const at::Tensor x = at::randn({3, 40, 12}, at::kDouble);
  const at::Tensor expected = module_(x);
  KeyValues past = module_->make_cache(3);
  std::vector<std::int64_t> lengths = {0, 0, 0};
  for (const std::int64_t count : {9, 5, 1, 1, 7, 1}) {
    std::vector<at::Tensor> next, wanted;
    for (std::int64_t row = 0; row < 3; ++row) {
      next.push_back(x[row].narrow(0, lengths[row], count));
      wanted.push_back(expected[row].narrow(0, lengths[row], count));
    }
    const at::Tensor found = module_->step(at::stack(next), positions_of(lengths, count), past);
    EXPECT_LE(distance(found, at::stack(wanted)), kCachedFloat64) << count;
    for (std::int64_t row = 0; row < 3; ++row) {  // cut back into the step, each its own way
      lengths[row] += count - (row == 0 ? 0 : (row * 3) % (count + 1));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Modes, MhaCache, ::testing::ValuesIn(small_mha_cases()));

TEST(LocalMHA, StepsInBFloat16) {
  torch::manual_seed(1);
  for (const auto& [name, options] : small_mha_cases()) {
    LocalMHA module(options);
    module->to(at::kBFloat16);
    KeyValues past = module->make_cache(1);
    const at::Tensor x = at::randn({1, 9, 12}).to(at::kBFloat16);
    const at::Tensor first = module->step(x.narrow(1, 0, 5), positions_of({0}, 5), past);
    const at::Tensor then = module->step(x.narrow(1, 5, 4), positions_of({5}, 4), past);
    EXPECT_EQ(then.scalar_type(), at::kBFloat16);
    EXPECT_LE(distance(at::cat({first, then}, 1), module(x)), 0.05) << name;  // a few roundings
  }
}

TEST(LocalMHA, ACacheCutBackTooFarIsAnError) {
  LocalMHA module(kSmallMha);
  KeyValues past = module->make_cache(1);
  for (std::int64_t i = 0; i < 60; ++i) {
    module->step(at::randn({1, 1, 12}), positions_of({i}, 1), past);
  }
  expect_refusal(
      [&] {
        module->step(at::randn({1, 1, 12}), positions_of({20}, 1), past);
      },
      "weir::KeyValues: expected rows cut back no further than into the last step, but "
      "keys within reach of the next token are no longer held. Read the row anew.");
}

}  // namespace
}  // namespace weir::nn
