// SPDX-License-Identifier: Apache-2.0
// One step: it learns, micro-batches add up to the big batch, what is not finite changes nothing.
#include "train/learner.h"

#include <cmath>
#include <limits>

#include "train/small_run.h"

namespace weir::train {
namespace {

const std::string kText = small_text();
const std::span<const std::uint8_t> kBytes(reinterpret_cast<const std::uint8_t*>(kText.data()),
                                           kText.size());

TEST(Learner, LowersTheLoss) {
  TrainOptions options = small_train_options();
  options.steps = 40;
  Learner learner(small_model(), kBytes, options);
  const double first = learner.step(1)->loss;
  double last = first;
  for (std::int64_t step = 2; step <= 40; ++step) last = learner.step(step)->loss;
  EXPECT_NEAR(first, std::log(256.0), 1);
  EXPECT_LT(last, 0.6 * first);
}

TEST(Learner, MicroBatchesAddUpToTheBigBatch) {
  TrainOptions options = small_train_options();
  options.batch_size = 8;
  options.accumulate = 1;
  Learner big(small_model(), kBytes, options);
  options.batch_size = 2;
  options.accumulate = 4;
  Learner small(small_model(), kBytes, options);
  for (auto* learner : {&big, &small}) learner->model().to(at::kDouble);
  for (std::int64_t step = 1; step <= 3; ++step) {
    const auto a = big.step(step), b = small.step(step);
    EXPECT_NEAR(a->loss, b->loss, 1e-12);
    EXPECT_NEAR(a->grad_norm, b->grad_norm, 1e-12);
  }
  const auto others = small.model().named_parameters();
  for (const auto& item : big.model().named_parameters()) {
    // Adam divides by the gradient's size, and so magnifies the rounding of tiny gradients.
    EXPECT_TRUE(item.value().allclose(others[item.key()], 1e-6, 1e-8)) << item.key();
  }
}

TEST(Learner, StepsAreFunctionsOfTheirNumber) {
  Learner a(small_model(), kBytes, small_train_options());
  Learner b(small_model(), kBytes, small_train_options());
  torch::manual_seed(99);  // of no consequence
  EXPECT_EQ(a.step(5)->loss, b.step(5)->loss);
  expect_equal_parameters(a.model(), b.model());
  EXPECT_NE(a.step(6)->loss, b.step(7)->loss);
}

TEST(Learner, StoppingLeavesTheWeights) {
  Learner learner(small_model(), kBytes, small_train_options());
  int polls = 0;
  EXPECT_FALSE(learner.step(1, [&] { return ++polls == 2; }));
  expect_equal_parameters(learner.model(), *small_model());
  Learner undisturbed(small_model(), kBytes, small_train_options());
  EXPECT_EQ(learner.step(1)->grad_norm, undisturbed.step(1)->grad_norm);
}

TEST(Learner, SkipsWhatIsNotFinite) {
  const auto model = small_model();
  Learner learner(model, kBytes, small_train_options());
  {
    torch::NoGradGuard no_grad;
    model->named_parameters()["to_logits.1.bias"][3] = std::numeric_limits<float>::quiet_NaN();
  }
  const at::Tensor before = model->token_emb->weight.clone();
  const auto result = learner.step(1);
  EXPECT_TRUE(result->skipped);
  EXPECT_TRUE(std::isnan(result->loss));
  EXPECT_TRUE(model->token_emb->weight.equal(before));
  EXPECT_TRUE(learner.optimizer().state().empty());
}

}  // namespace
}  // namespace weir::train
