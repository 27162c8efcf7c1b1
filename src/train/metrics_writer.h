// SPDX-License-Identifier: Apache-2.0
// metrics.jsonl: one JSON object per line, each with its "type". The first is
//
//   {"type":"header","schema_version":1,"weir_version":"0.1.0"}
//
// then {"type":"step","step":1,"loss":...} and {"type":"evaluation","step":...,"eval_loss":...} in
// the order of the steps. Numbers are written so that they read back as the same double.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include "config/document.h"
#include "weir/export.h"

namespace weir::train {

class WEIR_API MetricsWriter {
 public:
  /// Opens `path` and drops all rows after `step`, evaluations after `evaluated_step`, and a torn
  /// last line; a file without the header begins anew. Throws std::system_error.
  MetricsWriter(const std::filesystem::path& path, std::int64_t step, std::int64_t evaluated_step);
  ~MetricsWriter();
  MetricsWriter(const MetricsWriter&) = delete;
  MetricsWriter& operator=(const MetricsWriter&) = delete;

  /// Appends a row in one write, so that a killed process leaves all rows before it. When the disk
  /// is full the row waits, and goes before the next one.
  void append(const config::Json& row);

  /// Makes the rows survive a power cut. Throws std::system_error, also when rows are waiting.
  void sync();

 private:
  void flush();

  std::filesystem::path path_;
  int file_;
  std::int64_t size_;    // of the complete lines in the file
  std::string waiting_;  // lines that are not in the file
  int error_ = 0;        // why they are not
};

/// The size in bytes of the rows of `text` that a MetricsWriter keeps, header included; 0 when the
/// first line is not a header of this version.
WEIR_API std::size_t rows_up_to(std::string_view text, std::int64_t step,
                                std::int64_t evaluated_step);

}  // namespace weir::train
