// SPDX-License-Identifier: Apache-2.0
// parse_json: nlohmann's parser with what it lacks, a refusal of duplicate keys (its DOM keeps the
// last one, without a word) and of deep nesting, and with messages in the form of the other
// parser's.
#include <cstddef>
#include <iterator>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "config/document.h"
#include "config/error.h"

namespace weir::config {
namespace {

// An iterator that tells how far its copies have come: the parser gives no position to its
// callback.
struct Cursor {
  using iterator_category = std::input_iterator_tag;
  using value_type = char;
  using difference_type = std::ptrdiff_t;
  using pointer = const char*;
  using reference = const char&;

  reference operator*() const { return *at; }
  Cursor& operator++() {
    *furthest = ++at;
    return *this;
  }
  bool operator==(const Cursor& other) const { return at == other.at; }

  const char* at;
  const char** furthest;
};

class JsonReader {
 public:
  JsonReader(std::string_view text, const std::string& source)
      : text_(text), source_(source), furthest_(text.data()) {}

  Json read() {
    const auto check = [this](int depth, Json::parse_event_t event, Json& value) {
      check_event(depth, event, value);
      return true;
    };
    try {
      const char* begin = text_.data();
      return Json::parse(Cursor{begin, &furthest_}, Cursor{begin + text_.size(), &furthest_},
                         check);
    } catch (const Json::parse_error& error) {
      fail(plain(error.what()), error.byte);
    } catch (const Json::exception& error) {
      fail(plain(error.what()), bytes_read());
    }
  }

 private:
  void check_event(int depth, Json::parse_event_t event, const Json& value) {
    using Event = Json::parse_event_t;
    if (depth > kMaxDepth) {
      fail("nested deeper than " + std::to_string(kMaxDepth) + " levels", bytes_read());
    }
    if (event == Event::object_start) keys_.emplace_back();
    if (event == Event::object_end) keys_.pop_back();
    if (event == Event::key && !keys_.back().insert(value.get<std::string>()).second) {
      fail("the key " + value.dump() + " stands twice in this object", bytes_read());
    }
  }

  // "[json.exception.…] parse error at line 1, column 5: syntax error while … - what; last read:
  // '…'" without its name and position, and without the text, which may be all of the file.
  static std::string plain(std::string message) {
    message.erase(0, message.find("] ") + 2);
    if (message.starts_with("parse error")) message.erase(0, message.find(": ") + 2);
    return message.substr(0, message.find("; last read"));
  }

  std::size_t bytes_read() const { return static_cast<std::size_t>(furthest_ - text_.data()); }

  // The position is that of the last byte read; for a key its closing quote.
  [[noreturn]] void fail(const std::string& message, std::size_t bytes_read) const {
    const auto before = text_.substr(0, bytes_read == 0 ? 0 : bytes_read - 1);
    std::size_t line = 1, line_begin = 0;
    for (std::size_t i = 0; i < before.size(); ++i) {
      if (before[i] != '\n') continue;
      ++line;
      line_begin = i + 1;
    }
    throw InputError(source_ + ":" + std::to_string(line) + ":" +
                     std::to_string(before.size() - line_begin + 1) + ": " + message);
  }

  std::string_view text_;
  const std::string& source_;
  const char* furthest_;
  std::vector<std::set<std::string>> keys_;  // of the objects that are open
};

}  // namespace

Json parse_json(std::string_view text, const std::string& source) {
  return JsonReader(text, source).read();
}

}  // namespace weir::config
