// SPDX-License-Identifier: Apache-2.0
// Decompresses gzip files (RFC 1952) by streaming: any number of members, checksums verified, and
// no more memory than the bytes that are asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <vector>

namespace weir::data {

/// `max_size` of a corpus that is read to its end.
inline constexpr std::size_t kNoLimit = std::numeric_limits<std::size_t>::max();

/// Appends the content of the gzip file `path` to `bytes` until `bytes` holds `max_size` bytes;
/// what lies after that is neither read nor verified. Zero padding after the last member is
/// ignored, as gzip does. Throws config::InputError with the byte offset in the file when it is
/// truncated or corrupt, and, with kNoLimit, when it expands so much that it seems made to fill the
/// memory.
void append_gzip(const std::filesystem::path& path, std::size_t max_size,
                 std::vector<std::uint8_t>& bytes);

}  // namespace weir::data
