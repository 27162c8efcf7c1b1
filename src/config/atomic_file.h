// SPDX-License-Identifier: Apache-2.0
// Files that are there whole or not at all, also after a crash or a power cut: written under a
// temporary name in the same directory, synced, and only then renamed; and the reading of a whole
// file.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "weir/export.h"

namespace weir::config {

/// A file written piece by piece that takes its name on commit(). Whatever fails, and without a
/// commit, the temporary is removed and an older file of that name is untouched. A symbolic link is
/// replaced, not followed; the mode is that of a new file.
///
/// Everything throws std::system_error "cannot write PATH: reason" (or open, sync, close, rename)
/// whose code tells a full disk (std::errc::no_space_on_device) from the rest.
class WEIR_API AtomicFile {
 public:
  /// Opens the temporary. Refuses a `path` at which something other than a file stands.
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void append(std::string_view bytes);

  /// Puts the file in its place; nothing may be appended afterwards. When only the last step, the
  /// sync of the directory, fails, the new file is in place but may not survive a power cut.
  void commit();

 private:
  [[noreturn]] void fail(const char* operation) const;
  void open_temporary();

  std::filesystem::path path_, temporary_;
  int file_ = -1;
};

/// Replaces the file at `path` by `bytes`. Throws as AtomicFile does.
WEIR_API void write_file(const std::filesystem::path& path, std::string_view bytes);

/// Syncs every file in the directory `temporary` and renames it to `final`, which must not exist
/// and must be on the same file system. Throws std::system_error; unless only the last step, the
/// sync of the parent directory, has failed, `temporary` then stays.
WEIR_API void publish_directory(const std::filesystem::path& temporary,
                                const std::filesystem::path& final);

/// The bytes of the file at `path`. Throws InputError "cannot read PATH: reason", for a directory
/// too.
WEIR_API std::string read_file(const std::filesystem::path& path);

}  // namespace weir::config
