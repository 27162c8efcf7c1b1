// SPDX-License-Identifier: Apache-2.0
#include "ops/parallel.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace weir::ops {

void parallel_rows(std::int64_t rows, std::int64_t row_cost,
                   const std::function<void(std::int64_t, std::int64_t)>& body) {
  constexpr std::int64_t kStepsPerTask = 32768;  // about 5 us of vector exponentials
  const std::int64_t grain =
      std::max<std::int64_t>(1, kStepsPerTask / std::max<std::int64_t>(1, row_cost));
  at::parallel_for(0, rows, grain, body);
}

std::int64_t thread_count() { return at::get_num_threads(); }

}  // namespace weir::ops
