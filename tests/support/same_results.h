// SPDX-License-Identifier: Apache-2.0
// What every operator owes besides its numbers: Meta describes the results of the CPU, and the
// number of threads changes none of their bits.
#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <vector>

namespace weir::tests {

using Results = std::vector<torch::Tensor>;

inline void expect_meta_like(const Results& on_cpu, const Results& on_meta) {
  ASSERT_EQ(on_cpu.size(), on_meta.size());
  for (std::size_t i = 0; i < on_cpu.size(); ++i) {
    EXPECT_TRUE(on_meta[i].is_meta()) << "result " << i;
    EXPECT_EQ(on_cpu[i].sizes(), on_meta[i].sizes()) << "result " << i;
    EXPECT_EQ(on_cpu[i].scalar_type(), on_meta[i].scalar_type()) << "result " << i;
    EXPECT_EQ(on_cpu[i].strides(), on_meta[i].strides()) << "result " << i;
  }
}

/// `run()` gives Results.
template <class Run>
void expect_same_with_any_threads(const Run& run) {
  const int before = torch::get_num_threads();
  const auto with_threads = [&](int threads) -> Results {
    torch::set_num_threads(threads);
    return run();
  };
  const Results one = with_threads(1);
  for (const int threads : {2, 3, 8}) {
    const Results many = with_threads(threads);
    for (std::size_t i = 0; i < one.size(); ++i) {
      EXPECT_TRUE(torch::equal(one[i], many[i])) << threads << " threads, result " << i;
    }
  }
  torch::set_num_threads(before);
}

}  // namespace weir::tests
