// SPDX-License-Identifier: Apache-2.0
// Options to and from JSON, and as a table for help pages. An Options struct lists its fields once:
//
//   template <class Visitor> static void fields(Visitor&& field) { field("dim", &Self::dim,
//   "help"); }
//
// A field is an int64_t, a double, a bool, a string, an optional of the first two, a vector of
// int64_t or of strings, an int64_t or two of them, or another Options struct.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#include "config/document.h"
#include "weir/export.h"

namespace weir::config {

template <class T>
concept HasFields = requires {
  T::fields([](const char*, auto, const char*) {});
};

/// A size for both directions, or height and width.
using IntegerOrPair = std::variant<std::int64_t, std::array<std::int64_t, 2>>;

/// One line of a help or reference page; `name` is dotted, `default_value` as one writes it in TOML
/// ("none" for an empty optional).
struct Field {
  std::string name, type, default_value, help;
};

namespace internal {

template <class T>
inline constexpr const char* kTypeName = nullptr;
template <>
inline constexpr const char* kTypeName<std::int64_t> = "integer";
template <>
inline constexpr const char* kTypeName<double> = "number";
template <>
inline constexpr const char* kTypeName<bool> = "boolean";
template <>
inline constexpr const char* kTypeName<std::string> = "string";
template <>
inline constexpr const char* kTypeName<std::optional<std::int64_t>> = "integer or none";
template <>
inline constexpr const char* kTypeName<std::optional<double>> = "number or none";
template <>
inline constexpr const char* kTypeName<std::vector<std::int64_t>> = "list of integers";
template <>
inline constexpr const char* kTypeName<std::vector<std::string>> = "list of strings";
template <>
inline constexpr const char* kTypeName<IntegerOrPair> = "integer or two integers";

WEIR_API std::string dotted(std::string_view prefix, std::string_view name);
WEIR_API std::string default_text(const Json& value);
// Throws Error unless `value` is a table whose keys are among `names`; `keys` are the dotted keys,
// those of nested tables too, among which the message looks for what was meant.
WEIR_API void check_table(const Json& value, std::string_view where,
                          const std::vector<std::string>& names, std::vector<std::string> keys);

WEIR_API void read(const Json& value, const std::string& key, std::int64_t& out);
WEIR_API void read(const Json& value, const std::string& key, double& out);
WEIR_API void read(const Json& value, const std::string& key, bool& out);
WEIR_API void read(const Json& value, const std::string& key, std::string& out);
WEIR_API void read(const Json& value, const std::string& key, std::vector<std::int64_t>& out);
WEIR_API void read(const Json& value, const std::string& key, std::vector<std::string>& out);
WEIR_API void read(const Json& value, const std::string& key, IntegerOrPair& out);

template <class T>
void read(const Json& value, const std::string& key, std::optional<T>& out) {
  out.reset();
  if (!value.is_null()) read(value, key, out.emplace());
}

template <class T>
Json write(const T& value) {
  return value;
}

template <class T>
Json write(const std::optional<T>& value) {
  return value ? Json(*value) : Json();
}

inline Json write(const IntegerOrPair& value) {
  return std::visit([](const auto& form) { return Json(form); }, value);
}

// `defaults` and not a fresh Options: the outer struct may have its own defaults for an inner one.
template <class Options>
void describe(const Options& defaults, std::string_view prefix, std::vector<Field>& rows) {
  Options::fields([&](const char* name, auto member, const char* help) {
    using T = std::remove_cvref_t<decltype(defaults.*member)>;
    const std::string key = dotted(prefix, name);
    if constexpr (HasFields<T>) {
      describe(defaults.*member, key, rows);
    } else {
      static_assert(kTypeName<T> != nullptr, "no field of Options may have this type");
      rows.push_back({key, kTypeName<T>, default_text(write(defaults.*member)), help});
    }
  });
}

template <class Options>
void check_keys(const Json& value, const Options& options, std::string_view where) {
  std::vector<std::string> names, keys;
  Options::fields([&](const char* name, auto, const char*) { names.push_back(name); });
  std::vector<Field> rows;
  describe(options, where, rows);
  for (auto& row : rows) keys.push_back(std::move(row.name));
  check_table(value, where, names, std::move(keys));
}

template <class Options>
void read_table(const Json& value, std::string_view where, Options& out) {
  check_keys(value, out, where);
  Options::fields([&](const char* name, auto member, const char*) {
    const auto found = value.find(name);
    if (found == value.end()) return;
    using T = std::remove_cvref_t<decltype(out.*member)>;
    if constexpr (HasFields<T>) {
      read_table(*found, dotted(where, name), out.*member);
    } else {
      read(*found, dotted(where, name), out.*member);
    }
  });
}

}  // namespace internal

/// `options` as an object with the keys in the order of `fields`; an empty optional is null.
template <class Options>
Json to_json(const Options& options) {
  Json document = Json::object();
  Options::fields([&](const char* name, auto member, const char*) {
    if constexpr (HasFields<std::remove_cvref_t<decltype(options.*member)>>) {
      document[name] = to_json(options.*member);
    } else {
      document[name] = internal::write(options.*member);
    }
  });
  return document;
}

/// Options from `document`; a missing key keeps its default and null empties an optional. `where`
/// precedes the keys in messages. Throws Error, naming the dotted key, on an unknown key (with the
/// nearest known one) and on a value of another type: 3 is a number, but 3.0 is not an integer.
template <class Options>
Options from_json(const Json& document, std::string_view where = "") {
  Options options;
  internal::read_table(document, where, options);
  return options;
}

/// Every option with its type, default and help; `prefix` precedes the names.
template <class Options>
std::vector<Field> describe(std::string_view prefix = "") {
  std::vector<Field> rows;
  internal::describe(Options(), prefix, rows);
  return rows;
}

}  // namespace weir::config
