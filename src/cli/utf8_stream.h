// SPDX-License-Identifier: Apache-2.0
// Bytes that come one at a time as valid UTF-8: a character is handed on when its last byte is
// there, and what cannot be part of one becomes U+FFFD.
#pragma once

#include <string>

namespace weir::cli {

class Utf8Stream {
 public:
  /// The text that is complete with `byte`; often empty or one character.
  std::string push(unsigned char byte);

  /// What is left at the end: U+FFFD for a character that was begun, or nothing.
  std::string finish();

 private:
  bool continues(unsigned char byte) const;

  std::string pending_;
  std::size_t length_ = 0;  // of the character that pending_ begins
};

/// `bytes` as valid UTF-8.
std::string to_utf8(const std::string& bytes);

}  // namespace weir::cli
