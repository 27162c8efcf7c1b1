// SPDX-License-Identifier: Apache-2.0
// l2_rms_norm against autograd through the formula in float64: dtypes, strides, every instruction
// set, Meta, threads, corners, finite differences, and every message.
#define HWY_DISABLED_TARGETS HWY_SSSE3  // as the kernels are built
#include "weir/ops/l2_rms_norm.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>
#include <limits>

#include "support/block_sparse_attention_cases.h"
#include "support/gradcheck.h"
#include "support/instruction_sets.h"
#include "support/message_of.h"
#include "support/same_results.h"

namespace weir::tests {
namespace {

using ops::l2_rms_norm;
using torch::Tensor;

const auto kDouble = torch::TensorOptions(torch::kDouble);
constexpr torch::Dtype kDtypes[] = {torch::kDouble, torch::kFloat, torch::kBFloat16, torch::kHalf};

/// Output, gradient of x, gradient of gamma.
template <class Call>
Results with_gradients(const Tensor& x, const Tensor& gamma, const Tensor& upstream,
                       const Call& call) {
  const Tensor a = x.detach().requires_grad_(true), b = gamma.detach().requires_grad_(true);
  const Tensor output = call(a, b);
  const auto grads = torch::autograd::grad({output}, {a, b}, {upstream.to(output.scalar_type())});
  return {output.detach(), grads[0], grads[1]};
}

Results run(const Tensor& x, const Tensor& gamma, const Tensor& upstream) {
  return with_gradients(x, gamma, upstream, l2_rms_norm);
}

/// From the composite's pair, through a dispatch key that has no kernel of its own.
Results run_composite_pair(const Tensor& x, const Tensor& gamma, const Tensor& upstream) {
  using Pair = std::tuple<Tensor, Tensor>;
  using Forward = Pair(const Tensor&, const Tensor&);
  using Backward = Pair(const Tensor&, const Tensor&, const Tensor&, const Tensor&);
  const c10::DispatchKeySet no_kernel(c10::DispatchKey::XLA);
  const auto find = [](const char* name) {
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "");
  };
  const Tensor wide = gamma.to(x.scalar_type() == torch::kDouble ? torch::kDouble : torch::kFloat);
  const auto [output, lengths] =
      find("weir::_l2_rms_norm").typed<Forward>().redispatch(no_kernel, x, wide);
  const auto [of_x, of_gamma] =
      find("weir::_l2_rms_norm_backward")
          .typed<Backward>()
          .redispatch(no_kernel, upstream.to(x.scalar_type()), x, wide, lengths);
  return {output, of_x, of_gamma.to(gamma.scalar_type())};
}

void check(const Tensor& x, const Tensor& gamma) {
  SCOPED_TRACE(::testing::Message() << x.sizes() << ' ' << x.scalar_type());
  const auto dtype = x.scalar_type();
  const Tensor upstream = torch::randn(x.sizes()).to(dtype);
  const Results expected = with_gradients(
      x.to(torch::kDouble), gamma.to(torch::kDouble), upstream, [](const auto& a, const auto& b) {
        const Tensor length = a.norm(2, -1, /*keepdim=*/true).clamp_min(1e-12);
        return a * (std::sqrt(static_cast<double>(a.size(-1))) / length) * b;
      });
  for (const Results& got : {run(x, gamma, upstream), run_composite_pair(x, gamma, upstream)}) {
    EXPECT_EQ(got[0].scalar_type(), dtype);
    EXPECT_EQ(got[2].scalar_type(), gamma.scalar_type());
    expect_close("output", got[0], expected[0], tolerance_of(dtype).weights);
    expect_close("grad of x", got[1], expected[1], tolerance_of(dtype).gradients);
    const auto summed = dtype == torch::kDouble ? torch::kDouble : torch::kFloat;
    expect_close(
        "grad of gamma", got[2], expected[2],
        std::max(tolerance_of(gamma.scalar_type()).gradients, tolerance_of(summed).gradients));
  }
}

TEST(L2RmsNorm, EveryInstructionSetEqualsTheTextbook) {
  for_each_instruction_set([] {
    torch::manual_seed(1);
    for (const auto dtype : kDtypes) {
      for (const std::int64_t dim : {3, 7, 8, 15, 16, 17, 31, 33, 64, 100, 257}) {
        const Tensor x = torch::randn({3, 7, dim}, kDouble).to(dtype);
        check(x, (torch::rand({dim}, kDouble) + 0.5).to(dtype));
        check(x.transpose(0, 1), torch::randn({dim}, kDouble).to(torch::kDouble));
        if (::testing::Test::HasFailure()) return;
      }
      check(torch::randn({1100, 24}, kDouble).to(dtype), torch::randn({24}, kDouble).to(dtype));
      check(torch::randn({24}, kDouble).to(dtype), torch::randn({24}));
    }
  });
}

TEST(L2RmsNorm, EmptyInputs) {
  for (const std::vector<std::int64_t>& shape :
       {std::vector<std::int64_t>{0, 5}, {3, 0, 5}, {3, 0}, {0}}) {
    check(torch::ones(shape), torch::ones({shape.back()}));
  }
}

TEST(L2RmsNorm, ZerosStayAndNanStaysInItsRow) {
  for (const auto dtype : kDtypes) {
    Tensor x = torch::randn({6, 19}).to(dtype);
    x[1].zero_(), x[2][18] = NAN, x[4][0] = INFINITY;
    const Tensor gamma = torch::ones({19}), upstream = torch::ones({6, 19});
    for (const Results& got : {run(x, gamma, upstream), run_composite_pair(x, gamma, upstream)}) {
      EXPECT_TRUE(torch::equal(got[0][1], torch::zeros({19}, dtype)));
      const Tensor finite = torch::isfinite(got[0]).all(-1);
      EXPECT_FALSE(finite[2].item<bool>());
      EXPECT_FALSE(finite[4].item<bool>());
      EXPECT_EQ(finite.sum().item<std::int64_t>(), 4);
    }
  }
}

TEST(L2RmsNorm, MetaIsLikeTheCpu) {
  for (const auto dtype : kDtypes) {
    const Tensor x = torch::randn({4, 5, 9}).to(dtype).transpose(0, 1), gamma = torch::ones({9});
    const Tensor upstream = torch::randn(x.sizes());
    expect_meta_like(run(x, gamma, upstream),
                     run(x.to(torch::kMeta), gamma.to(torch::kMeta), upstream.to(torch::kMeta)));
  }
}

TEST(L2RmsNorm, ResultsDoNotDependOnThreads) {
  torch::manual_seed(2);
  const Tensor x = torch::randn({7001, 40}), gamma = torch::randn({40});
  const Tensor upstream = torch::randn_like(x);
  expect_same_with_any_threads([&] { return run(x, gamma, upstream); });
}

TEST(L2RmsNorm, FirstAndSecondDerivatives) {
  torch::manual_seed(3);
  const auto function = [](const Tensors& in) { return l2_rms_norm(in[0], in[1]); };
  const Tensors inputs = {torch::randn({4, 5}, kDouble), torch::randn({5}, kDouble)};
  expect_gradients(function, inputs);
  const auto gradient = [&](const Tensors& in) {
    const auto grads = torch::autograd::grad({function(in).pow(3).sum()}, in, {}, std::nullopt,
                                             /*create_graph=*/true);
    return torch::cat({grads[0].flatten(), grads[1].flatten()});
  };
  expect_gradients(gradient, inputs);
}

TEST(L2RmsNormErrors, SayWhatWasExpectedAndFound) {
  for (const torch::Device device : {torch::Device(torch::kCPU), torch::Device(torch::kMeta)}) {
    const auto words = [&](const std::vector<std::int64_t>& x, torch::Dtype dtype,
                           const std::vector<std::int64_t>& gamma, torch::Dtype gamma_dtype) {
      return message_of([&] {
        l2_rms_norm(torch::zeros(x, torch::dtype(dtype).device(device)),
                    torch::zeros(gamma, torch::dtype(gamma_dtype).device(device)));
      });
    };
    const std::string expected = "weir::l2_rms_norm: expected ";
    EXPECT_EQ(words({2, 8}, torch::kFloat, {8}, torch::kDouble), "no error");
    EXPECT_EQ(words({}, torch::kFloat, {8}, torch::kFloat),
              expected + "`x` to have at least 1 dimension, but got a 0-dimensional tensor.");
    EXPECT_EQ(words({2, 8}, torch::kInt, {8}, torch::kFloat),
              expected + "`x` to be float32, float64, bfloat16 or float16, but got Int.");
    EXPECT_EQ(words({2, 8}, torch::kFloat, {8}, torch::kLong),
              expected + "`gamma` to be floating point, but got Long.");
    EXPECT_EQ(
        words({2, 8}, torch::kFloat, {1, 8}, torch::kFloat),
        expected + "`gamma` to have shape [8] like the last dimension of `x`, but got [1, 8].");
    EXPECT_EQ(words({2, 8}, torch::kFloat, {7}, torch::kFloat),
              expected + "`gamma` to have shape [8] like the last dimension of `x`, but got [7].");
  }
  EXPECT_EQ(message_of([] {
              l2_rms_norm(torch::zeros({2, 8}), torch::zeros({8}, torch::kMeta));
            }),
            "weir::l2_rms_norm: expected `gamma` on the device of `x`, cpu, but got meta.");
}

}  // namespace
}  // namespace weir::tests
