// SPDX-License-Identifier: Apache-2.0
// A SAX handler rather than a parsed document: only it sees duplicate keys, and it refuses on the
// spot what a document would first have to hold in memory, such as a million nested arrays.
#include "models/safetensors_header.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

namespace weir::models {
namespace {

constexpr std::size_t kMaxRank = 64;  // what torch's iterators take

class HeaderParser final : public nlohmann::json_sax<nlohmann::json> {
 public:
  explicit HeaderParser(const std::string& file) : file_(file) {}
  Header take() { return std::move(header_); }

  bool null() override { unexpected("null"); }
  bool boolean(bool value) override { unexpected(value ? "true" : "false"); }
  bool number_integer(number_integer_t value) override { unexpected(std::to_string(value)); }
  bool number_unsigned(number_unsigned_t value) override;
  bool number_float(number_float_t, const string_t& text) override {
    unexpected(text.substr(0, 40));
  }
  bool string(string_t& value) override;
  bool binary(binary_t&) override { unexpected("binary data"); }
  bool start_object(std::size_t) override;
  bool key(string_t& key) override;
  bool end_object() override;
  bool start_array(std::size_t) override;
  bool end_array() override;
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception&) override {
    refuse(file_, "expected the header to be JSON in UTF-8, but it is malformed at byte " +
                      std::to_string(position) + " of the header");
  }

 private:
  enum class Inside { kNothing, kHeader, kMetadata, kTensor, kShape, kOffsets };

  [[noreturn]] void fail(const std::string& what) const {
    if (inside_ == Inside::kNothing) refuse(file_, what);
    refuse(file_,
           (entry_.name == kMetadataName ? "" : "tensor ") + backticked(entry_.name) + ": " + what);
  }
  [[noreturn]] void unexpected(const std::string& found) const {
    fail("expected " + expectation() + ", but got " + found);
  }
  std::string expectation() const;
  void finish_tensor();

  const std::string& file_;
  Header header_;
  Inside inside_ = Inside::kNothing;
  std::set<std::string> names_;  // of the header: tensors and __metadata__
  std::set<std::string> keys_;   // of the entry
  std::string key_;
  TensorEntry entry_;
  std::vector<std::uint64_t> offsets_;
};

// What may stand where the parser is.
std::string HeaderParser::expectation() const {
  switch (inside_) {
    case Inside::kNothing:
      return "the header to be an object";
    case Inside::kHeader:
      return "an object";
    case Inside::kMetadata:
      return backticked(key_) + " to be a string";
    case Inside::kShape:
      return "`shape` to hold integers from 0 to 2^63 - 1";
    case Inside::kOffsets:
      return "`data_offsets` to hold integers from 0 to 2^64 - 1";
    case Inside::kTensor:
      break;
  }
  return backticked(key_) + (key_ == "dtype" ? " to be a string" : " to be an array of integers");
}

bool HeaderParser::number_unsigned(number_unsigned_t value) {
  if (inside_ == Inside::kOffsets) {
    if (offsets_.size() == 2) {
      fail("expected `data_offsets` to be [begin, end], but got more numbers");
    }
    offsets_.push_back(value);
    return true;
  }
  if (inside_ != Inside::kShape || value > std::numeric_limits<std::int64_t>::max()) {
    unexpected(std::to_string(value));
  }
  if (entry_.shape.size() == kMaxRank) {
    fail("expected `shape` to have at most " + std::to_string(kMaxRank) +
         " dimensions, but got more");
  }
  entry_.shape.push_back(static_cast<std::int64_t>(value));
  return true;
}

bool HeaderParser::string(string_t& value) {
  if (inside_ == Inside::kMetadata) {
    header_.metadata.emplace(key_, std::move(value));
    return true;
  }
  if (inside_ != Inside::kTensor || key_ != "dtype") unexpected("a string");
  entry_.dtype = parse_dtype(value);
  if (entry_.dtype == c10::ScalarType::Undefined) {
    fail("expected `dtype` to be one of " + all_dtype_words() + ", but got " + backticked(value));
  }
  return true;
}

bool HeaderParser::start_object(std::size_t) {
  if (inside_ == Inside::kNothing) {
    inside_ = Inside::kHeader;
  } else if (inside_ == Inside::kHeader) {
    inside_ = entry_.name == kMetadataName ? Inside::kMetadata : Inside::kTensor;
    keys_.clear();
  } else {
    unexpected("an object");
  }
  return true;
}

bool HeaderParser::key(string_t& key) {
  if (inside_ == Inside::kHeader) {
    entry_ = {.name = std::move(key), .shape = {}};
    if (!names_.insert(entry_.name).second) fail("expected one entry of this name, but got two");
    return true;
  }
  key_ = std::move(key);
  if (inside_ == Inside::kTensor && key_ != "dtype" && key_ != "shape" && key_ != "data_offsets") {
    fail("expected the keys `dtype`, `shape` and `data_offsets`, but got " + backticked(key_));
  }
  if (!keys_.insert(key_).second) fail("expected one key " + backticked(key_) + ", but got two");
  return true;
}

bool HeaderParser::end_object() {
  if (inside_ == Inside::kTensor) finish_tensor();
  inside_ = inside_ == Inside::kHeader ? Inside::kNothing : Inside::kHeader;
  return true;
}

bool HeaderParser::start_array(std::size_t) {
  if (inside_ != Inside::kTensor || key_ == "dtype") unexpected("an array");
  inside_ = key_ == "shape" ? Inside::kShape : Inside::kOffsets;
  offsets_.clear();
  return true;
}

bool HeaderParser::end_array() {
  if (inside_ == Inside::kOffsets) {
    if (offsets_.size() != 2) {
      fail("expected `data_offsets` to be [begin, end], but got fewer numbers");
    }
    entry_.begin = offsets_[0];
    entry_.end = offsets_[1];
  }
  inside_ = Inside::kTensor;
  return true;
}

void HeaderParser::finish_tensor() {
  for (const char* key : {"dtype", "shape", "data_offsets"}) {
    if (!keys_.contains(key)) fail(std::string("expected a key `") + key + "`, but there is none");
  }
  header_.tensors.push_back(std::move(entry_));
}

}  // namespace

Header parse_header(const std::string& file, std::string_view json, std::uint64_t data_bytes) {
  if (!json.starts_with('{')) {
    refuse(file, "expected the header to start with `{`, but it does not");
  }
  // nlohmann's lexer takes a zero byte for the end of the text and would not look at what follows.
  if (const std::size_t zero = json.find('\0'); zero != json.npos) {
    refuse(file, "expected the header to be JSON in UTF-8, but it is malformed at byte " +
                     std::to_string(zero + 1) + " of the header");
  }
  HeaderParser parser(file);
  nlohmann::json::sax_parse(json, &parser);
  Header header = parser.take();
  check_layout(file, header.tensors, data_bytes);
  return header;
}

}  // namespace weir::models
