// SPDX-License-Identifier: Apache-2.0
// Changing a document (set, merge) and writing it as TOML; json.cc and toml.cc read them.
// toml++ could write too, but sorts the keys, and has no comments for nulls.
#include "config/document.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "config/error.h"

namespace weir::config {
namespace {

// A JSON string is a TOML string, but for DEL, which TOML wants escaped.
std::string toml_string(const std::string& text) {
  std::string out = Json(text).dump();
  for (auto at = out.find('\x7f'); at != std::string::npos; at = out.find('\x7f', at)) {
    out.replace(at, 1, "\\u007F");
  }
  return out;
}

std::string toml_key(const std::string& key) {
  const auto bare = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
  };
  return !key.empty() && std::all_of(key.begin(), key.end(), bare) ? key : toml_string(key);
}

std::string toml_number(const Json& value) {
  if (value.is_number_float() && !std::isfinite(value.get<double>())) {
    return std::isnan(value.get<double>()) ? "nan" : value.get<double>() > 0 ? "inf" : "-inf";
  }
  constexpr auto kLargest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  if (value.is_number_unsigned() && value.get<std::uint64_t>() > kLargest) {
    throw Error("TOML has no integer " + value.dump() + "; the largest is 2^63 - 1");
  }
  return value.dump();
}

std::string toml_inline(const Json& value) {
  if (value.is_null()) throw Error("TOML has no null inside a list");
  if (value.is_string()) return toml_string(value.get<std::string>());
  if (value.is_number()) return toml_number(value);
  if (value.is_boolean()) return value.dump();
  std::string items;
  for (const auto& [key, item] : value.items()) {
    if (!items.empty()) items += ", ";
    if (value.is_object()) items += toml_key(key) + " = ";
    items += toml_inline(item);
  }
  return value.is_object() ? "{" + items + "}" : "[" + items + "]";
}

// Tables come last: a key below a header belongs to that header.
void append_table(const Json& table, const std::string& header, std::string& out) {
  for (const auto& [key, value] : table.items()) {
    if (value.is_null()) out += "# " + toml_key(key) + " =\n";
    if (value.is_null() || value.is_object()) continue;
    out += toml_key(key) + " = " + toml_inline(value) + "\n";
  }
  for (const auto& [key, value] : table.items()) {
    if (!value.is_object()) continue;
    const std::string inner = header.empty() ? toml_key(key) : header + "." + toml_key(key);
    out += (out.empty() ? "[" : "\n[") + inner + "]\n";
    append_table(value, inner, out);
  }
}

// `text` as the TOML value that it is, else as a plain string.
Json value_of(const std::string& text) {
  try {
    const Json table = parse_toml("value = " + text, "");
    // More than one key: a line break in the text has started another.
    if (table.size() == 1 && !table["value"].is_object()) return table["value"];
  } catch (const Error&) {
    // Not TOML: a word such as `iterative`, or a path.
  }
  return text;
}

void check_key(std::string_view key) {
  const bool empty_part = key.empty() || key.front() == '.' || key.back() == '.' ||
                          key.find("..") != std::string_view::npos;
  if (empty_part || std::count(key.begin(), key.end(), '.') >= kMaxDepth) {
    throw Error("`" + std::string(key) + "` is not a key; one looks like `model.dim`");
  }
}

void check_utf8(std::string_view key, std::string_view value) {
  try {
    Json({key, value}).dump();
  } catch (const Json::type_error&) {
    throw Error("`" + std::string(key) + "`: the text is not UTF-8");
  }
}

}  // namespace

std::string to_toml(const Json& document) {
  std::string out;
  append_table(document, "", out);
  return out;
}

void set(Json& document, std::string_view dotted_key, std::string_view value) {
  check_key(dotted_key);
  check_utf8(dotted_key, value);
  Json* at = &document;
  for (std::size_t begin = 0; begin <= dotted_key.size();) {
    if (!at->is_null() && !at->is_object()) {
      throw Error("`" + std::string(dotted_key) + "`: `" +
                  std::string(dotted_key.substr(0, begin - 1)) + "` is not a table, but " +
                  at->dump());
    }
    const std::size_t end = std::min(dotted_key.find('.', begin), dotted_key.size());
    at = &(*at)[std::string(dotted_key.substr(begin, end - begin))];
    begin = end + 1;
  }
  *at = value_of(std::string(value));
}

void merge(Json& base, const Json& over) {
  if (!base.is_object() || !over.is_object()) {
    base = over;
    return;
  }
  for (const auto& [key, value] : over.items()) merge(base[key], value);
}

}  // namespace weir::config
