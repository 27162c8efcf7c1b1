// SPDX-License-Identifier: Apache-2.0
// parse_toml and read_toml: toml++'s tree turned into a document. The only file that includes
// toml++.
#include <iostream>
#include <iterator>
#include <string>
#include <string_view>

#include <toml++/toml.h>

#include "config/atomic_file.h"
#include "config/document.h"
#include "config/error.h"

namespace weir::config {
namespace {

// toml++ 3.3 frees a key of n dots with n nested calls; 64 KiB of dots are far from the end of the
// stack (100,000 were freed, 500,000 crashed).
constexpr std::size_t kMaxBytes = 64 * 1024;

[[noreturn]] void fail(const std::string& source, toml::source_position at,
                       std::string_view message) {
  throw Error(source + ":" + std::to_string(at.line) + ":" + std::to_string(at.column) + ": " +
              std::string(message));
}

Json document(const toml::node& node, const std::string& source, int depth) {
  if (depth > kMaxDepth) {
    fail(source, node.source().begin,
         "nested deeper than " + std::to_string(kMaxDepth) + " levels");
  }
  if (const auto* table = node.as_table()) {
    Json out = Json::object();
    for (const auto& [key, value] : *table) {
      out[std::string(key.str())] = document(value, source, depth + 1);
    }
    return out;
  }
  if (const auto* list = node.as_array()) {
    Json out = Json::array();
    for (const auto& value : *list) out.push_back(document(value, source, depth + 1));
    return out;
  }
  if (const auto* value = node.as_string()) return value->get();
  if (const auto* value = node.as_integer()) return value->get();
  if (const auto* value = node.as_floating_point()) return value->get();
  if (const auto* value = node.as_boolean()) return value->get();
  fail(source, node.source().begin, "dates and times are not supported; put it in quotes");
}

std::string read_standard_input() {
  std::string text{std::istreambuf_iterator<char>(std::cin), {}};
  if (std::cin.bad()) throw InputError("cannot read the standard input");
  return text;
}

}  // namespace

Json parse_toml(std::string_view text, const std::string& source) {
  if (text.size() > kMaxBytes)
    throw Error(source + ": larger than 64 KiB, too large for a run file");
  try {
    return document(toml::parse(text), source, 0);
  } catch (const toml::parse_error& error) {
    fail(source, error.source().begin, error.description());
  }
}

Json read_toml(const std::filesystem::path& path) {
  if (path == "-") return parse_toml(read_standard_input(), "stdin");
  return parse_toml(read_file(path), path.string());
}

}  // namespace weir::config
