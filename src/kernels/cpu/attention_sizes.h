// SPDX-License-Identifier: Apache-2.0
// Sizes that the kernels of attention share: a tile of queries against keys, and in top-k attention
// the candidates of a query.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/scratch.h"

namespace weir::kernels {

// A tile of logits, 64 x 64 floats, stays in L1 beside the queries, the sums and a part of the
// keys.
constexpr std::int64_t kMostTileRows = 64, kTileKeys = 64;

/// Candidates of a query beyond which its k largest are selected.
constexpr std::size_t CandidateLimit(std::size_t k, std::size_t keys) {
  return std::min(keys, 2 * k + 2 * kBlock);
}
/// Room for them, a run more, and the vector that is written at the end.
constexpr std::size_t CandidateCapacity(std::size_t k, std::size_t keys) {
  return Padded(CandidateLimit(k, keys) + static_cast<std::size_t>(kTileKeys) + kMostLanes);
}

}  // namespace weir::kernels
