// SPDX-License-Identifier: Apache-2.0
// The keys and values of the tokens that one attention layer has read, and how a layer whose
// queries reach only so far back forgets the others:
//
//   past.prepare(positions.select(1, 0), reach);    // drops what no later query sees
//   past.append(keys, values, positions);
//
// Rows have lengths of their own and may be cut back into the last step; what they forget there
// stays in its slot until the next `prepare`.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "weir/export.h"

namespace weir::nn {

struct WEIR_API KeyValues {
  at::Tensor keys;    ///< (batch, heads, slots, dim_head)
  at::Tensor values;  ///< the same
  /// Where the token of a slot stands: int64 (batch, slots), -1: the slot is empty. Undefined: slot
  /// i holds position i.
  at::Tensor positions = {};

  std::int64_t slots() const { return keys.size(2); }

  /// Only the slots where `kept`, bool (batch, slots), is true, in their order. Rows that keep
  /// fewer than others end with empty slots, keys and values 0.
  KeyValues kept(const at::Tensor& kept) const;

  /// Adds slots: `new_keys`, `new_values` (batch, heads, m, dim_head) at `new_positions`
  /// (batch, m).
  void append(const at::Tensor& new_keys, const at::Tensor& new_values,
              const at::Tensor& new_positions);

  /// Before a step of rows that have `lengths` (batch) tokens, whose queries see at most `reach`
  /// positions back: empties the slots from the end of a row on and those out of reach, and drops
  /// them now and then, so that there are never many more than `reach`. Throws c10::ValueError if a
  /// position within reach is no longer held, because a row was cut back further than into its last
  /// step.
  void prepare(const at::Tensor& lengths, std::int64_t reach);
};

/// Without slots; `options` are those of the keys.
WEIR_API KeyValues empty_key_values(std::int64_t batch, std::int64_t heads, std::int64_t dim_head,
                                    const at::TensorOptions& options);

/// With `slots` slots, all 0: a weight of 0 times a stray NaN would be NaN.
WEIR_API KeyValues blank_key_values(std::int64_t batch, std::int64_t heads, std::int64_t slots,
                                    std::int64_t dim_head, const at::TensorOptions& options);

/// Writes `rows` (batch, heads, m, features) to the slots `places` (batch, m) of `slots`; returns
/// the first `length` of them.
WEIR_API at::Tensor write_slots(at::Tensor& slots, const at::Tensor& rows, const at::Tensor& places,
                                std::int64_t length);

}  // namespace weir::nn
