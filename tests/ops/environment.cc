// SPDX-License-Identifier: Apache-2.0
// Before any test: calls exp and log once, on one thread. MKL up to 2024.2 picks the code of such a
// function at its first call, and threads that make that call together may get one of lower
// accuracy, 1e-9 in float64 (https://github.com/pytorch/pytorch/issues/188792).
#include <gtest/gtest.h>
#include <torch/torch.h>

namespace weir::tests {
namespace {

class VectorMath : public ::testing::Environment {
 public:
  void SetUp() override {
    for (const auto dtype : {torch::kFloat, torch::kDouble})
      torch::full({1}, 0.5, dtype).exp().log();
  }
};

const auto* const kVectorMath = ::testing::AddGlobalTestEnvironment(new VectorMath);

}  // namespace
}  // namespace weir::tests
