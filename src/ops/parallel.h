// SPDX-License-Identifier: Apache-2.0
// The one place where rows are split over threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace weir::ops {

/// Calls `body(begin, end)` on disjoint ranges that cover [0, rows), on torch's threads. `row_cost`
/// is the number of elementary steps in one row; ranges are made long enough to be worth a thread.
/// Kernels treat rows independently, so results do not depend on the split.
void parallel_rows(std::int64_t rows, std::int64_t row_cost,
                   const std::function<void(std::int64_t begin, std::int64_t end)>& body);

/// The same with `bytes` of scratch for each range: `body(begin, end, workspace)`.
void parallel_rows(
    std::int64_t rows, std::int64_t row_cost, std::size_t bytes,
    const std::function<void(std::int64_t begin, std::int64_t end, std::byte* workspace)>& body);

/// Threads that `parallel_rows` may use. For the size of temporary memory; results must not depend
/// on it.
std::int64_t thread_count();

}  // namespace weir::ops
