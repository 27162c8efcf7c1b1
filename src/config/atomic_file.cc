// SPDX-License-Identifier: Apache-2.0
// POSIX calls, because iostreams neither sync nor tell why they failed. Every return is checked,
// that of close too: a network file system may report a full disk only there.
#include "config/atomic_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <system_error>
#include <utility>

#include "config/error.h"

namespace weir::config {
namespace {

[[noreturn]] void fail_with(int code, const char* operation, const std::filesystem::path& path) {
  throw std::system_error(code, std::generic_category(),
                          std::string("cannot ") + operation + " " + path.string());
}

int open_retrying(const std::filesystem::path& path, int flags) {
  int file;
  do {
    file = ::open(path.c_str(), flags | O_CLOEXEC, 0666);
  } while (file < 0 && errno == EINTR);
  return file;
}

// True when all went well; errno otherwise. Linux has closed the descriptor even when it reports
// EINTR.
bool close_file(int file) { return ::close(file) == 0 || errno == EINTR; }

bool sync_file(int file) {
  int result;
  do {
    result = ::fsync(file);
  } while (result != 0 && errno == EINTR);
  return result == 0;
}

// Makes the bytes of a file, or the names in a directory, survive a power cut.
void sync_path(const std::filesystem::path& path) {
  const int file = open_retrying(path, O_RDONLY);
  if (file < 0) fail_with(errno, "open", path);
  // EINVAL: the file system has no sync for directories, and so nothing that could fail.
  const int code = sync_file(file) || errno == EINVAL ? 0 : errno;
  if (!close_file(file) && code == 0) fail_with(errno, "close", path);
  if (code != 0) fail_with(code, "sync", path);
}

std::filesystem::path directory_of(const std::filesystem::path& path) {
  return path.has_parent_path() ? path.parent_path() : ".";
}

}  // namespace

AtomicFile::AtomicFile(std::filesystem::path path) : path_(std::move(path)) {
  std::error_code ignored;  // what cannot be examined cannot be opened either, and open says why
  const auto status = std::filesystem::status(path_, ignored);
  if (std::filesystem::is_directory(status)) fail_with(EISDIR, "write", path_);
  // Renaming over /dev/stdout or /dev/null would replace the device by a file.
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
    fail_with(EINVAL, "write", path_);
  }
  open_temporary();
}

AtomicFile::~AtomicFile() {
  if (file_ >= 0) ::close(file_);
  if (!temporary_.empty()) ::unlink(temporary_.c_str());
}

void AtomicFile::fail(const char* operation) const { fail_with(errno, operation, path_); }

void AtomicFile::open_temporary() {
  static std::atomic<unsigned> serial = 0;
  const std::string stem = ".weir-" + std::to_string(::getpid()) + "-";
  do {
    // The name is not made from that of the file, which may be as long as a name can be.
    temporary_ = directory_of(path_) / (stem + std::to_string(serial++) + ".tmp");
    file_ = open_retrying(temporary_, O_WRONLY | O_CREAT | O_EXCL);
    // EEXIST: left by a killed process that had our number, or another machine's on a shared disk.
  } while (file_ < 0 && errno == EEXIST);
  if (file_ < 0) fail("open");
}

void AtomicFile::append(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(file_, bytes.data(), bytes.size());
    if (written >= 0) {
      bytes.remove_prefix(static_cast<std::size_t>(written));
    } else if (errno != EINTR) {
      fail("write");
    }
  }
}

void AtomicFile::commit() {
  if (!sync_file(file_)) fail("sync");
  if (!close_file(std::exchange(file_, -1))) fail("close");
  if (::rename(temporary_.c_str(), path_.c_str()) != 0) fail("rename");
  temporary_.clear();
  sync_path(directory_of(path_));
}

void write_file(const std::filesystem::path& path, std::string_view bytes) {
  AtomicFile file(path);
  file.append(bytes);
  file.commit();
}

void publish_directory(const std::filesystem::path& temporary, const std::filesystem::path& final) {
  namespace fs = std::filesystem;
  // rename() alone would replace an empty directory.
  if (fs::exists(fs::symlink_status(final))) fail_with(EEXIST, "rename", final);
  for (const auto& entry : fs::recursive_directory_iterator(temporary)) {
    if (entry.is_regular_file() || entry.is_directory()) sync_path(entry.path());
  }
  sync_path(temporary);
  if (::rename(temporary.c_str(), final.c_str()) != 0) fail_with(errno, "rename", final);
  sync_path(directory_of(final));
}

std::string read_file(const std::filesystem::path& path) {
  const auto fail = [&](int code) {
    throw InputError("cannot read " + path.string() + ": " + std::generic_category().message(code));
  };
  const int file = open_retrying(path, O_RDONLY);
  if (file < 0) fail(errno);
  std::string bytes;
  std::array<char, 1 << 16> piece;
  int code = 0;
  while (true) {
    const ssize_t got = ::read(file, piece.data(), piece.size());
    if (got > 0) bytes.append(piece.data(), static_cast<std::size_t>(got));
    if (got < 0 && errno != EINTR) code = errno;
    if (got == 0 || code != 0) break;
  }
  ::close(file);
  if (code != 0) fail(code);
  return bytes;
}

}  // namespace weir::config
