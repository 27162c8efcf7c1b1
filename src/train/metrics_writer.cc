// SPDX-License-Identifier: Apache-2.0
// POSIX calls: a row must be in the file when append returns, and a row that did not fit whole must
// leave no half.
#include "train/metrics_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "config/atomic_file.h"

namespace weir::train {
namespace {

constexpr int kSchemaVersion = 1;

[[noreturn]] void fail(int code, const char* operation, const std::filesystem::path& path) {
  throw std::system_error(code, std::generic_category(),
                          std::string("cannot ") + operation + " " + path.string());
}

bool is_header(const config::Json& row) {
  return row.is_object() && row.value("type", config::Json()) == "header" &&
         row.value("schema_version", config::Json()) == kSchemaVersion;
}

bool belongs(const config::Json& row, std::int64_t step, std::int64_t evaluated_step) {
  if (!row.is_object()) return false;
  const auto found = row.find("step");
  const bool evaluation = row.value("type", config::Json()) == "evaluation";
  return found != row.end() && found->is_number_integer() &&
         found->get<std::int64_t>() <= (evaluation ? evaluated_step : step);
}

}  // namespace

std::size_t rows_up_to(std::string_view text, std::int64_t step, std::int64_t evaluated_step) {
  std::size_t kept = 0;
  for (std::size_t end; (end = text.find('\n', kept)) != std::string_view::npos; kept = end + 1) {
    const auto row = config::Json::parse(text.substr(kept, end - kept), nullptr, false);
    if (kept == 0 ? !is_header(row) : !belongs(row, step, evaluated_step)) break;
  }
  return kept;
}

MetricsWriter::MetricsWriter(const std::filesystem::path& path, std::int64_t step,
                             std::int64_t evaluated_step)
    : path_(path) {
  const std::string text = std::filesystem::exists(path) ? config::read_file(path) : "";
  size_ = static_cast<std::int64_t>(rows_up_to(text, step, evaluated_step));
  file_ = ::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (file_ < 0) fail(errno, "open", path);
  if (::ftruncate(file_, size_) != 0) {
    ::close(file_);
    fail(errno, "truncate", path);
  }
  if (size_ > 0) return;
  append({{"type", "header"}, {"schema_version", kSchemaVersion}, {"weir_version", WEIR_VERSION}});
}

MetricsWriter::~MetricsWriter() { ::close(file_); }

void MetricsWriter::append(const config::Json& row) {
  waiting_ += row.dump() + "\n";
  flush();
}

void MetricsWriter::flush() {
  if (waiting_.empty()) return;
  const ssize_t written = ::write(file_, waiting_.data(), waiting_.size());
  if (written == static_cast<ssize_t>(waiting_.size())) {
    size_ += written;
    waiting_.clear();
    return;
  }
  error_ = written < 0 ? errno : ENOSPC;
  // A failure here leaves a torn line, which the next reader drops.
  if (written > 0 && ::ftruncate(file_, size_) != 0) error_ = errno;
}

void MetricsWriter::sync() {
  flush();
  if (!waiting_.empty()) fail(error_, "write", path_);
  if (::fsync(file_) != 0) fail(errno, "sync", path_);
}

}  // namespace weir::train
