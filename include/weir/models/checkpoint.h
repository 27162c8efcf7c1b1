// SPDX-License-Identifier: Apache-2.0
// Models on disk: a directory with config.json, what the model is, and model.safetensors, its
// weights.
//
//   config.json: {"kind": "coordinate_descent", "weir_version": "0.1.0", "options": {...}}
#pragma once

#include <filesystem>
#include <memory>

#include "weir/export.h"
#include "weir/models/language_model.h"

namespace weir::models {

/// Writes the two files, making `directory` if need be; files of the same names are replaced.
/// Throws std::system_error when writing fails.
WEIR_API void save_model(const std::filesystem::path& directory, const LanguageModel& model);

/// The model that `directory` holds, on the CPU, in training mode, with the dtypes of the file.
/// Nothing in the files is trusted: every tensor of the model must be there in its shape, and no
/// other. Throws config::InputError naming the file, and the tensor with both shapes.
WEIR_API std::shared_ptr<LanguageModel> load_model(const std::filesystem::path& directory);

}  // namespace weir::models
