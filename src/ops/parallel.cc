// SPDX-License-Identifier: Apache-2.0
#include "ops/parallel.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <memory>

namespace weir::ops {

void parallel_rows(std::int64_t rows, std::int64_t row_cost,
                   const std::function<void(std::int64_t, std::int64_t)>& body) {
  constexpr std::int64_t kStepsPerTask = 32768;  // about 5 us of vector exponentials
  const std::int64_t grain =
      std::max<std::int64_t>(1, kStepsPerTask / std::max<std::int64_t>(1, row_cost));
  at::parallel_for(0, rows, grain, body);
}

void parallel_rows(std::int64_t rows, std::int64_t row_cost, std::size_t bytes,
                   const std::function<void(std::int64_t, std::int64_t, std::byte*)>& body) {
  parallel_rows(rows, row_cost, [&](std::int64_t begin, std::int64_t end) {
    const auto workspace = std::make_unique_for_overwrite<std::byte[]>(bytes);
    body(begin, end, workspace.get());
  });
}

std::int64_t thread_count() { return at::get_num_threads(); }

}  // namespace weir::ops
