// SPDX-License-Identifier: Apache-2.0
// Second derivatives: the gradient of an operator through its composite, with a graph of its own.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/csrc/autograd/autograd.h>

#include <cstddef>
#include <optional>

namespace weir::ops {

/// result[i] = gradient of sum(composite(operands) * `grad`) to operand i, for each of the first
/// `count` tensors of `saved` that requires it; differentiable any number of times. `composite`
/// gets those tensors as a list, apart even where one tensor is several; undefined ones stay so.
template <class Composite>
void differentiate_composite(const at::Tensor& grad, const torch::autograd::variable_list& saved,
                             std::size_t count, const Composite& composite,
                             torch::autograd::variable_list& result) {
  torch::autograd::variable_list operands(count), inputs;
  const auto wanted = [&](std::size_t i) { return saved[i].defined() && saved[i].requires_grad(); };
  for (std::size_t i = 0; i < count; ++i) {
    if (saved[i].defined()) operands[i] = saved[i].view_as(saved[i]);
    if (wanted(i)) inputs.push_back(operands[i]);
  }
  const at::Tensor output = composite(operands);
  const auto inner = torch::autograd::grad({output}, inputs, {grad}, std::nullopt,
                                           /*create_graph=*/true, /*allow_unused=*/true);
  std::size_t next = 0;
  for (std::size_t i = 0; i < count; ++i) {
    if (wanted(i)) result[i] = inner[next++];
  }
}

}  // namespace weir::ops
