// SPDX-License-Identifier: Apache-2.0
// EXPECT_THAT(action, throws<Error>("the whole message")): users meet the words, so tests compare
// all of them.
#pragma once

#include <gmock/gmock.h>

#include <string>

namespace weir::config {

template <class Exception>
auto throws(const std::string& message) {
  return ::testing::ThrowsMessage<Exception>(::testing::StrEq(message));
}

}  // namespace weir::config
