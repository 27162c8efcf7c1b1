// SPDX-License-Identifier: Apache-2.0
// Hyper-connections: weights from the streams, streams from the weights.
#include "weir/nn/hyper_connections.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dropout.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <utility>

#include "nn/check.h"

namespace weir::nn {
namespace {

constexpr auto kName = "HyperConnections";
constexpr double kScale = 0.01;  // of what tokens add to the weights, at first

}  // namespace

void HyperNormImpl::reset() { gamma = register_parameter("gamma", at::zeros({dim})); }

at::Tensor HyperNormImpl::forward(const at::Tensor& x) {
  const at::Tensor length = x.norm(2, -1, /*keepdim=*/true).clamp_min(1e-12);
  return x / length * std::sqrt(static_cast<double>(dim)) * (gamma + 1);
}

HyperConnectionsImpl::HyperConnectionsImpl(const HyperConnectionsOptions& options_,
                                           std::shared_ptr<torch::nn::Module> branch_)
    : options(options_), branch(std::move(branch_)) {
  check_size(kName, "num_residual_streams", options.num_residual_streams);
  check_size(kName, "dim", options.dim);
  check_at_least(kName, "layer_index", options.layer_index.value_or(0), 0);
  check_share(kName, "dropout", options.dropout);
  register_weights();
}

void HyperConnectionsImpl::reset() {
  if (branch) branch = branch->clone();
  register_weights();
}

void HyperConnectionsImpl::register_weights() {
  if (branch) register_module("branch", branch);
  const std::int64_t streams = options.num_residual_streams, dim = options.dim;
  if (streams == 1) return;
  const std::int64_t index =
      options.layer_index.value_or(at::randint(streams, {}, at::kLong).item<std::int64_t>());
  at::Tensor read = at::zeros({streams, 1});
  read[index % streams] = 1;
  static_alpha = register_parameter("static_alpha", at::cat({read, at::eye(streams)}, 1));
  dynamic_alpha_fn = register_parameter("dynamic_alpha_fn", at::zeros({dim, streams + 1}));
  dynamic_alpha_scale = register_parameter("dynamic_alpha_scale", at::full({}, kScale));
  static_beta = register_parameter("static_beta", at::ones({streams}));
  dynamic_beta_fn = register_parameter("dynamic_beta_fn", at::zeros({dim}));
  dynamic_beta_scale = register_parameter("dynamic_beta_scale", at::full({}, kScale));
  norm = register_module("norm", HyperNorm(dim));
}

HyperConnectionsImpl::Width HyperConnectionsImpl::width(const at::Tensor& streams) {
  const std::int64_t count = options.num_residual_streams;
  TORCH_CHECK_VALUE(
      streams.dim() >= 2 && streams.size(0) % count == 0 && streams.size(-1) == options.dim,
      "weir::", kName, ": expected streams of shape [batch * ", count, ", ..., ", options.dim,
      "], but got ", streams.sizes(), ".");
  if (count == 1) return {.input = streams, .mixed = streams, .beta = {}};
  const std::int64_t batch = streams.size(0) / count;
  std::int64_t tokens = 1;
  for (const std::int64_t size : streams.sizes().slice(1, streams.dim() - 2)) tokens *= size;
  const at::Tensor r = streams.reshape({batch, count, tokens, options.dim});
  const at::Tensor normed = norm(r);
  const at::Tensor alpha = bounded(at::matmul(normed, dynamic_alpha_fn)) * dynamic_alpha_scale +
                           static_alpha.unsqueeze(1);  // (batch, s, tokens, 1 + t)
  const at::Tensor beta = bounded(at::matmul(normed, dynamic_beta_fn)) * dynamic_beta_scale +
                          static_beta.unsqueeze(-1);  // (batch, s, tokens)
  const at::Tensor mixed =                            // (batch, 1 + t, tokens, dim)
      at::matmul(alpha.permute({0, 2, 3, 1}), r.transpose(1, 2)).transpose(1, 2);
  auto sizes = streams.sizes().vec();
  const at::Tensor residuals = mixed.narrow(1, 1, count).reshape(sizes);
  sizes.front() = batch;
  return {
      .input = mixed.select(1, 0).reshape(sizes), .mixed = residuals, .beta = beta.unsqueeze(-1)};
}

at::Tensor HyperConnectionsImpl::depth(const at::Tensor& output, const Width& width) {
  if (options.num_residual_streams == 1) return output + width.mixed;
  const std::int64_t batch = width.beta.size(0), tokens = width.beta.size(2);
  const at::Tensor added = output.reshape({batch, 1, tokens, options.dim}) * width.beta;
  return at::dropout(width.mixed + added.view(width.mixed.sizes()), options.dropout, is_training());
}

at::Tensor HyperConnectionsImpl::bounded(const at::Tensor& x) const {
  return options.tanh ? x.tanh() : x;
}

void HyperConnectionsImpl::pretty_print(std::ostream& stream) const {
  stream << "weir::nn::" << kName << "(num_residual_streams=" << options.num_residual_streams
         << ", dim=" << options.dim << ")";
}

at::Tensor expand_streams(const at::Tensor& x, std::int64_t streams) {
  return streams == 1 ? x : x.repeat_interleave(streams, 0);
}

at::Tensor reduce_streams(const at::Tensor& x, std::int64_t streams) {
  return streams == 1 ? x : x.unflatten(0, {x.size(0) / streams, streams}).sum(1);
}

}  // namespace weir::nn
