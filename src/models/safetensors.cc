// SPDX-License-Identifier: Apache-2.0
// Reading with pread, not mmap: a mapped file that somebody truncates ends the process with SIGBUS.
#include "models/safetensors.h"

#include <ATen/ops/empty.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <system_error>
#include <utility>

#include "models/safetensors_header.h"

namespace weir::models {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

class InputFile {
 public:
  explicit InputFile(const std::filesystem::path& path)
      : name_(path.string()), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (descriptor_ < 0) fail("expected a file that can be opened, but: " + reason());
    struct stat status;
    if (::fstat(descriptor_, &status) != 0 || !S_ISREG(status.st_mode)) {
      ::close(descriptor_);
      fail("expected a regular file, but it is none");
    }
    size_ = static_cast<std::uint64_t>(status.st_size);
  }
  ~InputFile() { ::close(descriptor_); }
  InputFile(const InputFile&) = delete;
  InputFile& operator=(const InputFile&) = delete;

  const std::string& name() const { return name_; }
  std::uint64_t size() const { return size_; }

  // Fills `data` with the `bytes` bytes from `offset` on.
  void read(std::uint64_t offset, void* data, std::uint64_t bytes) const {
    auto* to = static_cast<char*>(data);
    while (bytes > 0) {
      const ssize_t count = ::pread(descriptor_, to, bytes, static_cast<off_t>(offset));
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) fail("expected content that can be read, but: " + reason());
      if (count == 0) {
        fail("expected more bytes after " + std::to_string(offset) + ", but it shrank");
      }
      to += count;
      offset += static_cast<std::uint64_t>(count);
      bytes -= static_cast<std::uint64_t>(count);
    }
  }
  [[noreturn]] void fail(const std::string& what) const { refuse(name_, what); }

 private:
  static std::string reason() { return std::generic_category().message(errno); }

  const std::string name_;
  const int descriptor_;
  std::uint64_t size_ = 0;
};

// The header, and the offset in the file at which the data begins.
std::pair<Header, std::uint64_t> read_header(const InputFile& file) {
  std::uint64_t length = 0;
  if (file.size() < sizeof length) {
    file.fail("expected a safetensors file of at least 8 bytes, but got " +
              std::to_string(file.size()));
  }
  file.read(0, &length, sizeof length);
  if (length > kMaxHeaderBytes) {
    file.fail("expected a safetensors header of at most " + std::to_string(kMaxHeaderBytes) +
              " bytes, but got " + std::to_string(length));
  }
  const std::uint64_t data_begin = sizeof length + length;
  if (data_begin > file.size()) {
    file.fail("expected a header of " + std::to_string(length) + " bytes, but the file has only " +
              std::to_string(file.size()) + "; it may be truncated");
  }
  std::string json(length, '\0');
  file.read(sizeof length, json.data(), length);
  return {parse_header(file.name(), json, file.size() - data_begin), data_begin};
}

// Moves the checksums out of the metadata: tensor name -> hex. All tensors have one, or none has.
Metadata take_checksums(const InputFile& file, Header& header) {
  Metadata checksums;
  std::erase_if(header.metadata, [&](const auto& item) {
    if (!item.first.starts_with(kChecksumPrefix)) return false;
    checksums.emplace(item.first.substr(kChecksumPrefix.size()), item.second);
    return true;
  });
  if (checksums.empty()) return checksums;
  for (const TensorEntry& entry : header.tensors) {
    if (checksums.contains(entry.name)) continue;
    file.fail("tensor " + backticked(entry.name) +
              ": expected a checksum in `__metadata__` as other tensors" +
              " have, but there is none");
  }
  if (checksums.size() != header.tensors.size()) {
    file.fail("expected one checksum for each of " + std::to_string(header.tensors.size()) +
              " tensors in `__metadata__`, but got " + std::to_string(checksums.size()));
  }
  return checksums;
}

at::Tensor read_tensor(const InputFile& file, std::uint64_t data_begin, const TensorEntry& entry,
                       const Metadata& checksums) {
  at::Tensor tensor = at::empty(entry.shape, entry.dtype);
  const std::uint64_t bytes = entry.end - entry.begin;
  auto* data = static_cast<std::uint8_t*>(tensor.mutable_data_ptr());
  file.read(data_begin + entry.begin, data, bytes);
  if (entry.dtype == at::kBool &&
      std::any_of(data, data + bytes, [](auto byte) { return byte > 1; })) {
    // A bool that is neither is undefined behaviour in every kernel that reads it.
    file.fail("tensor " + backticked(entry.name) +
              ": expected BOOL data to be 0 or 1, but it is not");
  }
  if (checksums.empty()) return tensor;
  const std::string found = checksum(*dtype_word(entry.dtype), entry.shape, data, bytes);
  const std::string& expected = checksums.at(entry.name);
  if (found != expected) {
    file.fail("tensor " + backticked(entry.name) + ": expected the checksum " +
              backticked(expected) + ", but got `" + found +
              "`; the file is damaged, or was edited without its xxh64 entries");
  }
  return tensor;
}

}  // namespace

SafetensorsFile read_safetensors(const std::filesystem::path& path) {
  const InputFile file(path);
  auto [header, data_begin] = read_header(file);
  const Metadata checksums = take_checksums(file, header);
  SafetensorsFile result;
  for (const TensorEntry& entry : header.tensors) {
    result.tensors.emplace(entry.name, read_tensor(file, data_begin, entry, checksums));
  }
  result.metadata = std::move(header.metadata);
  return result;
}

}  // namespace weir::models
