// SPDX-License-Identifier: Apache-2.0
// Files that look like safetensors and are not, each with the words it has to be refused with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace weir::models {

inline std::string length_bytes(std::uint64_t length) {
  std::string bytes(sizeof length, '\0');
  std::memcpy(bytes.data(), &length, sizeof length);
  return bytes;
}

// A file with this header and `data_bytes` zero bytes of data.
inline std::string file_of(const std::string& header, std::size_t data_bytes = 0) {
  return length_bytes(header.size()) + header + std::string(data_bytes, '\0');
}

// A file with one tensor `w`, whose entry holds `fields`.
inline std::string entry_of(const std::string& fields, std::size_t data_bytes = 0) {
  return file_of("{\"w\":{" + fields + "}}", data_bytes);
}

struct Malformed {
  std::string bytes;
  std::string words;  // in the message, after the name of the file
};

inline std::vector<Malformed> malformed_files() {
  const std::string w = R"("w":{"dtype":"U8","shape":[2],"data_offsets":[0,2]})";
  const auto entry = [](const std::string& dtype, const std::string& shape,
                        const std::string& offsets, std::size_t data_bytes = 2) {
    return entry_of("\"dtype\":" + dtype + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets,
                    data_bytes);
  };
  const auto shape = [&](const std::string& shape) { return entry("\"U8\"", shape, "[0,2]"); };
  const auto offsets = [&](const std::string& offsets) { return entry("\"U8\"", "[2]", offsets); };
  std::string many = "[1";
  for (int i = 0; i < 64; ++i) many += ",1";
  const std::string malformed =
      "expected the header to be JSON in UTF-8, but it is malformed at byte ";
  const std::string integers = "`shape` to hold integers from 0 to 2^63 - 1, but got ";
  return {
      // The length.
      {"", "expected a safetensors file of at least 8 bytes, but got 0"},
      {"1234567", "expected a safetensors file of at least 8 bytes, but got 7"},
      {length_bytes(100'000'001), "header of at most 100000000 bytes, but got 100000001"},
      {length_bytes(~0ull), "header of at most 100000000 bytes, but got 18446744073709551615"},
      {length_bytes(100'000'000) + "{}", "a header of 100000000 bytes, but the file has only 10"},
      {length_bytes(3) + "{}",
       "a header of 3 bytes, but the file has only 10; it may be truncated"},
      // The JSON.
      {file_of(""), "expected the header to start with `{`"},
      {file_of(" {}"), "expected the header to start with `{`"},
      {file_of("\xef\xbb\xbf{}"), "expected the header to start with `{`"},
      {file_of("[]"), "expected the header to start with `{`"},
      {file_of("{"), malformed + "2"},
      {file_of("{}}"), malformed + "3"},
      {file_of("{} {}"), malformed + "4"},
      {file_of("{" + w + ",}", 2), malformed},
      {file_of(std::string("{}\0{", 4)), malformed + "3"},
      {file_of("{\"\xff\":1}"), malformed},
      {file_of("{\"\\ud800\":1}"), malformed},
      {file_of("{\"a\nb\":1}"), malformed},
      {file_of("{/**/}"), malformed},
      {file_of("{\"w\":NaN}"), malformed},
      {file_of("{\"w\":" + std::string(100'000, '[')),
       "tensor `w`: expected an object, but got an array"},
      // Values of the wrong kind.
      {file_of(R"({"w":null})"), "tensor `w`: expected an object, but got null"},
      {file_of(R"({"w":1})"), "tensor `w`: expected an object, but got 1"},
      {file_of(R"({"w":"x"})"), "tensor `w`: expected an object, but got a string"},
      {file_of(R"({"__metadata__":true})"), ": `__metadata__`: expected an object, but got true"},
      {file_of(R"({"__metadata__":{"k":1}})"),
       "`__metadata__`: expected `k` to be a string, but got 1"},
      {file_of(R"({"__metadata__":{"k":{}}})"), "expected `k` to be a string, but got an object"},
      {file_of(R"({"__metadata__":{"k":[]}})"), "expected `k` to be a string, but got an array"},
      {entry("1", "[2]", "[0,2]"), "tensor `w`: expected `dtype` to be a string, but got 1"},
      {entry("[]", "[2]", "[0,2]"), "expected `dtype` to be a string, but got an array"},
      {shape("2"), "expected `shape` to be an array of integers, but got 2"},
      {shape("\"U8\""), "expected `shape` to be an array of integers, but got a string"},
      {shape("{}"), "expected `shape` to be an array of integers, but got an object"},
      {shape("[[2]]"), integers + "an array"},
      {shape("[2.0]"), integers + "2.0"},
      {shape("[-2]"), integers + "-2"},
      {shape("[true]"), integers + "true"},
      {shape("[9223372036854775808]"), integers + "9223372036854775808"},
      {shape("[99999999999999999999]"), integers + "99999999999999999999"},
      {offsets("null"), "expected `data_offsets` to be an array of integers, but got null"},
      {offsets("[0,-2]"), "`data_offsets` to hold integers from 0 to 2^64 - 1, but got -2"},
      {offsets("[2]"), "expected `data_offsets` to be [begin, end], but got fewer numbers"},
      {offsets("[0,2,2]"), "expected `data_offsets` to be [begin, end], but got more numbers"},
      // Keys.
      {file_of("{" + w + "," + w + "}", 2),
       "tensor `w`: expected one entry of this name, but got two"},
      {file_of(R"({"\u0077":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)" + w + "}", 2),
       "tensor `w`: expected one entry of this name, but got two"},
      {file_of(R"({"__metadata__":{},"__metadata__":{}})"), "expected one entry of this name"},
      {file_of(R"({"__metadata__":{"k":"a","k":"b"}})"), "expected one key `k`, but got two"},
      {entry_of(R"("dtype":"U8","dtype":"U8")"),
       "tensor `w`: expected one key `dtype`, but got two"},
      {entry_of(R"("dtype":"U8","size":1)"), "`shape` and `data_offsets`, but got `size`"},
      {entry_of(R"("dtype":"U8","shape":[2])", 2),
       "expected a key `data_offsets`, but there is none"},
      {entry_of(R"("shape":[2],"data_offsets":[0,2])", 2),
       "expected a key `dtype`, but there is none"},
      {entry_of(""), "tensor `w`: expected a key `dtype`, but there is none"},
      // Dtypes, shapes and the layout of the data.
      {entry("\"F4\"", "[2]", "[0,2]"), "expected `dtype` to be one of F64, F32, F16, BF16, I64"},
      {entry("\"u8\"", "[2]", "[0,2]"), "but got `u8`"},
      {shape(many + "]"), "expected `shape` to have at most 64 dimensions, but got more"},
      {shape("[4294967296,4294967296]"), "expected `shape` to need less than 2^63 bytes"},
      {entry("\"F64\"", "[1152921504606846976]", "[0,2]"), "`shape` to need less than 2^63 bytes"},
      {shape("[0,9223372036854775807,3]"), "expected `shape` to need less than 2^63 bytes"},
      {offsets("[2,0]"), "tensor `w`: expected `data_offsets` to ascend, but got [2, 0]"},
      {offsets("[0,3]"),
       "to lie in the 2 bytes of data of the file, but got [0, 3]; the file may be"},
      {offsets("[0,18446744073709551615]"), "to lie in the 2 bytes of data of the file"},
      {offsets("[0,1]"), "to span 2 bytes as `dtype` and `shape` say, but got [0, 1]"},
      {shape("[]"), "to span 1 bytes as `dtype` and `shape` say, but got [0, 2]"},
      {entry("\"U8\"", "[1]", "[1,2]"),
       "expected its data to begin at byte 0, where the data before it"},
      {file_of("{" + w + R"(,"x":{"dtype":"U8","shape":[2],"data_offsets":[1,3]}})", 3),
       "tensor `x`: expected its data to begin at byte 2, where the data before it ends, but "
       "`data_offsets` is [1, 3]"},
      {file_of("{" + w + R"(,"x":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", 2),
       "tensor `x`: expected its data to begin at byte 2"},
      {file_of("{" + w + R"(,"x":{"dtype":"U8","shape":[1],"data_offsets":[3,4]}})", 4),
       "tensor `x`: expected its data to begin at byte 2"},
      {file_of("{" + w + "}", 3), "expected 2 bytes of data as the header says, but got 3"},
      {file_of("{}", 1), "expected 0 bytes of data as the header says, but got 1"},
      // The data, and Weir's checksums.
      {entry("\"BOOL\"", "[2]", "[0,2]", 0) + std::string("\1\2"),
       "expected BOOL data to be 0 or 1"},
      {file_of(R"({"__metadata__":{"xxh64.w":"0123456789abcdef"},)" + w + "}", 2),
       "tensor `w`: expected the checksum `0123456789abcdef`, but got `"},
      {file_of(R"({"__metadata__":{"xxh64.v":"0123456789abcdef"},)" + w + "}", 2),
       "tensor `w`: expected a checksum in `__metadata__` as other tensors have, but there is "
       "none"},
      {file_of(R"({"__metadata__":{"xxh64.v":"0123456789abcdef"}})"),
       "expected one checksum for each of 0 tensors in `__metadata__`, but got 1"},
  };
}

}  // namespace weir::models
