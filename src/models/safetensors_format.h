// SPDX-License-Identifier: Apache-2.0
// What the reader and the writer of safetensors files agree on: the words for dtypes, the layout of
// the data, the checksums that Weir adds, and how messages show a name.
#pragma once

#include <c10/core/ScalarType.h>
#include <c10/util/ArrayRef.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace weir::models {

/// Longer headers are refused, by us as by the reference implementation.
inline constexpr std::uint64_t kMaxHeaderBytes = 100'000'000;

inline constexpr std::string_view kMetadataName = "__metadata__";

/// Metadata keys that hold checksums: this and the name of the tensor.
inline constexpr std::string_view kChecksumPrefix = "xxh64.";

/// One tensor: its data is [begin, end) in bytes after the header.
struct TensorEntry {
  std::string name;
  c10::ScalarType dtype = c10::ScalarType::Undefined;
  std::vector<std::int64_t> shape;
  std::uint64_t begin = 0;
  std::uint64_t end = 0;
};

/// Throws config::InputError "FILE: WHAT.".
[[noreturn]] void refuse(const std::string& file, const std::string& what);

/// The format's word for `dtype`, as "F32"; nothing when it has none.
std::optional<std::string_view> dtype_word(c10::ScalarType dtype);

/// The dtype that `word` means; Undefined for an unknown word.
c10::ScalarType parse_dtype(std::string_view word);

/// All words for dtypes, comma-separated.
std::string all_dtype_words();

/// Sorts the entries of `file` (a name for messages) by their data. Throws config::InputError
/// unless sizes fit dtypes and shapes and the entries cover `data_bytes` bytes without overlap,
/// hole or remainder.
void check_layout(const std::string& file, std::vector<TensorEntry>& entries,
                  std::uint64_t data_bytes);

/// XXH64 in hex of dtype and shape, as in "F32[2,3]", followed by the data. The former count
/// because one changed byte in the header must not pass either.
std::string checksum(std::string_view dtype, c10::IntArrayRef shape, const void* data,
                     std::size_t bytes);

/// A name from a file in backticks, fit for one line of a message: escaped, and cut when long.
std::string backticked(std::string_view name);

}  // namespace weir::models
