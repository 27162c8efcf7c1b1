// SPDX-License-Identifier: Apache-2.0
// One process at a time trains in a run directory. The lock is on the directory itself, leaves no
// file, and goes with the process, however that ends.
#pragma once

#include <filesystem>

#include "weir/export.h"

namespace weir::train {

class WEIR_API RunLock {
 public:
  /// Makes `directory` if need be. Throws config::Error when another process holds the lock,
  /// std::system_error when the directory cannot be made or opened.
  explicit RunLock(const std::filesystem::path& directory);
  ~RunLock();
  RunLock(const RunLock&) = delete;
  RunLock& operator=(const RunLock&) = delete;

 private:
  int descriptor_;
};

}  // namespace weir::train
