// SPDX-License-Identifier: Apache-2.0
// Exit codes, and what is said about an error: one line on standard error.
#pragma once

#include <exception>
#include <string>

namespace weir::cli {

enum ExitCode {
  kOk = 0,
  kInternalError = 1,
  kUsage = 2,
  kBadInput = 3,
  kIncompatible = 4,
  kResource = 5,
  kNumericalStop = 7,
  kSignal = 128,  ///< plus the number of the signal
};

/// "weir: `text`" on standard error.
void complain(const std::string& text);

/// Complains about `error` and returns its exit code; `verbose` adds torch's backtrace.
int report(const std::exception_ptr& error, bool verbose);

}  // namespace weir::cli
