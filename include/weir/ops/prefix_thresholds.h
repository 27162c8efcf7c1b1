// SPDX-License-Identifier: Apache-2.0
// Coordinate descent without looking ahead: its threshold over each of several prefixes of a row.
//
//   a_p = the scalar a of coordinate_descent(scores[..., :lengths[p]], budgets[..., p])
//   y_j = exp(min(scores_j + a_p, 0) / eps), for any j, is what a score weighs against that prefix
//
// docs/operators/prefix_thresholds.md has the gradient and the cost.
#pragma once

#include <ATen/core/Tensor.h>

#include "weir/export.h"
#include "weir/ops/coordinate_descent.h"

namespace weir::ops {

/// float64 (..., prefixes): the thresholds of the first `lengths[p]` of `scores` (..., n), entries
/// of -inf not counted. `lengths` ascend, each from 0 to n; `budgets`, real and positive, broadcast
/// to the result and have no gradient. A prefix without a valid entry has threshold 0; with
/// `solver` "exact", one with no more of them than its budget has +inf. Computed in float64 for
/// float64 scores, else in float32. Throws c10::Error on shapes, dtypes or options that do not fit.
WEIR_API at::Tensor prefix_thresholds(const at::Tensor& scores, at::IntArrayRef lengths,
                                      const at::Tensor& budgets,
                                      const CoordinateDescentOptions& options = {});

/// The same from ATen operators, differentiable any number of times: on other devices, and as the
/// tests' oracle. Takes prefixes * n memory per row.
WEIR_API at::Tensor prefix_thresholds_composite(const at::Tensor& scores, at::IntArrayRef lengths,
                                                const at::Tensor& budgets,
                                                const CoordinateDescentOptions& options = {});

}  // namespace weir::ops
