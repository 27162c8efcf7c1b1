// SPDX-License-Identifier: Apache-2.0
// A text as bytes in memory, split in two: the head is for training, the tail is held out. Tokens
// are bytes, so there is no vocabulary to build and losses read as bits per byte.
//
// enwik8 in its usual split: path = enwik8.gz, limit = 95000000, validation_fraction = 5 / 95.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "weir/export.h"

namespace weir::data {

/// What to read and how much of it to hold out.
struct CorpusOptions {
  std::string path = "";
  std::string pattern = "*";
  std::int64_t limit = 0;
  double validation_fraction = 0.1;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = CorpusOptions;
    field("path", &Self::path, "File, .gz file or folder; default: the Python standard library.");
    field("pattern", &Self::pattern, "Names of the files to take from a folder, as in *.txt,*.md.");
    field("limit", &Self::limit, "Bytes to take from the start; 0 takes all.");
    field("validation_fraction", &Self::validation_fraction, "Part held out, from the end.");
  }
};

/// The bytes of a file, of a gzip file (by its name: *.gz) or of the files of a folder.
///
/// The files of a folder are read in the order of their paths, with one newline byte between two of
/// them; empty files are left out, hidden files and symbolic links are skipped. Without a `path`
/// the corpus is the Python standard library that was found when Weir was configured. See
/// data/corpus_files.h.
class WEIR_API ByteCorpus {
 public:
  /// Reads everything. Throws config::Error on an option out of range, config::InputError when
  /// there is nothing to read, a file cannot be read, or a gzip file is truncated or corrupt.
  explicit ByteCorpus(const CorpusOptions& options);

  /// All but the held-out bytes; valid as long as the corpus.
  std::span<const std::uint8_t> train() const { return bytes().first(train_size_); }
  /// The last round(size * validation_fraction) bytes; valid as long as the corpus.
  std::span<const std::uint8_t> validation() const { return bytes().subspan(train_size_); }
  /// Bytes in both parts together.
  std::int64_t size() const { return static_cast<std::int64_t>(bytes_.size()); }

  /// One line for the log: source, number of files, bytes in all, to train and held out.
  std::string description() const;
  /// xxh64 of the content (not of names or options): a run resumes only on the same text.
  std::uint64_t fingerprint() const { return fingerprint_; }

  /// Throws config::InputError unless each part that is not empty holds a window of seq_len + 1
  /// bytes, and the training part is not empty.
  void check_sequence(std::int64_t seq_len) const;

 private:
  std::span<const std::uint8_t> bytes() const { return bytes_; }

  std::string source_;
  std::size_t files_ = 0;
  std::vector<std::uint8_t> bytes_;
  std::size_t train_size_ = 0;
  std::uint64_t fingerprint_ = 0;
};

}  // namespace weir::data
