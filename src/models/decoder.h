// SPDX-License-Identifier: Apache-2.0
// Next-token logits for rows of tokens that grow. A row that still fits the model is read through a
// cache, one token at a time; a longer one is its last max_length tokens, read anew each time,
// because every token in the window then stands one position earlier than before.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "models/sampling.h"
#include "weir/models/language_model.h"

namespace weir::models {

class Decoder {
 public:
  Decoder(LanguageModel& model, bool use_cache) : model_(model), use_cache_(use_cache) {}

  /// The logits after the last token of `sequences[row]` for each of `rows`: (rows, num_tokens),
  /// double, on the CPU. From call to call sequences only grow, and rows only leave.
  at::Tensor next_logits(const std::vector<Tokens>& sequences,
                         const std::vector<std::int64_t>& rows);

 private:
  at::Tensor read_anew(const std::vector<Tokens>& sequences, const std::vector<std::int64_t>& rows);
  at::Tensor read_on(const std::vector<Tokens>& sequences, const std::vector<std::int64_t>& rows);
  void keep(const std::vector<std::int64_t>& rows);
  at::Tensor padded(const std::vector<Tokens>& pieces) const;

  LanguageModel& model_;
  bool use_cache_;
  std::optional<Cache> cache_;
  std::vector<std::int64_t> cached_;  // the rows of cache_, by their index in `sequences`
};

}  // namespace weir::models
