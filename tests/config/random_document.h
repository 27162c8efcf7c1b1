// SPDX-License-Identifier: Apache-2.0
// Random documents of everything that TOML can say: odd keys, any Unicode, numbers of every size.
#pragma once

#include <rapidcheck.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "config/document.h"

namespace weir::config {

inline void append_utf8(std::uint32_t point, std::string& out) {
  const auto byte = [&](std::uint32_t value) { out += static_cast<char>(value); };
  const auto tail = [&](int shift) { byte(0x80 | ((point >> shift) & 0x3F)); };
  if (point < 0x80) return byte(point);
  if (point < 0x800) {
    byte(0xC0 | (point >> 6));
    return tail(0);
  }
  if (point < 0x10000) {
    byte(0xE0 | (point >> 12));
  } else {
    byte(0xF0 | (point >> 18));
    tail(12);
  }
  tail(6);
  tail(0);
}

inline rc::Gen<std::string> random_text() {
  // Half of it ASCII with its control characters, where the escapes are; no surrogates, which UTF-8
  // lacks.
  auto ascii = rc::gen::inRange<std::uint32_t>(0, 0x80);
  auto unicode = rc::gen::suchThat(rc::gen::inRange<std::uint32_t>(0x80, 0x110000),
                                   [](auto point) { return point < 0xD800 || point > 0xDFFF; });
  return rc::gen::map(
      rc::gen::container<std::vector<std::uint32_t>>(rc::gen::oneOf(ascii, unicode)),
      [](const std::vector<std::uint32_t>& points) {
        std::string text;
        for (const auto point : points) append_utf8(point, text);
        return text;
      });
}

inline rc::Gen<double> random_finite() {
  return rc::gen::suchThat(rc::gen::map(rc::gen::arbitrary<std::uint64_t>(),
                                        [](std::uint64_t bits) {
                                          double number;
                                          std::memcpy(&number, &bits, sizeof(number));
                                          return number;
                                        }),
                           [](double number) { return std::isfinite(number); });
}

inline Json random_value(int depth);

inline Json random_object(int depth) {
  Json out = Json::object();
  const int size = *rc::gen::inRange(0, 5);
  for (int i = 0; i < size; ++i) out[*random_text()] = random_value(depth);
  return out;
}

inline Json random_value(int depth) {
  switch (*rc::gen::inRange(0, depth > 0 ? 6 : 4)) {
    case 0:
      return *rc::gen::arbitrary<std::int64_t>();
    case 1:
      return *random_finite();
    case 2:
      return *rc::gen::arbitrary<bool>();
    case 3:
      return *random_text();
    case 4: {
      Json list = Json::array();
      const int size = *rc::gen::inRange(0, 4);
      for (int i = 0; i < size; ++i) list.push_back(random_value(depth - 1));
      return list;
    }
    default:
      return random_object(depth - 1);
  }
}

}  // namespace weir::config
