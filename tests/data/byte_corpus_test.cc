// SPDX-License-Identifier: Apache-2.0
// Corpora: which bytes are read and in which order, how they are split, and what is refused.
#include "data/byte_corpus.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "config/error.h"
#include "data/corpus_files.h"
#include "data/gzip_file.h"
#include "support/temporary_directory.h"

namespace weir::data {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::ThrowsMessage;

std::string text_of(std::span<const std::uint8_t> bytes) { return {bytes.begin(), bytes.end()}; }

std::string all_of(const ByteCorpus& corpus) {
  return text_of(corpus.train()) + text_of(corpus.validation());
}

class Corpus : public ::testing::Test {
 protected:
  void put(const std::string& name, const std::string& bytes) const {
    data::put(directory_ / name, bytes);
  }
  ByteCorpus read(const std::string& name, CorpusOptions options = {}) const {
    options.path = name.empty() ? directory_.path().string() : (directory_ / name).string();
    return ByteCorpus(options);
  }
  template <class Exception>
  void expect_refused(const std::string& name, const CorpusOptions& options,
                      const std::string& words) const {
    EXPECT_THAT([&] { read(name, options); }, ThrowsMessage<Exception>(HasSubstr(words)));
  }

  tests::TemporaryDirectory directory_;
};

TEST_F(Corpus, SplitsOffTheTail) {
  put("text", "0123456789");
  const ByteCorpus corpus = read("text");
  EXPECT_EQ(text_of(corpus.train()), "012345678");
  EXPECT_EQ(text_of(corpus.validation()), "9");
  EXPECT_EQ(corpus.size(), 10);
  const auto held_out = [&](double fraction, std::int64_t limit = 0) {
    return text_of(read("text", {.limit = limit, .validation_fraction = fraction}).validation());
  };
  EXPECT_EQ(held_out(0), "");
  EXPECT_EQ(held_out(0.04), "");
  EXPECT_EQ(held_out(0.29), "789");
  EXPECT_EQ(held_out(0.99), "0123456789");
  EXPECT_EQ(held_out(0.5, 4), "23");
  EXPECT_EQ(held_out(0.5, 100), "56789");
}

TEST_F(Corpus, SplitsEnwik8AsUsual) {
  put("enwik8", std::string(1000, 'x'));
  const ByteCorpus corpus = read("enwik8", {.limit = 950, .validation_fraction = 5.0 / 95});
  EXPECT_EQ(corpus.train().size(), 900u);
  EXPECT_EQ(corpus.validation().size(), 50u);
}

TEST_F(Corpus, JoinsTheFilesOfAFolderInTheOrderOfTheirPaths) {
  put("b.txt", "B");
  put("a/z.txt", "Z");
  put("a/empty.txt", "");
  put("a.txt", "A\n");
  put("Z.txt", "C");
  EXPECT_EQ(all_of(read("")), "C\nA\n\nZ\nB");  // Z.txt a.txt a/z.txt b.txt by bytes
  EXPECT_EQ(all_of(read("a")), "Z");
}

TEST_F(Corpus, DoesNotDependOnTheOrderOfCreation) {
  tests::TemporaryDirectory other;
  for (int i = 0; i < 50; ++i) {
    const std::string up = std::to_string(i), down = std::to_string(49 - i);
    put(up + "/" + up, up);
    data::put(other / (down + "/" + down), down);
  }
  const ByteCorpus a = read(""), b({.path = other.path().string() + "/"});
  EXPECT_EQ(all_of(a), all_of(b));
  EXPECT_EQ(a.fingerprint(), b.fingerprint());
}

TEST_F(Corpus, LimitTakesAPrefixOfTheWhole) {
  put("a", "12");
  put("b.gz", gzip_member("345"));
  put("c", "6");
  const std::string whole = all_of(read(""));
  EXPECT_EQ(whole, "12\n345\n6");
  for (std::int64_t limit = 1; limit <= 10; ++limit) {
    EXPECT_EQ(all_of(read("", {.limit = limit})), whole.substr(0, static_cast<std::size_t>(limit)));
  }
}

TEST_F(Corpus, PatternsMatchFileNames) {
  put("a.txt", "1");
  put("b.md", "2");
  put("c.py", "3");
  put("sub.txt/d.md", "4");
  const auto matching = [&](const std::string& pattern) {
    return all_of(read("", {.pattern = pattern}));
  };
  EXPECT_EQ(matching("*.txt"), "1");
  EXPECT_EQ(matching("*.txt,*.md"), "1\n2\n4");
  EXPECT_EQ(matching(" *.py , a.*,"), "1\n3");
  EXPECT_EQ(matching("[ab].*"), "1\n2");
  EXPECT_EQ(all_of(read("a.txt", {.pattern = "*.md"})), "1");  // a named file is taken
}

TEST_F(Corpus, SkipsHiddenFilesAndLinks) {
  tests::TemporaryDirectory outside;
  data::put(outside / "secret", "secret");
  put("a", "1");
  put(".hidden", "2");
  put(".git/config", "3");
  fs::create_symlink(outside / "secret", directory_ / "b");
  fs::create_directory_symlink(outside.path(), directory_ / "c");
  fs::create_symlink(directory_ / "a", directory_ / "d");
  fs::create_directory_symlink(directory_.path(), directory_ / "loop");
  fs::create_symlink("nowhere", directory_ / "dangling");
  EXPECT_EQ(all_of(read("")), "1");
  EXPECT_EQ(all_of(read("b")), "secret");  // named by the user
}

TEST_F(Corpus, DescribesItself) {
  put("text", "0123456789");
  EXPECT_EQ(read("text").description(),
            (directory_ / "text").string() + " (1 file, 10 bytes: 9 to train, 1 held out)");
  put("other", "");
  EXPECT_THAT(read("").description(), HasSubstr(" (2 files, 10 bytes: "));
}

TEST_F(Corpus, FingerprintIsOfTheContent) {
  put("a", "0123456789");
  put("b", "0123456789");
  put("c.gz", gzip_member("0123456789"));
  put("d", "0123456780");
  const std::uint64_t fingerprint = read("a").fingerprint();
  EXPECT_EQ(fingerprint, 0x3f5fc178a81867e7u);  // xxh64 by Python's xxhash
  EXPECT_EQ(read("b", {.validation_fraction = 0.5}).fingerprint(), fingerprint);
  EXPECT_EQ(read("c.gz").fingerprint(), fingerprint);
  EXPECT_NE(read("d").fingerprint(), fingerprint);
  EXPECT_NE(read("a", {.limit = 9}).fingerprint(), fingerprint);
}

TEST_F(Corpus, DefaultsToThePythonLibrary) {
  const ByteCorpus corpus({.limit = 3000000});
  EXPECT_EQ(corpus.size(), 3000000);
  EXPECT_THAT(corpus.description(), HasSubstr("Python standard library, "));
  EXPECT_THAT(all_of(corpus), HasSubstr("\"\"\"Abstract Base Classes (ABCs) for collections"));
}

TEST_F(Corpus, LeavesTestsAndPackagesOfThePythonLibraryOut) {
  for (const char* name : {"os.py", "json/tool.py", "os.pyc", "test/test_os.py", "json/tests/a.py",
                           "site-packages/torch/a.py", "idlelib/a.py", ".a.py"}) {
    put(name, name);
  }
  const CorpusFiles found = find_library_files(directory_.path(), "*");
  EXPECT_EQ(found.files, (std::vector{directory_ / "json/tool.py", directory_ / "os.py"}));
  EXPECT_EQ(find_library_files(directory_.path(), "*.pyc").files.size(), 1u);
  EXPECT_THAT([&] { find_library_files(directory_ / "gone", "*"); },
              ThrowsMessage<config::InputError>(
                  AllOf(HasSubstr("the Python standard library, expected in "),
                        HasSubstr("but it is gone; name a file or a folder with --data.path."))));
  EXPECT_THAT(
      [&] { find_library_files("", "*"); },
      ThrowsMessage<config::InputError>(HasSubstr("none was found when Weir was configured")));
}

TEST_F(Corpus, RefusesWhatCannotBeRead) {
  using config::InputError;
  expect_refused<InputError>(
      "none", {},
      "none: expected a file or a folder, but No such file or directory; set "
      "it with --data.path.");
  expect_refused<InputError>("", {}, "expected files that match `pattern` \"*\", but found none");
  put("empty", "");
  expect_refused<InputError>("empty", {}, "empty: expected text to train on, but it is empty.");
  expect_refused<InputError>("", {}, "expected text to train on, but it is empty.");
  expect_refused<InputError>("", {.pattern = "*.txt"},
                             "\"*.txt\", but found none; change it with --data.pattern.");
  expect_refused<InputError>("", {.pattern = " ,"}, "but found none");
  put("broken.gz", gzip_member("text").substr(0, 12));
  expect_refused<InputError>("broken.gz", {}, "is truncated: it ends at byte 12.");
  EXPECT_THAT(
      [] { ByteCorpus({.path = "/dev/null"}); },
      ThrowsMessage<InputError>(HasSubstr("/dev/null: expected a file or a folder, but it is")));
}

TEST_F(Corpus, RefusesOptionsOutOfRange) {
  put("text", "0123456789");
  expect_refused<config::Error>("text", {.limit = -1},
                                "expected `limit` to be at least 0, but got -1.");
  for (const double fraction : {-0.1, 1.0, std::nan("")}) {
    expect_refused<config::Error>("text", {.validation_fraction = fraction},
                                  "data: expected `validation_fraction` to be in [0, 1), but got ");
  }
}

TEST_F(Corpus, ChecksThatASequenceFits) {
  put("text", "0123456789");
  read("text", {.validation_fraction = 0.5}).check_sequence(4);
  read("text", {.validation_fraction = 0}).check_sequence(9);
  const auto check = [&](double fraction, std::int64_t seq_len) {
    read("text", {.validation_fraction = fraction}).check_sequence(seq_len);
  };
  EXPECT_THAT(
      [&] { check(0.5, 5); },
      ThrowsMessage<config::InputError>(HasSubstr(
          "text: expected at least seq_len + 1 = 6 bytes to train, but got 5; use more text")));
  EXPECT_THAT([&] { check(0.1, 5); },
              ThrowsMessage<config::InputError>(HasSubstr("= 6 bytes held out, but got 1;")));
  EXPECT_THROW(check(0.99, 1), config::InputError);
}

}  // namespace
}  // namespace weir::data
