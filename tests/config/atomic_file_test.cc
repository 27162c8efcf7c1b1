// SPDX-License-Identifier: Apache-2.0
// Files are whole or not there. A limit on the size of files (RLIMIT_FSIZE) stands for the full
// disk: it fails a write in the middle, also for root.
#include "config/atomic_file.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <fstream>
#include <system_error>

#include "config/error.h"
#include "config/expect_message.h"
#include "support/temporary_directory.h"

namespace weir::config {
namespace {

namespace fs = std::filesystem;

class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) : signal_(std::signal(SIGXFSZ, SIG_IGN)) {
    ::getrlimit(RLIMIT_FSIZE, &old_);
    const rlimit limit{bytes, old_.rlim_max};
    ::setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    ::setrlimit(RLIMIT_FSIZE, &old_);
    std::signal(SIGXFSZ, signal_);
  }

 private:
  rlimit old_{};
  void (*signal_)(int);
};

int entries(const fs::path& directory) {
  return static_cast<int>(std::distance(fs::directory_iterator(directory), {}));
}

template <class Action>
std::error_code code_of(Action action) {
  try {
    action();
  } catch (const std::system_error& error) {
    return error.code();
  }
  return {};
}

TEST(WriteFile, WritesAndReplaces) {
  const tests::TemporaryDirectory directory;
  const auto path = directory / "a.json";
  write_file(path, "old");
  EXPECT_EQ(read_file(path), "old");
  const std::string bytes("new\0\xff\n", 6);
  write_file(path, bytes);
  EXPECT_EQ(read_file(path), bytes);
  EXPECT_EQ(entries(directory.path()), 1);
}

TEST(WriteFile, HasTheModeOfANewFile) {
  const tests::TemporaryDirectory directory;
  write_file(directory / "a", "");
  std::ofstream(directory / "b") << "";
  EXPECT_EQ(fs::status(directory / "a").permissions(), fs::status(directory / "b").permissions());
}

TEST(WriteFile, WritesNamesAsLongAsTheyCanBe) {
  const tests::TemporaryDirectory directory;
  const auto path = directory / std::string(255, 'x');
  write_file(path, "x");
  EXPECT_EQ(read_file(path), "x");
}

TEST(WriteFile, WritesIntoTheCurrentDirectory) {
  const tests::TemporaryDirectory directory;
  const auto before = fs::current_path();
  fs::current_path(directory.path());
  write_file("a", "x");
  fs::current_path(before);
  EXPECT_EQ(read_file(directory / "a"), "x");
}

TEST(WriteFile, KeepsTheOldFileWhenTheDiskIsFull) {
  const tests::TemporaryDirectory directory;
  const auto path = directory / "model.bin";
  write_file(path, "old");
  const std::string bytes(100'000, 'x');
  const auto code = code_of([&] {
    const FileSizeLimit limit(4096);
    write_file(path, bytes);
  });
  EXPECT_EQ(code, std::errc::file_too_large);
  EXPECT_EQ(read_file(path), "old");
  EXPECT_EQ(entries(directory.path()), 1);
}

TEST(WriteFile, NamesTheOperationAndThePath) {
  const tests::TemporaryDirectory directory;
  const auto path = directory / "missing/a";
  EXPECT_THAT(
      [&] { write_file(path, "x"); },
      throws<std::system_error>("cannot open " + path.string() + ": No such file or directory"));
}

TEST(WriteFile, RefusesWhatIsNotAFile) {
  const tests::TemporaryDirectory directory;
  EXPECT_THAT(
      [&] { write_file(directory.path(), "x"); },
      throws<std::system_error>("cannot write " + directory.path().string() + ": Is a directory"));
  EXPECT_THAT([] { write_file("/dev/null", "x"); },
              throws<std::system_error>("cannot write /dev/null: Invalid argument"));
  EXPECT_TRUE(fs::is_character_file("/dev/null"));
}

TEST(AtomicFile, AppearsOnCommitOnly) {
  const tests::TemporaryDirectory directory;
  AtomicFile file(directory / "a");
  file.append("one, ");
  file.append("two");
  EXPECT_FALSE(fs::exists(directory / "a"));
  file.commit();
  EXPECT_EQ(read_file(directory / "a"), "one, two");
  EXPECT_EQ(entries(directory.path()), 1);
}

TEST(AtomicFile, LeavesNothingWithoutACommit) {
  const tests::TemporaryDirectory directory;
  write_file(directory / "a", "old");
  {
    AtomicFile file(directory / "a");
    file.append("new");
    EXPECT_EQ(entries(directory.path()), 2);
  }
  EXPECT_EQ(read_file(directory / "a"), "old");
  EXPECT_EQ(entries(directory.path()), 1);
}

TEST(AtomicFile, RemovesTheTemporaryWhenItCannotBeRenamed) {
  const tests::TemporaryDirectory directory;
  const auto path = directory / "a";
  {
    AtomicFile file(path);
    fs::create_directory(path);
    EXPECT_THAT([&] { file.commit(); },
                throws<std::system_error>("cannot rename " + path.string() + ": Is a directory"));
  }
  EXPECT_EQ(entries(directory.path()), 1);
}

TEST(AtomicFile, TwoOfTheSameNameDoNotMeet) {
  const tests::TemporaryDirectory directory;
  AtomicFile first(directory / "a"), second(directory / "a");
  first.append("first");
  second.append("second");
  second.commit();
  first.commit();
  EXPECT_EQ(read_file(directory / "a"), "first");
}

TEST(PublishDirectory, RenamesAWholeDirectory) {
  const tests::TemporaryDirectory directory;
  const auto temporary = directory / "step.tmp";
  fs::create_directories(temporary / "shards");
  write_file(temporary / "shards/a", "x");
  publish_directory(temporary, directory / "step");
  EXPECT_EQ(read_file(directory / "step/shards/a"), "x");
  EXPECT_FALSE(fs::exists(temporary));
}

TEST(PublishDirectory, RefusesAnExistingOne) {
  const tests::TemporaryDirectory directory;
  const auto temporary = directory / "step.tmp", final = directory / "step";
  fs::create_directory(temporary);
  fs::create_directory(final);
  EXPECT_THAT([&] { publish_directory(temporary, final); },
              throws<std::system_error>("cannot rename " + final.string() + ": File exists"));
  EXPECT_TRUE(fs::exists(temporary));
}

TEST(PublishDirectory, ThrowsWhenThereIsNothingToPublish) {
  const tests::TemporaryDirectory directory;
  EXPECT_EQ(code_of([&] { publish_directory(directory / "a", directory / "b"); }),
            std::errc::no_such_file_or_directory);
}

TEST(ReadFile, SaysWhyItCannot) {
  const tests::TemporaryDirectory directory;
  const auto missing = directory / "missing";
  EXPECT_THAT([&] { read_file(missing); }, throws<InputError>("cannot read " + missing.string() +
                                                              ": No such file or directory"));
  EXPECT_THAT([&] { read_file(directory.path()); },
              throws<InputError>("cannot read " + directory.path().string() + ": Is a directory"));
}

RC_GTEST_PROP(AtomicFileProperty, HoldsThePiecesInTheirOrder,
              (const std::vector<std::string>& pieces)) {
  const tests::TemporaryDirectory directory;
  std::string whole;
  AtomicFile file(directory / "a");
  for (const auto& piece : pieces) {
    file.append(piece);
    whole += piece;
  }
  file.commit();
  RC_ASSERT(read_file(directory / "a") == whole);
}

}  // namespace
}  // namespace weir::config
