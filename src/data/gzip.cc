// SPDX-License-Identifier: Apache-2.0
// zlib's inflate in a loop of blocks; one GzipReader per file.
#include "data/gzip.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <new>
#include <string>

#include "config/error.h"

namespace weir::data {
namespace {

// Text shrinks up to about 10 times, logs up to 100, and deflate cannot do better than 1032: a file
// that expands more than this is refused, unless it is small or the reader said how much to take.
constexpr std::uint64_t kMaxRatio = 200;
constexpr std::uint64_t kAlwaysAllowed = 64 << 20;

class GzipReader {
 public:
  explicit GzipReader(const std::filesystem::path& path)
      : path_(path), file_(path, std::ios::binary) {
    if (!file_) fail("expected a file that can be opened, but it cannot");
    constexpr int kGzipOnly = 15 + 16;  // largest window, gzip header required
    if (inflateInit2(&stream_, kGzipOnly) != Z_OK) throw std::bad_alloc();
  }
  ~GzipReader() { inflateEnd(&stream_); }
  GzipReader(const GzipReader&) = delete;
  GzipReader& operator=(const GzipReader&) = delete;

  void append(std::size_t max_size, std::vector<std::uint8_t>& bytes);

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw config::InputError(path_.string() + ": " + what + ".");
  }
  std::uint64_t offset() const { return read_ - stream_.avail_in; }
  bool fill();
  bool skip_padding();
  void inflate_block(std::size_t max_size, std::vector<std::uint8_t>& bytes);
  void check_ratio() const;

  const std::filesystem::path path_;
  std::ifstream file_;
  z_stream stream_{};
  bool in_member_ = true;  // even an empty gzip file has one member
  std::uint64_t read_ = 0;
  std::uint64_t produced_ = 0;
  std::array<std::uint8_t, 1 << 16> input_;
  std::array<std::uint8_t, 1 << 18> output_;
};

// Makes sure that there is input to inflate; false at the end of the file.
bool GzipReader::fill() {
  if (stream_.avail_in > 0) return true;
  file_.read(reinterpret_cast<char*>(input_.data()), input_.size());
  if (file_.bad()) fail("expected readable content after byte " + std::to_string(read_));
  stream_.next_in = input_.data();
  stream_.avail_in = static_cast<uInt>(file_.gcount());
  read_ += stream_.avail_in;
  return stream_.avail_in > 0;
}

// Between members: drops one zero byte of padding if there is one.
bool GzipReader::skip_padding() {
  if (in_member_ || *stream_.next_in != 0) return false;
  ++stream_.next_in;
  --stream_.avail_in;
  return true;
}

void GzipReader::inflate_block(std::size_t max_size, std::vector<std::uint8_t>& bytes) {
  in_member_ = true;
  stream_.next_out = output_.data();
  stream_.avail_out = static_cast<uInt>(std::min(output_.size(), max_size - bytes.size()));
  const int status = inflate(&stream_, Z_NO_FLUSH);
  bytes.insert(bytes.end(), output_.data(), stream_.next_out);
  produced_ += static_cast<std::uint64_t>(stream_.next_out - output_.data());
  if (status == Z_STREAM_END) {
    in_member_ = false;
    inflateReset(&stream_);
  } else if (status != Z_OK && status != Z_BUF_ERROR) {
    fail("expected gzip data, but at byte " + std::to_string(offset()) + " it is corrupt (" +
         (stream_.msg ? stream_.msg : zError(status)) + ")");
  }
}

void GzipReader::check_ratio() const {
  if (produced_ <= kAlwaysAllowed || produced_ / kMaxRatio <= offset()) return;
  fail("expected gzip data that expands at most " + std::to_string(kMaxRatio) + " times, but " +
       std::to_string(offset()) + " bytes expand to more than " + std::to_string(produced_) +
       "; say how many bytes to take with --data.limit");
}

void GzipReader::append(std::size_t max_size, std::vector<std::uint8_t>& bytes) {
  while (bytes.size() < max_size && fill()) {
    if (skip_padding()) continue;
    inflate_block(max_size, bytes);
    if (max_size == kNoLimit) check_ratio();
  }
  if (bytes.size() < max_size && in_member_) {
    fail("expected more gzip data, but the file is truncated: it ends at byte " +
         std::to_string(read_));
  }
}

}  // namespace

void append_gzip(const std::filesystem::path& path, std::size_t max_size,
                 std::vector<std::uint8_t>& bytes) {
  GzipReader(path).append(max_size, bytes);
}

}  // namespace weir::data
