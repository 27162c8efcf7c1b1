// SPDX-License-Identifier: Apache-2.0
// What the tests of every module ask: names of parameters, distances, copies.
#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <algorithm>
#include <ostream>
#include <sstream>
#include <string>
#include <vector>

namespace weir::nn {

/// A test parameter that CTest lists by its name.
template <class Options>
struct Named {
  const char* name;
  Options options;
  friend void PrintTo(const Named& named, std::ostream* stream) { *stream << named.name; }
};

inline std::vector<std::string> parameter_names(const torch::nn::Module& module) {
  return module.named_parameters().keys();
}

/// Largest |actual - expected| / max(1, largest |expected|).
inline double distance(const at::Tensor& actual, const at::Tensor& expected) {
  EXPECT_EQ(actual.sizes(), expected.sizes());
  if (expected.numel() == 0) return 0;
  const at::Tensor a = actual.to(at::kDouble), e = expected.to(at::kDouble);
  return (a - e).abs().max().item<double>() / std::max(1.0, e.abs().max().item<double>());
}

/// Weights away from their initial values, biases of zero included.
inline void randomise(torch::nn::Module& module) {
  torch::NoGradGuard no_grad;
  for (auto& parameter : module.parameters()) parameter.add_(0.1 * at::randn_like(parameter));
}

/// Every parameter with elements has a gradient that is finite and not all zero.
inline void expect_gradients_everywhere(const torch::nn::Module& module) {
  for (const auto& item : module.named_parameters()) {
    if (item.value().numel() == 0) continue;
    const at::Tensor gradient = item.value().grad();
    ASSERT_TRUE(gradient.defined()) << item.key();
    EXPECT_TRUE(gradient.isfinite().all().item<bool>()) << item.key();
    EXPECT_GT(gradient.abs().max().item<double>(), 0) << item.key();
  }
}

/// A clone gives the same answer and shares no memory; saving and loading gives the same answer.
template <class Holder>
void expect_copies_agree(Holder module, Holder other, const at::Tensor& x) {
  const at::Tensor expected = module->forward(x);
  auto clone = std::dynamic_pointer_cast<typename Holder::Impl>(module->clone());
  ASSERT_NE(clone, nullptr);
  EXPECT_TRUE(clone->forward(x).equal(expected));
  torch::NoGradGuard no_grad;
  for (auto& parameter : clone->parameters()) parameter.zero_();
  EXPECT_TRUE(module->forward(x).equal(expected)) << "the clone shares memory";

  std::stringstream archive;
  torch::save(module, archive);
  torch::load(other, archive);
  EXPECT_TRUE(other->forward(x).equal(expected));
}

/// `action` throws a c10::Error that says `words` and nothing more.
template <class Action>
void expect_refusal(const Action& action, const std::string& words) {
  try {
    action();
    ADD_FAILURE() << "not refused: " << words;
  } catch (const c10::Error& error) {
    EXPECT_EQ(error.what_without_backtrace(), words);
  }
}

template <class Module>
std::string printed(const Module& module) {
  std::ostringstream stream;
  stream << *module;
  return stream.str();
}

}  // namespace weir::nn
