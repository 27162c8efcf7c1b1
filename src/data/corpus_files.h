// SPDX-License-Identifier: Apache-2.0
// Which files make a corpus: one file, the matching files of a folder, or the sources of the Python
// standard library when nothing is named.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace weir::data {

/// The files of a corpus, in the order in which they are read.
struct CorpusFiles {
  std::string source;  // for people: the path, or what stands in for it
  std::vector<std::filesystem::path> files;
};

/// The files of `path`: itself, or, of a folder, all regular files below it whose names match one
/// of the comma-separated globs of `pattern`, ordered by the bytes of their paths relative to the
/// folder. Hidden files and folders are skipped, and so are symbolic links: one could lead out of
/// the folder or count a file twice. An empty `path` means find_library_files of the library that
/// was found when Weir was configured. Throws config::InputError when there is no such path, or no
/// such file in it.
CorpusFiles find_corpus_files(const std::string& path, const std::string& pattern);

/// The sources of the Python standard library in `folder`, in the same way: *.py unless `pattern`
/// says otherwise, without tests and installed packages. Throws config::InputError when the library
/// is gone.
CorpusFiles find_library_files(const std::filesystem::path& folder, const std::string& pattern);

}  // namespace weir::data
