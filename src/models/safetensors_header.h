// SPDX-License-Identifier: Apache-2.0
// The header of a safetensors file: JSON text to checked entries. Nothing here reads a file or
// allocates for a tensor, so hostile headers cost no more than their own length.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "models/safetensors_format.h"

namespace weir::models {

/// All entries, in the order of their data, and `__metadata__`.
struct Header {
  std::vector<TensorEntry> tensors;
  std::map<std::string, std::string> metadata;
};

/// Parses `json`, the header of `file` (a name for messages), which has `data_bytes` bytes after
/// it. Throws config::InputError unless it is what the format says, complete, without duplicates,
/// and its entries pass check_layout.
Header parse_header(const std::string& file, std::string_view json, std::uint64_t data_bytes);

}  // namespace weir::models
