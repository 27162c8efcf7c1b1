// SPDX-License-Identifier: Apache-2.0
// The dtypes are those that both the format and torch have.
#include "models/safetensors_format.h"

#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <memory>
#include <new>
#include <nlohmann/json.hpp>
#include <tuple>
#include <utility>

#include "config/error.h"

namespace weir::models {
namespace {

constexpr std::pair<std::string_view, c10::ScalarType> kDtypes[] = {
    {"F64", c10::ScalarType::Double},
    {"F32", c10::ScalarType::Float},
    {"F16", c10::ScalarType::Half},
    {"BF16", c10::ScalarType::BFloat16},
    {"I64", c10::ScalarType::Long},
    {"I32", c10::ScalarType::Int},
    {"I16", c10::ScalarType::Short},
    {"I8", c10::ScalarType::Char},
    {"U64", c10::ScalarType::UInt64},
    {"U32", c10::ScalarType::UInt32},
    {"U16", c10::ScalarType::UInt16},
    {"U8", c10::ScalarType::Byte},
    {"BOOL", c10::ScalarType::Bool},
    {"C64", c10::ScalarType::ComplexFloat},
    {"F8_E4M3", c10::ScalarType::Float8_e4m3fn},
    {"F8_E5M2", c10::ScalarType::Float8_e5m2},
    {"F8_E4M3FNUZ", c10::ScalarType::Float8_e4m3fnuz},
    {"F8_E5M2FNUZ", c10::ScalarType::Float8_e5m2fnuz},
    {"F8_E8M0", c10::ScalarType::Float8_e8m0fnu},
};

// Bytes of a dense tensor. In the check for overflow 0 counts as 1, as it does in torch's strides.
std::optional<std::uint64_t> checked_bytes(const TensorEntry& entry) {
  auto bytes = static_cast<std::int64_t>(c10::elementSize(entry.dtype));
  bool empty = false;
  for (const std::int64_t size : entry.shape) {
    empty |= size == 0;
    if (__builtin_mul_overflow(bytes, std::max<std::int64_t>(size, 1), &bytes)) return std::nullopt;
  }
  return empty ? 0 : static_cast<std::uint64_t>(bytes);
}

std::string range(const TensorEntry& entry) {
  return "[" + std::to_string(entry.begin) + ", " + std::to_string(entry.end) + "]";
}

void check_entry(const std::string& file, const TensorEntry& entry, std::uint64_t data_bytes) {
  const auto fail = [&](const std::string& what) {
    refuse(file, "tensor " + backticked(entry.name) + ": " + what);
  };
  const std::optional<std::uint64_t> bytes = checked_bytes(entry);
  if (!bytes) fail("expected `shape` to need less than 2^63 bytes, but it needs more");
  if (entry.begin > entry.end) fail("expected `data_offsets` to ascend, but got " + range(entry));
  if (entry.end > data_bytes) {
    fail("expected `data_offsets` to lie in the " + std::to_string(data_bytes) +
         " bytes of data of the file, but got " + range(entry) + "; the file may be truncated");
  }
  if (entry.end - entry.begin != *bytes) {
    fail("expected `data_offsets` to span " + std::to_string(*bytes) +
         " bytes as `dtype` and `shape` say, but got " + range(entry));
  }
}

}  // namespace

void refuse(const std::string& file, const std::string& what) {
  throw config::InputError(file + ": " + what + ".");
}

std::optional<std::string_view> dtype_word(c10::ScalarType dtype) {
  const auto* found =
      std::ranges::find(kDtypes, dtype, [](const auto& known) { return known.second; });
  return found == std::end(kDtypes) ? std::nullopt : std::optional(found->first);
}

c10::ScalarType parse_dtype(std::string_view word) {
  const auto* found =
      std::ranges::find(kDtypes, word, [](const auto& dtype) { return dtype.first; });
  return found == std::end(kDtypes) ? c10::ScalarType::Undefined : found->second;
}

std::string all_dtype_words() {
  std::string words;
  for (const auto& dtype : kDtypes) words += (words.empty() ? "" : ", ") + std::string(dtype.first);
  return words;
}

// A hole or a tail could hide another file, and overlaps would let a small file fill the memory.
void check_layout(const std::string& file, std::vector<TensorEntry>& entries,
                  std::uint64_t data_bytes) {
  for (const TensorEntry& entry : entries) check_entry(file, entry, data_bytes);
  std::ranges::sort(entries, {},
                    [](const TensorEntry& e) { return std::tie(e.begin, e.end, e.name); });
  std::uint64_t next = 0;
  for (const TensorEntry& entry : entries) {
    if (entry.begin != next) {
      refuse(file, "tensor " + backticked(entry.name) + ": expected its data to begin at byte " +
                       std::to_string(next) +
                       ", where the data before it ends, but `data_offsets` is " + range(entry));
    }
    next = entry.end;
  }
  if (next != data_bytes) {
    refuse(file, "expected " + std::to_string(next) +
                     " bytes of data as the header says, but got " + std::to_string(data_bytes));
  }
}

std::string checksum(std::string_view dtype, c10::IntArrayRef shape, const void* data,
                     std::size_t bytes) {
  std::string label(dtype);
  char separator = '[';
  for (const std::int64_t size : shape) {
    label += std::exchange(separator, ',') + std::to_string(size);
  }
  label += shape.empty() ? "[]" : "]";
  const std::unique_ptr<XXH64_state_t, decltype(&XXH64_freeState)> state(XXH64_createState(),
                                                                         XXH64_freeState);
  if (!state) throw std::bad_alloc();
  XXH64_reset(state.get(), 0);
  XXH64_update(state.get(), label.data(), label.size());
  if (bytes > 0) XXH64_update(state.get(), data, bytes);
  std::array<char, 17> hex;
  std::snprintf(hex.data(), hex.size(), "%016llx",
                static_cast<unsigned long long>(XXH64_digest(state.get())));
  return hex.data();
}

std::string backticked(std::string_view name) {
  constexpr std::size_t kLongest = 100;
  using Json = nlohmann::json;
  std::string text = Json(name).dump(-1, ' ', true, Json::error_handler_t::replace);
  text = text.substr(1, text.size() - 2);
  return "`" + (text.size() > kLongest ? text.substr(0, kLongest) + "..." : text) + "`";
}

}  // namespace weir::models
