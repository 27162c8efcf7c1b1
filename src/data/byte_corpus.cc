// SPDX-License-Identifier: Apache-2.0
// Reads all files into one vector; the two parts are spans of it.
#include "data/byte_corpus.h"

#include <xxhash.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "config/error.h"
#include "data/corpus_files.h"
#include "data/gzip.h"

namespace weir::data {
namespace {

namespace fs = std::filesystem;

void check(const CorpusOptions& options) {
  if (options.limit < 0) {
    throw config::Error("data: expected `limit` to be at least 0, but got " +
                        std::to_string(options.limit) + ".");
  }
  if (!(options.validation_fraction >= 0 && options.validation_fraction < 1)) {
    throw config::Error("data: expected `validation_fraction` to be in [0, 1), but got " +
                        std::to_string(options.validation_fraction) + ".");
  }
}

// Appends `path` to `bytes` until there are `max_size` of them.
void append_plain(const fs::path& path, std::size_t max_size, std::vector<std::uint8_t>& bytes) {
  std::error_code error;
  const std::size_t start = bytes.size();
  const auto file_size = fs::file_size(path, error);
  std::ifstream file(path, std::ios::binary);
  if (error || !file) {
    throw config::InputError(path.string() + ": expected a file that can be read, but it cannot.");
  }
  const std::size_t count = std::min<std::uintmax_t>(file_size, max_size - start);
  bytes.resize(start + count);
  file.read(reinterpret_cast<char*>(bytes.data() + start), static_cast<std::streamsize>(count));
  if (static_cast<std::size_t>(file.gcount()) != count) {
    throw config::InputError(path.string() + ": expected " + std::to_string(count) +
                             " bytes, but could read only " + std::to_string(file.gcount()) + ".");
  }
}

// The files joined with one newline byte between two of them; an empty file leaves no trace.
std::vector<std::uint8_t> read_files(const std::vector<fs::path>& files, std::size_t max_size) {
  std::vector<std::uint8_t> bytes;
  for (const fs::path& path : files) {
    const std::size_t before = bytes.size();
    if (before >= max_size) break;
    if (before > 0) bytes.push_back('\n');
    const std::size_t start = bytes.size();
    (path.extension() == ".gz" ? append_gzip : append_plain)(path, max_size, bytes);
    if (bytes.size() == start && start < max_size) bytes.resize(before);
  }
  return bytes;
}

}  // namespace

ByteCorpus::ByteCorpus(const CorpusOptions& options) {
  check(options);
  CorpusFiles found = find_corpus_files(options.path, options.pattern);
  source_ = std::move(found.source);
  files_ = found.files.size();
  bytes_ = read_files(found.files,
                      options.limit == 0 ? kNoLimit : static_cast<std::size_t>(options.limit));
  if (bytes_.empty()) {
    throw config::InputError(source_ + ": expected text to train on, but it is empty.");
  }
  const auto held_out = std::llround(static_cast<double>(size()) * options.validation_fraction);
  train_size_ = bytes_.size() - static_cast<std::size_t>(held_out);
  fingerprint_ = XXH64(bytes_.data(), bytes_.size(), 0);
}

std::string ByteCorpus::description() const {
  return source_ + " (" + std::to_string(files_) + (files_ == 1 ? " file, " : " files, ") +
         std::to_string(size()) + " bytes: " + std::to_string(train_size_) + " to train, " +
         std::to_string(bytes_.size() - train_size_) + " held out)";
}

void ByteCorpus::check_sequence(std::int64_t seq_len) const {
  const auto check_part = [&](const char* part, std::span<const std::uint8_t> bytes) {
    if (static_cast<std::int64_t>(bytes.size()) > seq_len) return;
    throw config::InputError(source_ +
                             ": expected at least seq_len + 1 = " + std::to_string(seq_len + 1) +
                             " bytes " + part + ", but got " + std::to_string(bytes.size()) +
                             "; use more text, a smaller sequence length or another "
                             "--data.validation_fraction.");
  };
  check_part("to train", train());
  if (!validation().empty()) check_part("held out", validation());
}

}  // namespace weir::data
