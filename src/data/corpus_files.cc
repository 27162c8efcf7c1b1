// SPDX-License-Identifier: Apache-2.0
// Globs are those of fnmatch(3), on the name of the file without its folder.
#include "data/corpus_files.h"

#include <fnmatch.h>

#include <algorithm>
#include <sstream>
#include <string_view>
#include <system_error>

#include "config/error.h"

namespace weir::data {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kNotLibrary[] = {"site-packages", "dist-packages", "test",
                                            "tests",         "idlelib",       "__pycache__"};

std::vector<std::string> split_patterns(const std::string& pattern) {
  std::vector<std::string> patterns;
  std::istringstream stream(pattern);
  for (std::string item; std::getline(stream, item, ',');) {
    const auto first = item.find_first_not_of(' ');
    if (first == std::string::npos) continue;
    patterns.push_back(item.substr(first, item.find_last_not_of(' ') - first + 1));
  }
  return patterns;
}

// What to take from a folder.
class Filter {
 public:
  Filter(const std::string& pattern, bool library)
      : patterns_(split_patterns(pattern)), library_(library) {}

  bool enters(const fs::path& name) const {
    return !hidden(name) &&
           !(library_ && std::ranges::find(kNotLibrary, name.native()) != std::end(kNotLibrary));
  }
  bool takes(const fs::path& name) const {
    return !hidden(name) && std::ranges::any_of(patterns_, [&](const std::string& pattern) {
      return fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
    });
  }

 private:
  static bool hidden(const fs::path& name) { return name.native().starts_with('.'); }

  std::vector<std::string> patterns_;
  bool library_;
};

std::vector<fs::path> walk(const fs::path& folder, const Filter& filter) {
  std::vector<fs::path> files;
  for (auto it = fs::recursive_directory_iterator(folder); it != fs::end(it); ++it) {
    const fs::path name = it->path().filename();
    if (it->is_symlink()) continue;  // the iterator does not follow those to folders either
    if (it->is_directory()) {
      if (!filter.enters(name)) it.disable_recursion_pending();
    } else if (it->is_regular_file() && filter.takes(name)) {
      files.push_back(it->path());
    }
  }
  // Every path begins with `folder`, so this is the order of the relative paths. Compared as bytes:
  // the order must not depend on the file system or the locale.
  std::ranges::sort(files, {}, &fs::path::native);
  return files;
}

CorpusFiles search_folder(const fs::path& folder, const std::string& pattern, bool library) {
  CorpusFiles found;
  try {
    found.files = walk(folder, Filter(pattern, library));
  } catch (const fs::filesystem_error& error) {
    throw config::InputError(
        error.path1().string() +
        ": expected a folder that can be read, but: " + error.code().message() + ".");
  }
  if (found.files.empty()) {
    throw config::InputError(folder.string() + ": expected files that match `pattern` \"" +
                             pattern + "\", but found none; change it with --data.pattern.");
  }
  found.source = folder.string();
  return found;
}

}  // namespace

CorpusFiles find_library_files(const fs::path& folder, const std::string& pattern) {
  std::error_code ignored;
  if (!fs::is_directory(folder, ignored)) {
    throw config::InputError("data: without a `path` the corpus is the Python standard library, " +
                             (folder.empty()
                                  ? "but none was found when Weir was configured"
                                  : "expected in " + folder.string() + ", but it is gone") +
                             "; name a file or a folder with --data.path.");
  }
  CorpusFiles found = search_folder(folder, pattern == "*" ? "*.py" : pattern, true);
  found.source = "Python standard library, " + folder.string();
  return found;
}

CorpusFiles find_corpus_files(const std::string& path, const std::string& pattern) {
  if (path.empty()) return find_library_files(WEIR_DEFAULT_CORPUS, pattern);
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (fs::is_directory(status)) return search_folder(path, pattern, false);
  if (fs::is_regular_file(status)) return {path, {path}};
  throw config::InputError(path + ": expected a file or a folder, but " +
                           (fs::exists(status) ? "it is neither" : error.message()) +
                           "; set it with --data.path.");
}

}  // namespace weir::data
