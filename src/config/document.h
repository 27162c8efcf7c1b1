// SPDX-License-Identifier: Apache-2.0
// Documents: what a run file (TOML) or a config.json says before it becomes Options. One type for
// both; the order of keys is kept where the format has one.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "weir/export.h"

namespace weir::config {

using Json = nlohmann::ordered_json;

/// Tables and lists nested deeper than this are refused: every later walk over a document is
/// recursive.
inline constexpr int kMaxDepth = 100;

/// The table that `text` describes, its keys sorted. Throws Error "source:line:column: what is
/// wrong"; dates and times are refused, and so is a text of more than 64 KiB.
WEIR_API Json parse_toml(std::string_view text, const std::string& source);

/// parse_toml of a file, or of the standard input for "-". Throws InputError when it cannot be
/// read.
WEIR_API Json read_toml(const std::filesystem::path& path);

/// The value that `text` describes. Throws InputError "source:line:column: what is wrong", also on
/// a key that stands twice in an object.
WEIR_API Json parse_json(std::string_view text, const std::string& source);

/// `document` (an object) as TOML that parse_toml reads back; a null, which TOML lacks, becomes a
/// comment
/// "# key =". Throws Error on a null in a list and on an integer of 2^63 or more.
WEIR_API std::string to_toml(const Json& document);

/// Sets `dotted_key` ("model.dim"), making the tables on the way. `value` is read as a TOML number,
/// boolean, quoted string or list if it is one, and is a plain string otherwise. Throws Error when
/// the key has an empty part or leads through something that is not a table, and on text that is
/// not UTF-8.
WEIR_API void set(Json& document, std::string_view dotted_key, std::string_view value);

/// Lays `over` on `base`: tables are merged, anything else in `over` replaces what stands in
/// `base`.
WEIR_API void merge(Json& base, const Json& over);

}  // namespace weir::config
