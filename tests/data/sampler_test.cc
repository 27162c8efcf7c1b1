// SPDX-License-Identifier: Apache-2.0
// The sampler: its hash never changes, every window is in range and equally likely, and batches do
// not depend on how they are split.
#include "data/sampler.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <rapidcheck/gtest.h>

#include <bit>
#include <cstdint>
#include <set>
#include <vector>

#include "config/error.h"

namespace weir::data {
namespace {

using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

// bytes[i] = i mod 251: in a text of up to 251 bytes a window tells where it begins.
std::vector<std::uint8_t> ramp(std::size_t size) {
  std::vector<std::uint8_t> bytes(size);
  for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::uint8_t>(i % 251);
  return bytes;
}

// From Python integers, with a splitmix64 checked against its published sequence.
TEST(Sampler, HashNeverChanges) {
  EXPECT_EQ(mix(0, 0, 0), 0x238275bc38fcbe91u);
  EXPECT_EQ(mix(0, 0, 1), 0x2f32a78496c67c60u);
  EXPECT_EQ(mix(0, 1, 0), 0x44e5b98100c67fb0u);
  EXPECT_EQ(mix(1, 0, 0), 0xb18a02f46d8d86c3u);
  EXPECT_EQ(mix(42, 1000, 7), 0xa3415f0ac4f3c5b0u);
  EXPECT_EQ(mix(~0ull, ~0ull, ~0ull), 0x595b17f487c0e71bu);
}

TEST(Sampler, ScaleIsTheHighHalfOfTheProduct) {
  EXPECT_EQ(scale(0, 10), 0u);
  EXPECT_EQ(scale(~0ull, 10), 9u);
  EXPECT_EQ(scale(1ull << 63, 10), 5u);
  EXPECT_EQ(scale(~0ull, 1), 0u);
  EXPECT_EQ(scale(~0ull, ~0ull), ~0ull - 1);
}

TEST(Sampler, BatchNeverChanges) {
  const auto bytes = ramp(200);
  const at::Tensor tokens = batch(bytes, 42, 3, 0, 4, 2);
  EXPECT_TRUE(at::equal(
      tokens, at::tensor({34, 35, 36, 72, 73, 74, 181, 182, 183, 167, 168, 169}, at::kLong)
                  .reshape({4, 3})))
      << tokens;
}

RC_GTEST_PROP(Sampler, WindowsAreStretchesOfTheText, (std::uint64_t seed, std::uint32_t step)) {
  const auto size = *rc::gen::inRange<std::size_t>(2, 250);
  const auto seq_len = *rc::gen::inRange<std::int64_t>(1, static_cast<std::int64_t>(size));
  const auto bytes = ramp(size);
  const at::Tensor tokens = batch(bytes, seed, step, 0, 5, seq_len);
  RC_ASSERT(tokens.dtype() == at::kLong);
  RC_ASSERT(tokens.sizes() == (std::vector<std::int64_t>{5, seq_len + 1}));
  RC_ASSERT(at::all(tokens.diff() == 1).item<bool>());
  RC_ASSERT(tokens.min().item<std::int64_t>() >= 0);
  RC_ASSERT(tokens.max().item<std::int64_t>() < static_cast<std::int64_t>(size));
}

RC_GTEST_PROP(Sampler, DoesNotDependOnMicroBatches, (std::uint64_t seed, std::uint32_t step)) {
  const auto bytes = ramp(240);
  const auto batch_size = *rc::gen::inRange<std::int64_t>(1, 20);
  const at::Tensor whole = batch(bytes, seed, step, 0, batch_size, 16);
  std::vector<at::Tensor> parts;
  for (std::int64_t first = 0; first < batch_size;) {
    const auto size = *rc::gen::inRange<std::int64_t>(1, batch_size - first + 1);
    parts.push_back(batch(bytes, seed, step, first, size, 16));
    first += size;
  }
  RC_ASSERT(at::equal(whole, at::cat(parts)));
}

TEST(Sampler, EveryWindowIsEquallyLikely) {
  const auto bytes = ramp(101);
  const at::Tensor starts = batch(bytes, 7, 0, 0, 100000, 1).select(1, 0);
  const at::Tensor counts = at::bincount(starts);
  ASSERT_EQ(counts.numel(), 100);  // the last window begins at byte 99
  // Chi-squared with 99 degrees of freedom: mean 99, deviation 14; five deviations.
  const double chi2 = ((counts - 1000).to(at::kDouble).square() / 1000).sum().item<double>();
  EXPECT_GT(chi2, 99 - 70);
  EXPECT_LT(chi2, 99 + 70);
}

TEST(Sampler, SeedsStepsAndIndicesAreIndependent) {
  // Neighbouring counters in every argument: 27000 hashes, no two alike.
  std::set<std::uint64_t> seen;
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    for (std::uint64_t step = 0; step < 30; ++step) {
      for (std::uint64_t index = 0; index < 30; ++index) seen.insert(mix(seed, step, index));
    }
  }
  EXPECT_EQ(seen.size(), 27000u);
  const auto bytes = ramp(250);
  const auto starts = [&](std::uint64_t seed, std::int64_t step) {
    return batch(bytes, seed, step, 0, 1000, 1).select(1, 0);
  };
  // Of 1000 windows out of 249, two independent draws share about 4 by chance.
  EXPECT_LT((starts(1, 0) == starts(2, 0)).sum().item<int>(), 20);
  EXPECT_LT((starts(1, 0) == starts(1, 1)).sum().item<int>(), 20);
  EXPECT_LT((starts(1, 2) == starts(2, 1)).sum().item<int>(), 20);
}

TEST(Sampler, FlippingACounterBitFlipsHalfOfTheHash) {
  double flipped = 0;
  for (std::uint64_t i = 0; i < 1000; ++i) {
    for (int bit = 0; bit < 64; ++bit) {
      flipped += std::popcount(mix(1, 2, i) ^ mix(1, 2, i ^ (1ull << bit))) +
                 std::popcount(mix(1, i, 2) ^ mix(1, i ^ (1ull << bit), 2));
    }
  }
  EXPECT_NEAR(flipped / (2 * 64 * 1000), 32,
              0.1);  // deviation of the mean: 4 / sqrt(128000) = 0.011
}

TEST(Sampler, EvaluationTargetsEveryByteOnce) {
  for (const std::int64_t size : {11, 12, 20, 21, 22}) {
    const auto bytes = ramp(static_cast<std::size_t>(size));
    const std::int64_t count = evaluation_windows(size, 5);
    EXPECT_EQ(count, (size - 1) / 5);
    std::vector<at::Tensor> targets;
    for (std::int64_t first = 0; first < count; first += 3) {
      const at::Tensor tokens = evaluation_batch(bytes, first, 3, 5);
      ASSERT_EQ(tokens.sizes(),
                (std::vector<std::int64_t>{std::min<std::int64_t>(3, count - first), 6}));
      EXPECT_EQ(tokens[0][0].item<std::int64_t>(), first * 5);
      targets.push_back(tokens.slice(1, 1).flatten());
    }
    EXPECT_TRUE(at::equal(at::cat(targets), at::arange(1, count * 5 + 1)));
  }
  EXPECT_EQ(evaluation_windows(0, 5), 0);
  EXPECT_EQ(evaluation_windows(5, 5), 0);
  EXPECT_EQ(evaluation_windows(6, 5), 1);
}

TEST(Sampler, RefusesWhatDoesNotFit) {
  const auto bytes = ramp(10);
  batch(bytes, 0, 0, 0, 1, 9);
  EXPECT_THAT([&] { batch(bytes, 0, 0, 0, 1, 10); },
              ThrowsMessage<config::InputError>("weir::data::batch: expected `bytes` to hold at "
                                                "least seq_len + 1 = 11 bytes, but got 10."));
  EXPECT_THAT([&] { evaluation_batch(bytes, 0, 1, 10); },
              ThrowsMessage<config::InputError>(
                  HasSubstr("weir::data::evaluation_batch: expected `bytes`")));
  EXPECT_THROW(batch(bytes, 0, 0, 0, 0, 5), c10::Error);
  EXPECT_THROW(batch(bytes, 0, 0, 0, 1, 0), c10::Error);
  EXPECT_THROW(batch(bytes, 0, -1, 0, 1, 5), c10::Error);
  EXPECT_THROW(batch(bytes, 0, 0, -1, 1, 5), c10::Error);
  EXPECT_THROW(evaluation_windows(10, 0), c10::Error);
  EXPECT_THAT(
      [&] { evaluation_batch(bytes, 1, 1, 5); },
      ThrowsMessage<c10::Error>(HasSubstr("expected `first_window` to be in [0, 1), but got 1.")));
}

}  // namespace
}  // namespace weir::data
