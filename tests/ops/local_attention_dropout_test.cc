// SPDX-License-Identifier: Apache-2.0
// Dropout of local_attention: which weights are dropped, how often and how independently; the mean;
// seeds; gradients with the seed held. Values that are the identity matrix show the weights.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "support/gradcheck.h"
#include "support/local_attention_cases.h"

namespace weir::tests {
namespace {

using ops::local_attention;
using torch::Tensor;

/// No statistic below may leave its expectation by more standard deviations than this: for the
/// fixed seeds they are constants.
constexpr double kDeviations = 4;

/// (batch, heads, n, m): the weights of a call, with the identity for values.
LocalCase weights_case(std::int64_t batch, std::int64_t heads, std::int64_t n, double dropout,
                       torch::Dtype dtype = torch::kDouble) {
  torch::manual_seed(51);
  LocalCase c{torch::randn({batch, heads, n, 8}).to(dtype),
              torch::randn({batch, heads, n, 8}).to(dtype),
              torch::eye(n).to(dtype).expand({batch, heads, n, n})};
  c.options = {.window_size = 32, .dropout = dropout};
  return c;
}

Tensor output_of(const LocalCase& c, std::uint64_t seed,
                 LocalAttention* attention = local_attention) {
  torch::manual_seed(seed);
  return attention(c.query, c.key, c.value, c.inputs, c.options);
}

Tensor undropped(LocalCase c) {
  c.options.dropout = 0;
  return output_of(c, 0);
}

TEST(LocalAttentionDropout, AWeightIsDroppedOrDividedByTheShareKept) {
  for (const auto dtype : {torch::kDouble, torch::kFloat}) {
    for (const double p : {0.1, 0.5, 0.9}) {
      const LocalCase c = weights_case(2, 3, 77, p, dtype);
      const Tensor weights = undropped(c);
      for (LocalAttention* attention : {local_attention, ops::local_attention_composite}) {
        const Tensor got = output_of(c, 52, attention);
        EXPECT_TRUE(((got == 0) & (weights > 0)).any().item<bool>());
        const Tensor kept = (got != 0).to(dtype);
        expect_close("kept", got, weights * kept / (1 - p), tolerance_of(dtype).weights);
      }
    }
  }
}

TEST(LocalAttentionDropout, FrequencyIsTheStatedOne) {
  for (const double p : {0.01, 0.1, 0.5, 0.9}) {
    for (const std::uint64_t seed : {1, 2, 3}) {
      const LocalCase c = weights_case(2, 4, 200, p);
      const Tensor allowed = undropped(c) > 0, dropped = (output_of(c, seed) == 0) & allowed;
      const auto total = allowed.sum().item<double>(), count = dropped.sum().item<double>();
      EXPECT_LE(std::abs(count - total * p), kDeviations * std::sqrt(total * p * (1 - p)))
          << p << ' ' << count << " of " << total;
    }
  }
}

/// Correlation of two kinds of drops that are each made with probability p, in standard deviations.
double correlation(const Tensor& a, const Tensor& b, double p) {
  const Tensor products = (a - p) * (b - p);
  const auto count = static_cast<double>(products.numel());
  return products.sum().item<double>() / (p * (1 - p) * std::sqrt(count));
}

TEST(LocalAttentionDropout, NeighboursAreDroppedIndependently) {
  constexpr double kP = 0.3;
  LocalCase c = weights_case(4, 4, 128, kP);
  c.options.window_size = 128;  // every pair, so that drops are those of the whole square
  ASSERT_TRUE((undropped(c) > 0).all().item<bool>());
  const Tensor drops = (output_of(c, 53) == 0).to(torch::kDouble);
  const auto shifted = [&](std::int64_t dimension, std::int64_t by) {
    const std::int64_t length = drops.size(dimension) - by;
    return correlation(drops.narrow(dimension, 0, length), drops.narrow(dimension, by, length), kP);
  };
  for (std::int64_t dimension = 0; dimension < 4; ++dimension) {
    for (const std::int64_t by : {1, 2, 3}) {
      EXPECT_LE(std::abs(shifted(dimension, by)), kDeviations) << dimension << " by " << by;
    }
  }
  for (const std::int64_t by : {4, 16, 32, 64}) {
    EXPECT_LE(std::abs(shifted(2, by)), kDeviations) << "rows by " << by;
    EXPECT_LE(std::abs(shifted(3, by)), kDeviations) << "keys by " << by;
  }
  const Tensor transposed = drops.transpose(2, 3);  // off the diagonal, where it is itself
  const Tensor above = torch::ones({128, 128}, torch::kBool).triu(1);
  EXPECT_LE(std::abs(correlation(drops.masked_select(above), transposed.masked_select(above), kP)),
            kDeviations);
  for (const std::uint64_t seed : {54, 55, 56}) {
    const Tensor other = (output_of(c, seed) == 0).to(torch::kDouble);
    EXPECT_LE(std::abs(correlation(drops, other, kP)), kDeviations) << "seed " << seed;
  }
}

TEST(LocalAttentionDropout, RowsAndHeadsDropTheirShareEach) {
  constexpr double kP = 0.2;
  LocalCase c = weights_case(4, 4, 128, kP);
  c.options.window_size = 128;
  const Tensor drops = (output_of(c, 57) == 0).to(torch::kDouble);
  for (const std::vector<std::int64_t>& over : {std::vector<std::int64_t>{3}, {2}, {2, 3}}) {
    const Tensor shares = drops.mean(over);
    const double count = static_cast<double>(drops.numel()) / static_cast<double>(shares.numel());
    const Tensor deviations = (shares - kP) / std::sqrt(kP * (1 - kP) / count);
    // up to 2048 of them: the largest of as many normal ones lies near 3.5, and their mean square
    // is 1
    EXPECT_LE(deviations.abs().max().item<double>(), kDeviations + 1);
    const auto square = deviations.square().mean().item<double>();
    EXPECT_LE(std::abs(square - 1),
              kDeviations * std::sqrt(2 / static_cast<double>(deviations.numel())));
  }
}

TEST(LocalAttentionDropout, TheMeanOverSeedsIsTheUndroppedOutput) {
  torch::manual_seed(58);
  const auto operand = [] { return torch::randn({1, 2, 20, 4}, torch::kDouble); };
  LocalCase c{operand(), operand(), operand(), {.inv_freq = rotary(4)}};
  c.options = {.window_size = 5, .causal = true, .dropout = 0.3};
  constexpr std::int64_t kSeeds = 4000;
  Tensor sum = torch::zeros_like(c.query), squares = torch::zeros_like(c.query);
  for (std::int64_t seed = 0; seed < kSeeds; ++seed) {
    const Tensor output = output_of(c, static_cast<std::uint64_t>(seed));
    sum += output, squares += output.square();
  }
  const Tensor mean = sum / kSeeds, spread = (squares / kSeeds - mean.square()).clamp_min(0).sqrt();
  const Tensor expected = undropped(c);
  const Tensor deviations = (mean - expected) / (spread / std::sqrt(static_cast<double>(kSeeds)));
  EXPECT_GT(spread.min().item<double>(), 0);
  EXPECT_LE(deviations.abs().max().item<double>(), kDeviations);
}

TEST(LocalAttentionDropout, TheSeedDecides) {
  const LocalCase c = weights_case(2, 2, 50, 0.5);
  const Tensor first = output_of(c, 59);
  EXPECT_TRUE(torch::equal(output_of(c, 59), first));
  EXPECT_FALSE(torch::equal(output_of(c, 60), first));
  torch::manual_seed(59);
  local_attention(c.query, c.key, c.value, c.inputs, c.options);
  const Tensor second = local_attention(c.query, c.key, c.value, c.inputs, c.options);
  EXPECT_FALSE(torch::equal(second, first));  // every call draws its own
}

TEST(LocalAttentionDropout, NoneIsNoDropoutToTheBit) {
  for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16}) {
    LocalCase c = random_local_case(61, dtype);
    const Tensor upstream = random_upstream(c);
    torch::manual_seed(c.seed);
    const auto next = torch::rand({1}).item<float>();
    const auto expected = everything(run(c, upstream));
    EXPECT_EQ(torch::rand({1}).item<float>(), next);  // nothing was drawn
    c.options.dropout = 1e-18;                        // drawn, but nothing is so unlikely
    const auto got = everything(run(c, upstream));
    EXPECT_NE(torch::rand({1}).item<float>(), next);
    for (std::size_t i = 0; i < got.size(); ++i) EXPECT_TRUE(torch::equal(got[i], expected[i]));
  }
}

