// SPDX-License-Identifier: Apache-2.0
// coordinate_descent in float64 against autograd through the textbook iteration, finite
// differences, the closed form of the exact solution, and the published golden numbers.
#include "weir/ops/coordinate_descent.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <torch/torch.h>

#include "support/gradcheck.h"
#include "support/textbook_autograd.h"
#include "support/tolerance.h"

namespace weir::tests {
namespace {

using ops::coordinate_descent;
using ops::CoordinateDescentOptions;
using torch::Tensor;

const auto kDouble = torch::TensorOptions(torch::kDouble);

CoordinateDescentOptions iterative(const TextbookOptions& o) {
  return {.n_iters = o.n_iters, .eps = o.eps, .eps_init = o.eps_init, .eps_decay = o.eps_decay};
}

double distance(const Tensor& got, const Tensor& expected) {
  if (got.numel() == 0) return 0;
  return ((got - expected).abs().max() / expected.abs().max().clamp_min(1)).item<double>();
}

struct Golden {
  TextbookOptions options;
  bool masked;
  std::vector<double> weights, grad_scores;
  double grad_budget;
};

class CoordinateDescentGolden : public ::testing::TestWithParam<Golden> {};

TEST_P(CoordinateDescentGolden, Published) {
  const Golden& golden = GetParam();
  const Tensor scores =
      torch::tensor({0.3, -1.2, 2.0, 0.7, 0.1, 1.1}, kDouble).set_requires_grad(true);
  const Tensor budget = torch::tensor(2.25, kDouble).set_requires_grad(true);
  const Tensor upstream = torch::tensor({1.0, 2.0, -1.0, 0.5, 0.0, 3.0}, kDouble);
  std::optional<Tensor> mask;
  if (golden.masked) mask = torch::tensor({1, 1, 1, 0, 1, 1}).to(torch::kBool);
  const Tensor weights = coordinate_descent(scores, budget, mask, iterative(golden.options));
  const auto grads = torch::autograd::grad({weights}, {scores, budget}, {upstream});
  constexpr double kPrinted = 5e-10;  // the published numbers have nine decimals
  for (int j = 0; j < 6; ++j) {
    EXPECT_NEAR(weights[j].item<double>(), golden.weights[j], kPrinted);
    EXPECT_NEAR(grads[0][j].item<double>(), golden.grad_scores[j], kPrinted);
  }
  EXPECT_NEAR(grads[1].item<double>(), golden.grad_budget, kPrinted);
}

INSTANTIATE_TEST_SUITE_P(
    Rows, CoordinateDescentGolden,
    ::testing::Values(
        Golden{{20, 0.1, 4.0, 0.7},
               false,
               {.000757951, 0, 1, .041382714, .000102577, 1},
               {.005314498, -.000153072, -.002360861, .17855581, -.001259483, -.180096891},
               .093640334},
        Golden{{20, 0.1, 4.0, 0.7},
               true,
               {.001094755, 0, 1, 0, .000148159, 1},
               {.01061011, -.000030572, -.000120289, 0, -.00020168, -.010257569},
               .006719535},
        Golden{{8, 1.0, std::nullopt, 1.0},
               false,
               {.217509074, .048532834, 1, .324485408, .178081368, .484075346},
               {-.117008671, .022424671, 0, -.336799129, -.273879965, .710941835},
               1.530888163},
        Golden{{8, 1.0, std::nullopt, 1.0},
               true,
               {.293609696, .065513179, 1, 0, .240387288, .653440396},
               {-.264668612, .006457629, 0, 0, -.45707962, .723188337},
               1.891914208},
        Golden{{3, 0.03, 4.0, 0.7},
               false,
               {.179784224, .060247611, .62068545, .240640127, .155397256, .322095394},
               {.056370538, .053089807, -.630147156, -.003875285, -.06742423, .591986326},
               .486476343},
        Golden{{3, 0.03, 4.0, 0.7},
               true,
               {.232202135, .077813412, .801652579, 0, .2007049, .416005568},
               {.072005475, .068196308, -.815778517, 0, -.087805261, .763381994},
               .529646402}));

RC_GTEST_PROP(CoordinateDescentProperty, IterativeEqualsAutogradThroughTheTextbook, ()) {
  const auto rows = *rc::gen::inRange<std::int64_t>(1, 24),
             cols = *rc::gen::inRange<std::int64_t>(1, 400);
  const auto seed = *rc::gen::arbitrary<std::uint32_t>();
  const bool masked = *rc::gen::arbitrary<bool>(), annealed = *rc::gen::arbitrary<bool>();
  const double eps = *rc::gen::element(0.03, 0.1, 0.5, 1.0),
               spread = *rc::gen::element(0.3, 1.0, 5.0, 22.6);
  TextbookOptions options{.n_iters = *rc::gen::inRange<std::int64_t>(1, 30), .eps = eps};
  if (annealed) options.eps_init = 4.0, options.eps_decay = 0.7;

  torch::manual_seed(seed);
  const Tensor scores = (torch::randn({rows, cols}, kDouble) * spread).set_requires_grad(true);
  const Tensor budget = (torch::rand({rows}, kDouble) * 0.5 * static_cast<double>(cols) + 0.3)
                            .set_requires_grad(true);
  Tensor mask;
  if (masked) mask = torch::rand({rows, cols}) < 0.7, mask.select(1, 0).fill_(true);
  const auto optional_mask = masked ? std::optional(mask) : std::nullopt;
  const Tensor got = coordinate_descent(scores, budget, optional_mask, iterative(options));
  const Tensor expected = textbook_coordinate_descent(scores, budget, mask, options);
  const Tensor upstream = torch::randn_like(got);
  const auto got_grads = torch::autograd::grad({got}, {scores, budget}, {upstream});
  const auto expected_grads = torch::autograd::grad({expected}, {scores, budget}, {upstream});
  RC_ASSERT(distance(got, expected) <= kFloat64.weights);
  RC_ASSERT(distance(got_grads[0], expected_grads[0]) <= kFloat64.gradients);
  RC_ASSERT(distance(got_grads[1], expected_grads[1]) <= kFloat64.gradients);
}

RC_GTEST_PROP(CoordinateDescentProperty, ExactSumsToItsBudget, ()) {
  const auto rows = *rc::gen::inRange<std::int64_t>(1, 24),
             cols = *rc::gen::inRange<std::int64_t>(1, 400);
  const auto dtype = *rc::gen::element(torch::kDouble, torch::kFloat);
  torch::manual_seed(*rc::gen::arbitrary<std::uint32_t>());
  const Tensor scores = torch::randn({rows, cols}, dtype) * *rc::gen::element(0.3, 1.0, 22.6);
  const Tensor budget = torch::rand({rows}, kDouble) * static_cast<double>(cols) * 1.2 + 0.3;
  const Tensor mask = torch::rand({rows, cols}) < 0.8;
  const double eps = *rc::gen::element(0.03, 0.1, 1.0);
  const Tensor sum = coordinate_descent(scores, budget, mask, {.eps = eps, .solver = "exact"})
                         .to(torch::kDouble)
                         .sum(-1);
  const Tensor expected = torch::minimum(budget, mask.sum(-1).to(torch::kDouble));
  RC_ASSERT(((sum - expected).abs() <= kExactSum * expected).all().item<bool>());
}

struct Gradcheck {
  std::string solver;
  double eps;
  bool masked;
};

class CoordinateDescentGradcheck : public ::testing::TestWithParam<Gradcheck> {};

TEST_P(CoordinateDescentGradcheck, FirstAndSecondDerivatives) {
  const auto& [solver, eps, masked] = GetParam();
  torch::manual_seed(3);
  std::optional<Tensor> mask;
  if (masked) mask = torch::rand({2, 3, 7}) < 0.8;
  const CoordinateDescentOptions options = {
      .n_iters = 6, .eps = eps, .eps_init = 2.0, .eps_decay = 0.7, .solver = solver};
  const Tensors inputs = {torch::randn({2, 3, 7}, kDouble), torch::rand({3}, kDouble) * 2 + 0.7};
  const auto function = [&](const Tensors& in) {
    return coordinate_descent(in[0], in[1], mask, options);
  };
  expect_gradients(function, inputs);
  const auto gradient = [&](const Tensors& in) {
    const auto grads =
        torch::autograd::grad({function(in).square().sum()}, {in[0], in[1]}, {}, true, true);
    return torch::cat({grads[0].flatten(), grads[1].flatten()});
  };
  expect_gradients(gradient, inputs,
                   1e-5);  // one more derivative, one more factor 1 / eps of curvature
}

INSTANTIATE_TEST_SUITE_P(
    Solvers, CoordinateDescentGradcheck,
    ::testing::Values(Gradcheck{"iterative", 0.3, false}, Gradcheck{"iterative", 0.3, true},
                      Gradcheck{"iterative", 1.0, false}, Gradcheck{"exact", 0.3, false},
                      Gradcheck{"exact", 0.3, true}, Gradcheck{"exact", 1.0, false}));

TEST(CoordinateDescent, GradientReachesWhicheverInputWantsIt) {
  const Tensor scores = torch::randn({4, 9}, kDouble), budget = torch::full({4}, 2.5, kDouble);
  const auto options = CoordinateDescentOptions{.n_iters = 5, .eps = 1.0};
  const Tensor wants_scores = scores.clone().set_requires_grad(true);
  const Tensor wants_budget = budget.clone().set_requires_grad(true);
  const Tensor upstream = torch::randn({4, 9}, kDouble);
  const auto both =
      torch::autograd::grad({coordinate_descent(wants_scores, wants_budget, {}, options)},
                            {wants_scores, wants_budget}, {upstream});
  const auto first = torch::autograd::grad({coordinate_descent(wants_scores, budget, {}, options)},
                                           {wants_scores}, {upstream});
  const auto second = torch::autograd::grad({coordinate_descent(scores, wants_budget, {}, options)},
                                            {wants_budget}, {upstream});
  EXPECT_TRUE(torch::equal(both[0], first[0]));
  EXPECT_TRUE(torch::equal(both[1], second[0]));
}

TEST(CoordinateDescent, BudgetGradientIsSummedOverBroadcastRows) {
  const Tensor scores = torch::randn({2, 3, 4, 11}, kDouble);
  const auto options = CoordinateDescentOptions{.n_iters = 5, .eps = 1.0};
  for (const std::vector<std::int64_t>& shape :
       std::vector<std::vector<std::int64_t>>{{}, {4}, {3, 1}, {2, 1, 4}}) {
    const Tensor budget = (torch::rand(shape, kDouble) + 1.5).set_requires_grad(true);
    const Tensor upstream = torch::randn({2, 3, 4, 11}, kDouble);
    const Tensor got = torch::autograd::grad({coordinate_descent(scores, budget, {}, options)},
                                             {budget}, {upstream})[0];
    const Tensor expanded = budget.detach().expand({2, 3, 4}).clone().set_requires_grad(true);
    const Tensor rows = torch::autograd::grad({coordinate_descent(scores, expanded, {}, options)},
                                              {expanded}, {upstream})[0];
    ASSERT_EQ(got.sizes(), budget.sizes());
    EXPECT_LE(distance(got, at::sum_to(rows, budget.sizes())), kFloat64.gradients);
  }
}

}  // namespace
}  // namespace weir::tests
