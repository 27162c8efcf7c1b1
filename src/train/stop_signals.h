// SPDX-License-Identifier: Apache-2.0
// SIGINT and SIGTERM as a flag to poll, so that a run can finish what it is at and save. A second
// signal ends the process at once.
#pragma once

#include <functional>

#include "weir/export.h"

namespace weir::train {

/// Asked between micro-batches and in evaluations; true: save and stop.
using StopCheck = std::function<bool()>;

/// Handles the signals as long as it lives. There is one at a time.
class WEIR_API StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  /// The signal that came, or 0.
  static int received();
};

}  // namespace weir::train
