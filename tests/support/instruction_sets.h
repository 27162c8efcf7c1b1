// SPDX-License-Identifier: Apache-2.0
// Runs a check once for every instruction set that this CPU has and the kernels were compiled for.
#pragma once

#include <gtest/gtest.h>
#include <hwy/detect_targets.h>
#include <hwy/targets.h>

#include <cstdint>
#include <functional>

namespace weir::tests {

inline void for_each_instruction_set(const std::function<void()>& check) {
  std::int64_t targets = hwy::SupportedTargets() & HWY_TARGETS;  // this CPU's, of those compiled
  while (targets != 0) {
    const std::int64_t target = targets & -targets;
    targets &= targets - 1;
    SCOPED_TRACE(hwy::TargetName(target));
    hwy::GetChosenTarget().Update(target);
    check();
  }
  hwy::GetChosenTarget().DeInit();
}

}  // namespace weir::tests
