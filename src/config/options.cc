// SPDX-License-Identifier: Apache-2.0
// What reading Options needs and what does not depend on the Options: one function per type of
// field, and the messages.
#include "config/options.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "config/error.h"
#include "config/nearest.h"

namespace weir::config::internal {
namespace {

std::string ticked(std::string_view key) { return "`" + std::string(key) + "`"; }

std::string shown(const Json& value) {
  if (value.is_object()) return "a table";
  // JSON has no words for these, and dump() would call them null.
  if (value.is_number_float() && !std::isfinite(value.get<double>())) {
    return std::to_string(value.get<double>());
  }
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

[[noreturn]] void fail(std::string_view key, const std::string& expected, const Json& value) {
  const std::string subject = key.empty() ? "" : ticked(key) + ": ";
  throw Error(subject + "expected " + expected + ", but got " + shown(value));
}

[[noreturn]] void fail_unknown(std::string_view where, const std::string& key,
                               const std::vector<std::string>& names,
                               const std::vector<std::string>& keys) {
  std::string message = "unknown key " + ticked(key);
  if (const auto meant = nearest(key, keys); !meant.empty()) {
    throw Error(message + "; did you mean " + ticked(meant) + "?");
  }
  message += where.empty() ? "; the keys are" : "; the keys of " + ticked(where) + " are";
  for (const auto& name : names) message += (&name == &names.front() ? " " : ", ") + ticked(name);
  throw Error(message);
}

template <class T>
void read_list(const Json& value, const std::string& key, const std::string& expected,
               std::vector<T>& out) {
  if (!value.is_array()) fail(key, expected, value);
  std::vector<T> list(value.size());
  for (std::size_t i = 0; i < list.size(); ++i) {
    read(value[i], key + "[" + std::to_string(i) + "]", list[i]);
  }
  out = std::move(list);
}

}  // namespace

std::string dotted(std::string_view prefix, std::string_view name) {
  return prefix.empty() ? std::string(name) : std::string(prefix) + "." + std::string(name);
}

std::string default_text(const Json& value) { return value.is_null() ? "none" : shown(value); }

void check_table(const Json& value, std::string_view where, const std::vector<std::string>& names,
                 std::vector<std::string> keys) {
  if (!value.is_object()) fail(where, "a table", value);
  // The dotted keys hold no tables of their own: `modle` means `model`, of which they know only the
  // fields.
  for (const auto& name : names) keys.push_back(dotted(where, name));
  for (const auto& [key, unused] : value.items()) {
    if (std::find(names.begin(), names.end(), key) == names.end()) {
      fail_unknown(where, dotted(where, key), names, keys);
    }
  }
}

void read(const Json& value, const std::string& key, std::int64_t& out) {
  constexpr auto kLargest = static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max());
  if (!value.is_number_integer()) fail(key, "an integer", value);
  if (value.is_number_unsigned() && value.get<std::uint64_t>() > kLargest) {
    fail(key, "an integer below 2^63", value);
  }
  out = value.get<std::int64_t>();
}

void read(const Json& value, const std::string& key, double& out) {
  if (!value.is_number()) fail(key, "a number", value);
  const double number = value.get<double>();
  if (!std::isfinite(number)) fail(key, "a finite number", value);
  out = number;
}

void read(const Json& value, const std::string& key, bool& out) {
  if (!value.is_boolean()) fail(key, "true or false", value);
  out = value.get<bool>();
}

void read(const Json& value, const std::string& key, std::string& out) {
  if (!value.is_string()) fail(key, "a string", value);
  out = value.get<std::string>();
}

void read(const Json& value, const std::string& key, std::vector<std::int64_t>& out) {
  read_list(value, key, "a list of integers", out);
}

void read(const Json& value, const std::string& key, std::vector<std::string>& out) {
  read_list(value, key, "a list of strings", out);
}

void read(const Json& value, const std::string& key, IntegerOrPair& out) {
  if (!value.is_array()) {
    if (!value.is_number_integer()) fail(key, "an integer or two integers", value);
    return read(value, key, out.emplace<std::int64_t>());
  }
  std::vector<std::int64_t> list;
  read_list(value, key, "an integer or two integers", list);
  if (list.size() != 2) fail(key, "an integer or two integers", value);
  out = std::array{list[0], list[1]};
}

}  // namespace weir::config::internal
