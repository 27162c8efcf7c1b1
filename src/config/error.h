// SPDX-License-Identifier: Apache-2.0
// The two ways in which what a user gives us can be wrong; the program turns each into an exit
// code. A file that cannot be written is a std::system_error instead, so that its code survives.
#pragma once

#include <stdexcept>

#include "weir/export.h"

namespace weir::config {

/// Something the user wrote is wrong: an option, a key, a line of a run file. Exit code 2.
class WEIR_API Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

/// An input file is missing, unreadable or malformed. Exit code 3.
class WEIR_API InputError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace weir::config
