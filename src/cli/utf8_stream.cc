// SPDX-License-Identifier: Apache-2.0
// The table of well-formed sequences is that of the Unicode standard (table 3-7): the range of the
// second byte excludes overlong forms, surrogates and what lies beyond U+10FFFF.
#include "cli/utf8_stream.h"

namespace weir::cli {
namespace {

constexpr auto kReplacement = "\xEF\xBF\xBD";

// The length of the character that `byte` begins, 0 if it begins none.
std::size_t length_of(unsigned char byte) {
  if (byte < 0x80) return 1;
  if (byte >= 0xC2 && byte <= 0xDF) return 2;
  if (byte >= 0xE0 && byte <= 0xEF) return 3;
  return byte >= 0xF0 && byte <= 0xF4 ? 4 : 0;
}

}  // namespace

std::string Utf8Stream::push(unsigned char byte) {
  std::string out;
  if (!pending_.empty() && !continues(byte)) out = finish();
  if (pending_.empty()) {
    length_ = length_of(byte);
    if (length_ == 0) return out + kReplacement;
  }
  pending_ += static_cast<char>(byte);
  if (pending_.size() < length_) return out;
  out += pending_;
  pending_.clear();
  return out;
}

std::string Utf8Stream::finish() {
  const bool begun = !pending_.empty();
  pending_.clear();
  return begun ? kReplacement : "";
}

bool Utf8Stream::continues(unsigned char byte) const {
  unsigned char low = 0x80, high = 0xBF;
  if (pending_.size() == 1) {
    const auto first = static_cast<unsigned char>(pending_[0]);
    if (first == 0xE0) low = 0xA0;
    if (first == 0xED) high = 0x9F;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;
  }
  return byte >= low && byte <= high;
}

std::string to_utf8(const std::string& bytes) {
  Utf8Stream stream;
  std::string text;
  for (const char byte : bytes) text += stream.push(static_cast<unsigned char>(byte));
  return text + stream.finish();
}

}  // namespace weir::cli
