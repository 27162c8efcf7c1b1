// SPDX-License-Identifier: Apache-2.0
// The bookkeeping of a cache: lengths and rows. The layers write their keys and values themselves.
#include "weir/models/cache.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/tensor.h>

#include <algorithm>

namespace weir::models {

Cache::Cache(std::vector<nn::KeyValues> layers_, std::int64_t batch, std::int64_t max_length)
    : layers(std::move(layers_)),
      lengths_(static_cast<std::size_t>(batch), 0),
      max_length_(max_length) {}

std::int64_t Cache::longest() const {
  return lengths_.empty() ? 0 : *std::max_element(lengths_.begin(), lengths_.end());
}

void Cache::set_lengths(std::vector<std::int64_t> lengths) {
  TORCH_CHECK_VALUE(lengths.size() == lengths_.size(), "weir::Cache: expected ", lengths_.size(),
                    " `lengths`, one per row, but got ", lengths.size(), ".");
  for (std::size_t row = 0; row < lengths.size(); ++row) {
    TORCH_CHECK_VALUE(lengths[row] >= 0 && lengths[row] <= lengths_[row],
                      "weir::Cache: expected the length of row ", row, " to lie in [0, ",
                      lengths_[row], "], what the row has, but got ", lengths[row], ".");
  }
  lengths_ = std::move(lengths);
}

void Cache::keep_rows(const std::vector<std::int64_t>& rows) {
  std::vector<std::int64_t> lengths;
  for (const std::int64_t row : rows) lengths.push_back(lengths_.at(static_cast<std::size_t>(row)));
  lengths_ = std::move(lengths);
  for (auto& layer : layers) {
    const at::Tensor index = at::tensor(rows, layer.keys.options().dtype(at::kLong));
    layer.keys = layer.keys.index_select(0, index);
    layer.values = layer.values.index_select(0, index);
    if (layer.positions.defined()) layer.positions = layer.positions.index_select(0, index);
  }
}

at::Tensor Cache::next_positions(std::int64_t count) const {
  TORCH_CHECK_VALUE(longest() + count <= max_length_, "weir::Cache: expected room for ", count,
                    " more tokens in every row, but the longest holds ", longest(), " of ",
                    max_length_, ".");
  const auto options = layers.front().keys.options().dtype(at::kLong);
  return at::tensor(lengths_, options).unsqueeze(-1) + at::arange(count, options);
}

void Cache::advance(std::int64_t count) {
  for (std::int64_t& length : lengths_) length += count;
}

}  // namespace weir::models
