// SPDX-License-Identifier: Apache-2.0
// Copies windows of bytes into int64 tensors; position(row) says where each begins.
#include "data/sampler.h"

#include <ATen/ops/empty.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <string>

#include "config/error.h"

namespace weir::data {
namespace {

std::uint64_t splitmix64(std::uint64_t state) {
  std::uint64_t z = state + 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

void check(const char* function, std::span<const std::uint8_t> bytes, std::int64_t batch_size,
           std::int64_t seq_len) {
  TORCH_CHECK(batch_size >= 1 && seq_len >= 1, function,
              ": expected `batch_size` and `seq_len` to be at least 1, but got ", batch_size,
              " and ", seq_len, ".");
  if (static_cast<std::int64_t>(bytes.size()) > seq_len) return;
  throw config::InputError(
      std::string(function) + ": expected `bytes` to hold at least seq_len + 1 = " +
      std::to_string(seq_len + 1) + " bytes, but got " + std::to_string(bytes.size()) + ".");
}

// int64 (batch_size, seq_len + 1); row i is what begins at byte position(i).
template <class Position>
at::Tensor windows(std::span<const std::uint8_t> bytes, std::int64_t batch_size,
                   std::int64_t seq_len, const Position& position) {
  at::Tensor tokens = at::empty({batch_size, seq_len + 1}, at::kLong);
  auto* row = tokens.mutable_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < batch_size; ++i, row += seq_len + 1) {
    std::ranges::copy(bytes.subspan(position(i), static_cast<std::size_t>(seq_len) + 1), row);
  }
  return tokens;
}

}  // namespace

std::uint64_t mix(std::uint64_t seed, std::uint64_t stream, std::uint64_t index) {
  return splitmix64(splitmix64(splitmix64(seed) ^ stream) ^ index);
}

std::uint64_t scale(std::uint64_t hash, std::uint64_t range) {
  return static_cast<std::uint64_t>((static_cast<unsigned __int128>(hash) * range) >> 64);
}

at::Tensor batch(std::span<const std::uint8_t> bytes, std::uint64_t seed, std::int64_t step,
                 std::int64_t first_index, std::int64_t batch_size, std::int64_t seq_len) {
  check("weir::data::batch", bytes, batch_size, seq_len);
  TORCH_CHECK(step >= 0 && first_index >= 0,
              "weir::data::batch: expected `step` and `first_index` to be at least 0, but got ",
              step, " and ", first_index, ".");
  const std::uint64_t positions = bytes.size() - static_cast<std::uint64_t>(seq_len);
  return windows(bytes, batch_size, seq_len, [&](std::int64_t i) {
    return scale(
        mix(seed, static_cast<std::uint64_t>(step), static_cast<std::uint64_t>(first_index + i)),
        positions);
  });
}

std::int64_t evaluation_windows(std::int64_t size, std::int64_t seq_len) {
  TORCH_CHECK(seq_len >= 1,
              "weir::data::evaluation_windows: expected `seq_len` to be at least 1, but got ",
              seq_len, ".");
  return size < 1 ? 0 : (size - 1) / seq_len;
}

at::Tensor evaluation_batch(std::span<const std::uint8_t> bytes, std::int64_t first_window,
                            std::int64_t batch_size, std::int64_t seq_len) {
  check("weir::data::evaluation_batch", bytes, batch_size, seq_len);
  const std::int64_t count = evaluation_windows(static_cast<std::int64_t>(bytes.size()), seq_len);
  TORCH_CHECK(first_window >= 0 && first_window < count,
              "weir::data::evaluation_batch: expected `first_window` to be in [0, ", count,
              "), but got ", first_window, ".");
  return windows(bytes, std::min(batch_size, count - first_window), seq_len, [&](std::int64_t i) {
    return static_cast<std::size_t>((first_window + i) * seq_len);
  });
}

}  // namespace weir::data
