// SPDX-License-Identifier: Apache-2.0
// Characters that come in pieces, and bytes that are none.
#include "cli/utf8_stream.h"

#include <gtest/gtest.h>

#include <random>

namespace weir::cli {
namespace {

const std::string kReplacement = "\xEF\xBF\xBD";

TEST(Utf8Stream, HoldsACharacterBackUntilItIsThere) {
  Utf8Stream stream;
  EXPECT_EQ(stream.push('a'), "a");
  EXPECT_EQ(stream.push(0xE2), "");
  EXPECT_EQ(stream.push(0x82), "");
  EXPECT_EQ(stream.push(0xAC), "\xE2\x82\xAC");
  EXPECT_EQ(stream.push(0xF0), "");
  EXPECT_EQ(stream.push('b'), kReplacement + "b");
  EXPECT_EQ(stream.push(0xC3), "");
  EXPECT_EQ(stream.finish(), kReplacement);
  EXPECT_EQ(stream.finish(), "");
}

TEST(Utf8Stream, KeepsWhatIsValid) {
  for (const std::string text : {"", "plain\n", "\xC3\xA9", "\xE0\xA0\x80", "\xED\x9F\xBF",
                                 "\xEF\xBF\xBF", "\xF0\x90\x80\x80", "\xF4\x8F\xBF\xBF"}) {
    EXPECT_EQ(to_utf8(text), text);
  }
  EXPECT_EQ(to_utf8(std::string("\0", 1)), std::string("\0", 1));
}

TEST(Utf8Stream, ReplacesWhatIsNot) {
  EXPECT_EQ(to_utf8("\x80"), kReplacement);
  EXPECT_EQ(to_utf8("\xFF"), kReplacement);
  EXPECT_EQ(to_utf8("\xC0\x80"), kReplacement + kReplacement) << "overlong";
  EXPECT_EQ(to_utf8("\xE0\x80\x80"), kReplacement + kReplacement + kReplacement) << "overlong";
  EXPECT_EQ(to_utf8("\xED\xA0\x80"), kReplacement + kReplacement + kReplacement) << "surrogate";
  EXPECT_EQ(to_utf8("\xF4\x90\x80\x80").size(), 4 * kReplacement.size()) << "beyond U+10FFFF";
  EXPECT_EQ(to_utf8("\xC3\xC3\xA9"), kReplacement + "\xC3\xA9");
}

TEST(Utf8Stream, ItsOutputIsAlwaysValid) {
  std::mt19937 random(1);
  for (int i = 0; i < 1000; ++i) {
    std::string bytes;
    for (int j = 0; j < 20; ++j) bytes += static_cast<char>(random() % 4 ? random() | 0x80 : 'a');
    const std::string once = to_utf8(bytes);
    EXPECT_EQ(to_utf8(once), once);
  }
}

}  // namespace
}  // namespace weir::cli
