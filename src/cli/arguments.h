// SPDX-License-Identifier: Apache-2.0
// What CLI11 does not do with a command line: it takes out the dotted options, whose names are the
// keys of a run file, and refuses leftovers with the nearest known word.
#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <utility>
#include <vector>

namespace weir::cli {

/// Dotted keys with their values as written, in order.
using Overrides = std::vector<std::pair<std::string, std::string>>;

/// Removes each "--a.b value" and "--a.b=value" from `arguments`. Throws config::Error when a value
/// is missing.
Overrides take_overrides(std::vector<std::string>& arguments);

/// Throws config::Error if there are overrides, which `verb` does not take.
void refuse_overrides(const CLI::App& verb, const Overrides& overrides);

/// Throws config::Error on arguments that `verb` did not take. `keys` are the dotted keys that it
/// takes besides its flags.
void refuse_leftovers(const CLI::App& verb, const std::vector<std::string>& keys);

}  // namespace weir::cli
