// SPDX-License-Identifier: Apache-2.0
// What an operator says when it refuses a call.
#pragma once

#include <c10/util/Exception.h>

#include <string>

namespace weir::tests {

template <class Call>
std::string message_of(const Call& call) {
  try {
    call();
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  }
  return "no error";
}

}  // namespace weir::tests
