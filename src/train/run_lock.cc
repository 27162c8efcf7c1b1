// SPDX-License-Identifier: Apache-2.0
// flock(2) on a directory.
#include "train/run_lock.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "config/error.h"

namespace weir::train {

RunLock::RunLock(const std::filesystem::path& directory) {
  std::filesystem::create_directories(directory);
  descriptor_ = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor_ < 0) {
    throw std::system_error(errno, std::generic_category(), "cannot open " + directory.string());
  }
  // A file system without locks is no reason not to train.
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(descriptor_);
    throw config::Error("another process is training in " + directory.string());
  }
}

RunLock::~RunLock() { ::close(descriptor_); }

}  // namespace weir::train
