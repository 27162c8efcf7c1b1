// SPDX-License-Identifier: Apache-2.0
// The language models by name: what run files, checkpoints and the program call `kind`.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "config/options.h"
#include "weir/export.h"
#include "weir/models/language_model.h"

namespace weir::models {

/// A new model of `kind`; `where` precedes the keys of `options` in messages ("model"). Throws
/// config::Error on an unknown kind, unknown or ill-typed keys, and options that do not fit.
WEIR_API std::shared_ptr<LanguageModel> make_language_model(std::string_view kind,
                                                            const config::Json& options,
                                                            std::string_view where = "");

/// The options of `kind` with type, default and help. Throws config::Error on an unknown kind.
WEIR_API std::vector<config::Field> describe_language_model(std::string_view kind,
                                                            std::string_view prefix = "");

WEIR_API std::vector<std::string> language_model_kinds();

}  // namespace weir::models
