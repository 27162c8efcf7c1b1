// SPDX-License-Identifier: Apache-2.0
// Slots of keys and values: what is dropped when.
#include "weir/nn/key_values.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include <optional>

namespace weir::nn {

KeyValues KeyValues::kept(const at::Tensor& kept) const {
  const at::Tensor counts = kept.sum(1);
  const std::int64_t most = counts.numel() == 0 ? 0 : counts.max().item<std::int64_t>();
  // A stable sort puts what is kept first, in its order.
  const at::Tensor order =
      std::get<1>(kept.logical_not().sort(/*stable=*/std::optional(true), 1)).narrow(1, 0, most);
  const at::Tensor empty = kept.gather(1, order).logical_not();  // (batch, most)
  const auto taken = [&](const at::Tensor& x) {
    const at::Tensor index = order.view({order.size(0), 1, most, 1});
    return x.gather(2, index.expand({-1, x.size(1), -1, x.size(3)}))
        .masked_fill(empty.view({order.size(0), 1, most, 1}), 0);
  };
  return {.keys = taken(keys),
          .values = taken(values),
          .positions = positions.gather(1, order).masked_fill(empty, -1)};
}

void KeyValues::append(const at::Tensor& new_keys, const at::Tensor& new_values,
                       const at::Tensor& new_positions) {
  keys = at::cat({keys, new_keys}, 2);
  values = at::cat({values, new_values}, 2);
  positions = at::cat({positions, new_positions}, 1);
}

void KeyValues::prepare(const at::Tensor& lengths, std::int64_t reach) {
  if (slots() == 0 && lengths.numel() == 0) return;
  const at::Tensor ends = lengths.unsqueeze(1);  // (batch, 1)
  const at::Tensor held = (positions >= 0) & (positions < ends) & (positions >= ends - reach);
  TORCH_CHECK_VALUE(held.sum(1).equal(lengths.clamp_max(reach)),
                    "weir::KeyValues: expected rows cut back no further than into the last step, "
                    "but keys within reach of the next token are no longer held. Read the row "
                    "anew.");
  positions = positions.masked_fill(held.logical_not(), -1);
  // Dropping costs as much as a step; a quarter of the reach more slots make it rare.
  const std::int64_t slack = 16 + reach / 4;
  if (slots() - slack > reach) *this = kept(held);
}

KeyValues empty_key_values(std::int64_t batch, std::int64_t heads, std::int64_t dim_head,
                           const at::TensorOptions& options) {
  return {.keys = at::empty({batch, heads, 0, dim_head}, options),
          .values = at::empty({batch, heads, 0, dim_head}, options),
          .positions = at::empty({batch, 0}, options.dtype(at::kLong))};
}

KeyValues blank_key_values(std::int64_t batch, std::int64_t heads, std::int64_t slots,
                           std::int64_t dim_head, const at::TensorOptions& options) {
  const auto plain = options.requires_grad(false);
  return {.keys = at::zeros({batch, heads, slots, dim_head}, plain),
          .values = at::zeros({batch, heads, slots, dim_head}, plain)};
}

at::Tensor write_slots(at::Tensor& slots, const at::Tensor& rows, const at::Tensor& places,
                       std::int64_t length) {
  slots.scatter_(2, places.unsqueeze(1).unsqueeze(-1).expand_as(rows),
                 rows.to(slots.scalar_type()));
  return slots.narrow(2, 0, length);
}

}  // namespace weir::nn
