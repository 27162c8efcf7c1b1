// SPDX-License-Identifier: Apache-2.0
// Windows of a text. Training windows are drawn by counters: the position is a hash of (seed, step,
// index in the step's batch). There is no state to save, a resumed run sees what the uninterrupted
// one sees, and a batch is the same drawn at once, in micro-batches or by several ranks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>

#include "weir/export.h"

namespace weir::data {

/// A uniform 64-bit hash of three counters; for given `seed` and `stream` no two `index` collide.
/// Its values never change between versions. Chained splitmix64: Steele, Lea, Flood 2014, "Fast
/// Splittable Pseudorandom Number Generators", with the finaliser (Stafford's mix 13) and the
/// increment of Vigna's https://prng.di.unimi.it/splitmix64.c.
WEIR_API std::uint64_t mix(std::uint64_t seed, std::uint64_t stream, std::uint64_t index);

/// Maps a uniform 64-bit `hash` to [0, `range`) by multiply and shift: floor(hash * range / 2^64).
/// No position is off from probability 1 / range by more than 2^-64.
WEIR_API std::uint64_t scale(std::uint64_t hash, std::uint64_t range);

/// Training windows: int64 (batch_size, seq_len + 1) of byte values; inputs are the first seq_len
/// columns, targets the last. Row i is number `first_index` + i of the batch of `step`, drawn from
/// all windows of `bytes` with replacement. Throws config::InputError when `bytes` holds no window,
/// c10::Error on a negative count.
WEIR_API at::Tensor batch(std::span<const std::uint8_t> bytes, std::uint64_t seed,
                          std::int64_t step, std::int64_t first_index, std::int64_t batch_size,
                          std::int64_t seq_len);

/// How many windows `evaluation_batch` can cut from `size` bytes: (size - 1) / seq_len, at least 0.
WEIR_API std::int64_t evaluation_windows(std::int64_t size, std::int64_t seq_len);

/// Evaluation windows: int64 (n, seq_len + 1), row i is window `first_window` + i, which begins at
/// byte (first_window + i) * seq_len. Neighbours share one byte, so that every byte but the first
/// is the target of exactly one window and a mean over them is a mean over the text. n is
/// `batch_size`, less in the last batch. Throws config::InputError when `bytes` holds no window,
/// c10::Error when `first_window` is past the last.
WEIR_API at::Tensor evaluation_batch(std::span<const std::uint8_t> bytes, std::int64_t first_window,
                                     std::int64_t batch_size, std::int64_t seq_len);

}  // namespace weir::data
