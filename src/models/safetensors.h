// SPDX-License-Identifier: Apache-2.0
// safetensors files: tensors with names, and a header that cannot run code. Format:
// https://github.com/huggingface/safetensors (8 bytes of header length, a JSON header, the data).
//
// Weir adds one checksum per tensor to `__metadata__`, which other readers ignore: `xxh64.<name>`
// is the XXH64 (16 hex digits, seed 0) of its dtype and shape, as in "F32[2,3]", and its data.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <map>
#include <string>

#include "weir/export.h"

namespace weir::models {

using TensorMap = std::map<std::string, at::Tensor>;
using Metadata = std::map<std::string, std::string>;

/// What a safetensors file holds; `metadata` is without the checksums.
struct SafetensorsFile {
  TensorMap tensors;
  Metadata metadata;
};

/// Writes `tensors` (dense, any device, any strides) and `metadata` to `path`: to a temporary file
/// beside it first, so that a crash leaves the old file or the new one. At most one tensor at a
/// time is copied. Equal input gives equal bytes. Throws config::Error on a tensor, name or
/// metadata key that the format cannot hold, and what config::AtomicFile throws when writing fails.
WEIR_API void write_safetensors(const std::filesystem::path& path, const TensorMap& tensors,
                                const Metadata& metadata = {});

/// Reads all of `path` into CPU tensors of their own. The file is not trusted: the header is
/// checked in full before anything is allocated for a tensor, and the checksums, where there are
/// any, before anything is returned. Throws config::InputError, one line that names the file, the
/// tensor, what was expected and what was found.
WEIR_API SafetensorsFile read_safetensors(const std::filesystem::path& path);

}  // namespace weir::models
