// SPDX-License-Identifier: Apache-2.0
// gzip files: one member or many, padded, cut, damaged, and made to fill the memory.
#include "data/gzip.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <rapidcheck/gtest.h>

#include "config/error.h"
#include "data/gzip_file.h"
#include "support/temporary_directory.h"

namespace weir::data {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;
using ::testing::ThrowsMessage;

class Gzip : public ::testing::Test {
 protected:
  std::string read(const std::string& file, std::size_t max_size = kNoLimit) const {
    put(path_, file);
    std::vector<std::uint8_t> bytes;
    append_gzip(path_, max_size, bytes);
    return {bytes.begin(), bytes.end()};
  }
  void expect_refused(const std::string& file, const std::string& words) const {
    EXPECT_THAT([&] { read(file); }, ThrowsMessage<config::InputError>(AllOf(
                                         StartsWith(path_.string() + ": "), HasSubstr(words))));
  }
  // Text that does not compress to nothing, so that blocks and buffers have edges.
  static std::string text(std::size_t size) {
    std::string text;
    for (std::uint32_t state = 1; text.size() < size; state = state * 1664525 + 1013904223) {
      text.push_back(static_cast<char>('a' + (state >> 24) % 16));
    }
    return text;
  }

  tests::TemporaryDirectory directory_;
  std::filesystem::path path_ = directory_ / "text.gz";
};

TEST_F(Gzip, ReadsOneMember) {
  // Sizes around the buffers of the reader: 64 KiB in, 256 KiB out.
  for (const std::size_t size : {0, 1, 1000, 262143, 262144, 262145, 2000000}) {
    EXPECT_TRUE(read(gzip_member(text(size))) == text(size)) << size;
  }
}

TEST_F(Gzip, ReadsMembersAndPadding) {
  const std::string a = gzip_member("alpha"), b = gzip_member("beta"), empty = gzip_member("");
  EXPECT_EQ(read(a + b), "alphabeta");
  EXPECT_EQ(read(empty + a + empty + empty + b + empty), "alphabeta");
  EXPECT_EQ(read(a + b + std::string(100000, '\0')), "alphabeta");
  std::string many, expected;
  for (int i = 0; i < 5000; ++i) {
    many += gzip_member(std::to_string(i));
    expected += std::to_string(i);
  }
  EXPECT_EQ(read(many), expected);
}

TEST_F(Gzip, StopsAtTheLimit) {
  const std::string whole = text(600000), file = gzip_member(whole) + gzip_member("tail");
  for (const std::size_t limit : {1, 262144, 262145, 599999, 600000, 600002}) {
    EXPECT_TRUE(read(file, limit) == (whole + "tail").substr(0, limit)) << limit;
  }
  EXPECT_EQ(read(file, 10000000).size(), 600004u);
  EXPECT_EQ(read(file.substr(0, file.size() / 2), 1000), whole.substr(0, 1000));
}

TEST_F(Gzip, AppendsToWhatIsThere) {
  put(path_, gzip_member("beta"));
  std::vector<std::uint8_t> bytes = {'a'};
  append_gzip(path_, 3, bytes);
  EXPECT_EQ(std::string(bytes.begin(), bytes.end()), "abe");
}

TEST_F(Gzip, RefusesEveryTruncation) {
  const std::string a = gzip_member(text(300)), file = a + gzip_member("beta");
  for (std::size_t size = 0; size < file.size(); ++size) {
    if (size == a.size()) continue;  // a whole file of one member
    expect_refused(file.substr(0, size),
                   "expected more gzip data, but the file is truncated: it ends at byte " +
                       std::to_string(size) + ".");
  }
  const std::string big = gzip_member(text(2000000));
  for (std::size_t size = 1; size < big.size(); size += 65521) {
    expect_refused(big.substr(0, size), "it ends at byte " + std::to_string(size) + ".");
  }
}

TEST_F(Gzip, RefusesDamage) {
  const std::string a = gzip_member(text(300));
  expect_refused("no gzip",
                 "expected gzip data, but at byte 2 it is corrupt (incorrect header check)");
  expect_refused(a + "no gzip", "at byte " + std::to_string(a.size() + 2) + " it is corrupt");
  std::string wrong_sum = a;
  wrong_sum[a.size() - 6] ^= 1;
  expect_refused(wrong_sum, "at byte " + std::to_string(a.size() - 4) +
                                " it is corrupt (incorrect data check)");
  std::string wrong_length = a;
  wrong_length.back() ^= 1;
  expect_refused(wrong_length, "is corrupt (incorrect length check)");
}

TEST_F(Gzip, EveryChangedByteOfTheDataIsRefused) {
  const std::string member = gzip_member(text(300));
  int harmless = 0;
  for (std::size_t i = 10; i < member.size(); ++i) {  // 0-9: the header, whose time is free
    std::string changed = member;
    changed[i] ^= 16;
    try {
      EXPECT_EQ(read(changed), text(300)) << i;
      ++harmless;
    } catch (const config::InputError&) {
    }
  }
  EXPECT_LE(harmless, 1);  // the last byte of the deflate stream has bits that mean nothing
}

TEST_F(Gzip, RefusesABombUnlessLimited) {
  const std::string bomb = gzip_member(std::string(66 << 20, 'a'));
  expect_refused(bomb, "expected gzip data that expands at most 200 times, but ");
  expect_refused(bomb, "say how many bytes to take with --data.limit");
  EXPECT_EQ(read(bomb, 66 << 20).size(), 66u << 20);
  EXPECT_EQ(read(gzip_member(std::string(10 << 20, 'a'))).size(), 10u << 20);
}

TEST_F(Gzip, RefusesAMissingFile) {
  std::vector<std::uint8_t> bytes;
  EXPECT_THAT(
      [&] { append_gzip(directory_ / "none.gz", kNoLimit, bytes); },
      ThrowsMessage<config::InputError>(HasSubstr("none.gz: expected a file that can be opened")));
}

RC_GTEST_FIXTURE_PROP(Gzip, AnyBytesInAnyMembersComeBack,
                      (const std::vector<std::string>& members)) {
  std::string file, expected;
  for (const std::string& member : members) {
    file += gzip_member(member);
    expected += member;
  }
  if (!members.empty()) RC_ASSERT(read(file) == expected);
}

}  // namespace
}  // namespace weir::data