TEST(LocalAttentionDropout, KernelAndCompositeDropTheSame) {
  for (unsigned seed = 8000; seed < 8060; ++seed) {
    for (const auto dtype : {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf}) {
      LocalCase c = random_local_case(seed, dtype);
      c.options.dropout = 0.1 * (1 + seed % 9);
      c.seed = seed;
      check_backends(c);
      if (HasFailure()) return;
    }
  }
}

TEST(LocalAttentionDropout, GradientsAreThoseOfTheDrawnFunction) {
  for (unsigned seed = 62; seed < 66; ++seed) {
    torch::manual_seed(seed);
    LocalCase c{torch::randn({2, 2, 6, 4}, torch::kDouble),
                torch::randn({2, 1, 7, 4}, torch::kDouble),
                torch::randn({2, 1, 7, 3}, torch::kDouble)};
    c.options = {.window_size = 3, .causal = seed % 2 == 0, .dropout = 0.4};
    c.inputs.inv_freq = rotary(4);
    const Tensor bias = random_bias(c, torch::kDouble);
    const auto function = [&](const Tensors& in) {
      torch::manual_seed(seed);
      return local_attention(in[0], in[1], in[2], {.attn_bias = in[3], .inv_freq = rotary(4)},
                             c.options);
    };
    expect_gradients(function, {c.query, c.key, c.value, bias});
  }
}

}  // namespace
}  // namespace weir::tests
