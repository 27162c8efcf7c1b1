// SPDX-License-Identifier: Apache-2.0
// Reading rows of different lengths in one batch: padded on the right, where a causal model cannot
// see the padding, and the logits taken at the last token of each.
#include "models/decoder.h"

#include <torch/types.h>

#include <algorithm>

namespace weir::models {
namespace {

// Logits (rows, n, num_tokens) at the last token of each piece: (rows, num_tokens).
at::Tensor at_ends(const at::Tensor& logits, const std::vector<Tokens>& pieces) {
  std::vector<at::Tensor> ends;
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    ends.push_back(logits[static_cast<std::int64_t>(i)][std::ssize(pieces[i]) - 1]);
  }
  return at::stack(ends).to(at::kCPU, at::kDouble);
}

}  // namespace

at::Tensor Decoder::next_logits(const std::vector<Tokens>& sequences,
                                const std::vector<std::int64_t>& rows) {
  std::vector<std::int64_t> fitting, longer, order;
  for (const std::int64_t row : rows) {
    const bool fits = use_cache_ && std::ssize(sequences[row]) <= model_.max_length();
    (fits ? fitting : longer).push_back(row);
  }
  std::vector<at::Tensor> parts;
  if (!fitting.empty()) parts.push_back(read_on(sequences, fitting));
  if (!longer.empty()) parts.push_back(read_anew(sequences, longer));
  // Back into the order of `rows`.
  fitting.insert(fitting.end(), longer.begin(), longer.end());
  for (const std::int64_t row : rows) {
    order.push_back(std::find(fitting.begin(), fitting.end(), row) - fitting.begin());
  }
  return at::cat(parts).index_select(0, at::tensor(order));
}

at::Tensor Decoder::read_anew(const std::vector<Tokens>& sequences,
                              const std::vector<std::int64_t>& rows) {
  std::vector<Tokens> windows;
  for (const std::int64_t row : rows) {
    const Tokens& sequence = sequences[row];
    const auto size = std::min<std::int64_t>(std::ssize(sequence), model_.max_length());
    windows.emplace_back(sequence.end() - size, sequence.end());
  }
  return at_ends(model_.forward(padded(windows)), windows);
}

at::Tensor Decoder::read_on(const std::vector<Tokens>& sequences,
                            const std::vector<std::int64_t>& rows) {
  keep(rows);
  std::vector<Tokens> unread;
  std::vector<std::int64_t> lengths;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const Tokens& sequence = sequences[rows[i]];
    unread.emplace_back(sequence.begin() + cache_->lengths()[i], sequence.end());
    lengths.push_back(std::ssize(sequence));
  }
  const at::Tensor logits = model_.step(padded(unread), *cache_);
  cache_->set_lengths(std::move(lengths));  // forgets the padding
  return at_ends(logits, unread);
}

void Decoder::keep(const std::vector<std::int64_t>& rows) {
  if (!cache_) {
    cache_ = model_.make_cache(std::ssize(rows));
  } else if (rows.size() < cached_.size()) {
    std::vector<std::int64_t> indices;
    for (const std::int64_t row : rows) {
      indices.push_back(std::find(cached_.begin(), cached_.end(), row) - cached_.begin());
    }
    cache_->keep_rows(indices);
  }
  cached_ = rows;
}

at::Tensor Decoder::padded(const std::vector<Tokens>& pieces) const {
  std::size_t longest = 0;
  for (const Tokens& piece : pieces) longest = std::max(longest, piece.size());
  at::Tensor tokens =
      at::zeros({std::ssize(pieces), static_cast<std::int64_t>(longest)}, at::kLong);
  for (std::size_t i = 0; i < pieces.size(); ++i) {
    tokens[static_cast<std::int64_t>(i)]
        .narrow(0, 0, std::ssize(pieces[i]))
        .copy_(at::tensor(pieces[i], at::kLong));
  }
  return tokens.to(model_.parameters().front().device());
}

}  // namespace weir::models
