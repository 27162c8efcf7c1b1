// SPDX-License-Identifier: Apache-2.0
// The MLP runs once per distance; the bias of a pair of positions is looked up.
#include "weir/nn/dynamic_position_bias.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <torch/nn/modules/activation.h>
#include <torch/nn/modules/linear.h>

#include "nn/check.h"

namespace weir::nn {
namespace {

constexpr auto kName = "DynamicPositionBias";

}  // namespace

DynamicPositionBiasImpl::DynamicPositionBiasImpl(const DynamicPositionBiasOptions& options_)
    : options(options_) {
  check_size(kName, "dim", options.dim);
  check_size(kName, "heads", options.heads);
  reset();
}

void DynamicPositionBiasImpl::reset() {
  using torch::nn::Linear, torch::nn::SiLU;
  mlp = register_module(
      "mlp", torch::nn::Sequential(Linear(1, options.dim), SiLU(), Linear(options.dim, options.dim),
                                   SiLU(), Linear(options.dim, options.heads)));
}

at::Tensor DynamicPositionBiasImpl::forward(std::int64_t i, std::int64_t j) {
  TORCH_CHECK_VALUE(0 <= i && i <= j, "weir::", kName,
                    ": expected the i queries among the j positions, but got i ", i, " and j ", j,
                    ".");
  return position_bias(by_distance(j), i, j);
}

at::Tensor DynamicPositionBiasImpl::by_distance(std::int64_t count) {
  const at::Tensor distances = at::arange(count, mlp->parameters().front().options());
  return mlp->forward(distances.unsqueeze(-1)).t();
}

void DynamicPositionBiasImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::" << kName << "(dim=" << options.dim << ", heads=" << options.heads << ")";
}

at::Tensor position_bias(const at::Tensor& by_distance, std::int64_t i, std::int64_t j) {
  const at::Tensor positions = at::arange(j, by_distance.options().dtype(at::kLong));
  const at::Tensor distances =
      (positions.slice(0, j - i).unsqueeze(-1) - positions).abs();  // (i, j)
  return by_distance.index_select(1, distances.flatten()).unflatten(1, {i, j});
}

}  // namespace weir::nn
