// SPDX-License-Identifier: Apache-2.0
// Optimal string alignment distance (Damerau: a swap of neighbours is one edit), case-insensitive,
// with a bound that grows with the length of the words: one edit in three letters is a slip, more
// is another word.
#include "config/nearest.h"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <utility>

namespace weir::config {
namespace {

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before(b.size() + 1), above(b.size() + 1), row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::swap(before, above);
    std::swap(above, row);
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const bool equal = lower(a[i - 1]) == lower(b[j - 1]);
      row[j] = std::min({above[j] + 1, row[j - 1] + 1, above[j - 1] + (equal ? 0 : 1)});
      const bool swapped = i > 1 && j > 1 && lower(a[i - 1]) == lower(b[j - 2]) &&
                           lower(a[i - 2]) == lower(b[j - 1]);
      if (swapped) row[j] = std::min(row[j], before[j - 2] + 1);
    }
  }
  return row[b.size()];
}

std::optional<std::size_t> near_distance(std::string_view a, std::string_view b) {
  const auto [shorter, longer] = std::minmax({a.size(), b.size()});
  const std::size_t bound = longer / 3;
  // The difference of the lengths is a lower bound, and saves the table for a word of a megabyte.
  if (shorter == 0 || longer - shorter > bound) return std::nullopt;
  const std::size_t edits = distance(a, b);
  return edits <= bound ? std::optional(edits) : std::nullopt;
}

std::string_view last_component(std::string_view key) {
  // npos + 1 is 0: a key without a dot is its own last component.
  return key.substr(key.rfind('.') + 1);
}

}  // namespace

std::string nearest(std::string_view word, const std::vector<std::string>& words) {
  std::string best;
  std::optional<std::size_t> fewest;
  const auto offer = [&](const std::string& candidate, std::optional<std::size_t> edits) {
    if (!edits || (fewest && *edits >= *fewest)) return;
    fewest = edits;
    best = candidate;
  };
  for (const auto& candidate : words) offer(candidate, near_distance(word, candidate));
  for (const auto& candidate : words) {
    offer(candidate, near_distance(last_component(word), last_component(candidate)));
  }
  return best;
}

}  // namespace weir::config
