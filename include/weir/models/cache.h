// SPDX-License-Identifier: Apache-2.0
// What a language model remembers of the tokens it has read: keys and values per layer, and how
// many tokens of each row they stand for. Rows have lengths of their own, so a batch of different
// prompts is padded on the right, read in one step and then cut back with `set_lengths`; later
// tokens overwrite the padding, and nothing behind the end of a row is ever seen.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "weir/export.h"
#include "weir/nn/key_values.h"

namespace weir::models {

class WEIR_API Cache {
 public:
  /// Empty rows; `layers` have room for `max_length` tokens in each.
  Cache(std::vector<nn::KeyValues> layers, std::int64_t batch, std::int64_t max_length);

  std::int64_t batch() const { return static_cast<std::int64_t>(lengths_.size()); }
  std::int64_t max_length() const { return max_length_; }

  /// Tokens read, per row.
  const std::vector<std::int64_t>& lengths() const { return lengths_; }

  /// The largest of `lengths`, 0 without rows.
  std::int64_t longest() const;

  /// Forgets the tokens of row i from `lengths[i]` on. Throws c10::ValueError unless there is one
  /// length per row, none beyond what the row has.
  void set_lengths(std::vector<std::int64_t> lengths);

  /// Keeps the rows with these indices, in this order, and drops the others.
  void keep_rows(const std::vector<std::int64_t>& rows);

  /// For models: where the next `count` tokens of each row stand, (batch, count) int64. Throws
  /// c10::ValueError when a row has no room for them.
  at::Tensor next_positions(std::int64_t count) const;

  /// For models: `count` tokens more in each row, once the layers have them.
  void advance(std::int64_t count);

  /// For models: one entry per layer.
  std::vector<nn::KeyValues> layers;

  /// For models: what all layers and steps share, computed in the first step. Undefined: nothing.
  at::Tensor shared;

 private:
  std::vector<std::int64_t> lengths_;
  std::int64_t max_length_;
};

}  // namespace weir::models
