// SPDX-License-Identifier: Apache-2.0
// router_logits: Meta agrees with the CPU, empty inputs, the dispatcher's entry, every instruction
// set, autocast, and threads do not change a bit.
#define HWY_DISABLED_TARGETS HWY_SSSE3  // as the kernels are built
#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include "support/instruction_sets.h"
#include "support/router_logits_cases.h"
#include "support/same_results.h"

namespace weir::tests {
namespace {

using ops::router_logits;
using torch::Tensor;

constexpr torch::Dtype kDtypes[] = {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf};

TEST(RouterLogitsMeta, ShapesDtypesAndStridesOfTheCpu) {
  for (unsigned seed = 700; seed < 730; ++seed) {
    for (const auto dtype : kDtypes) {
      const RouterLogitsCase c = random_router_logits_case(seed, dtype);
      SCOPED_TRACE(describe(c));
      const RouterLogitsCase shadow = {c.x.to(torch::kMeta), c.tokens.to(torch::kMeta), c.options};
      const Tensor upstream = torch::randn({c.x.size(0), c.tokens.size(-2), c.x.size(1)});
      expect_meta_like(run(c, upstream), run(shadow, upstream.to(torch::kMeta)));
    }
  }
}

struct Empty {
  const char* name;
  std::int64_t batch, n, dim, routes;
};

void PrintTo(const Empty& empty, std::ostream* out) { *out << empty.name; }

class RouterLogitsEmpty : public ::testing::TestWithParam<Empty> {};

TEST_P(RouterLogitsEmpty, GivesEmptyOrZero) {
  const Empty& e = GetParam();
  for (const auto dtype : kDtypes) {
    for (const bool cosine : {false, true}) {
      const Tensor x = torch::ones({e.batch, e.n, e.dim}).to(dtype);
      check_case({x, torch::ones({e.routes, e.dim}).to(dtype), {.cosine = cosine}});
      check_case({x, torch::ones({e.batch, e.routes, e.dim}).to(dtype), {.cosine = cosine}});
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dimensions, RouterLogitsEmpty,
                         ::testing::Values(Empty{"batch", 0, 4, 5, 2}, Empty{"tokens", 2, 0, 5, 2},
                                           Empty{"dim", 2, 4, 0, 2}, Empty{"routes", 2, 4, 5, 0},
                                           Empty{"all", 0, 0, 0, 0}),
                         [](const auto& info) { return info.param.name; });

TEST(RouterLogitsDispatcher, LengthsAreThereWithoutRoutes) {
  using Entry = std::tuple<Tensor, Tensor>(const Tensor&, const Tensor&, bool);
  const auto entry =
      c10::Dispatcher::singleton().findSchemaOrThrow("weir::_router_logits", "").typed<Entry>();
  const Tensor x = torch::randn({2, 9, 4}, torch::kDouble);
  const Tensor lengths =
      std::get<1>(entry.call(x, torch::empty({0, 4}, torch::kDouble), /*cosine=*/true));
  EXPECT_TRUE(torch::allclose(lengths, x.norm(2, -1), 0, 1e-12));
}

TEST(RouterLogitsDispatcher, ThePublicEntryHasItsSchema) {
  using Entry = Tensor(const Tensor&, const Tensor&, bool, double);
  const auto entry =
      c10::Dispatcher::singleton().findSchemaOrThrow("weir::router_logits", "").typed<Entry>();
  const Tensor x = torch::randn({2, 9, 4}), tokens = torch::randn({3, 4});
  EXPECT_TRUE(torch::equal(entry.call(x, tokens, true, 0.7),
                           router_logits(x, tokens, {.cosine = true, .scale = 0.7})));
  EXPECT_FALSE(torch::equal(entry.call(x, tokens, true, 0.7), router_logits(x, tokens)));
}

TEST(RouterLogitsInstructionSets, AllEqualTheTextbook) {
  for_each_instruction_set([] {
    for (unsigned seed = 800; seed < 815; ++seed) {
      for (const auto dtype : kDtypes) {
        check_case(random_router_logits_case(seed, dtype));
        if (::testing::Test::HasFailure()) return;
      }
    }
  });
}

TEST(RouterLogitsThreads, ResultsDoNotDependOnTheirNumber) {
  torch::manual_seed(14);
  for (const auto dtype : {torch::kFloat, torch::kDouble, torch::kBFloat16}) {
    for (const std::vector<std::int64_t>& shape : {std::vector<std::int64_t>{5, 40}, {3, 5, 40}}) {
      const RouterLogitsCase c{
          torch::randn({3, 5003, 40}).to(dtype), torch::randn(shape), {.cosine = true}};
      const Tensor upstream = torch::randn({3, 5, 5003});
      expect_same_with_any_threads([&] { return run(c, upstream); });
    }
  }
}

TEST(RouterLogitsModes, AutocastChangesNothing) {
  torch::manual_seed(15);
  const Tensor x = torch::randn({2, 30, 24}), tokens = torch::randn({3, 24});
  const Tensor expected = router_logits(x, tokens, {.cosine = true});
  at::autocast::set_autocast_enabled(at::kCPU, true);
  const Tensor got = router_logits(x, tokens, {.cosine = true});
  at::autocast::set_autocast_enabled(at::kCPU, false);
  EXPECT_TRUE(torch::equal(got, expected));
}

TEST(RouterLogitsModes, InferenceModeAndNoGrad) {
  const Tensor x = torch::randn({1, 20, 8}).requires_grad_(true), tokens = torch::randn({2, 8});
  const Tensor expected = router_logits(x, tokens);
  EXPECT_TRUE(expected.requires_grad());
  {
    torch::NoGradGuard no_grad;
    const Tensor got = router_logits(x, tokens);
    EXPECT_FALSE(got.requires_grad());
    EXPECT_TRUE(torch::equal(got, expected));
  }
  c10::InferenceMode inference;
  EXPECT_TRUE(torch::equal(router_logits(x, tokens), expected));
}

}  // namespace
}  // namespace weir::tests
