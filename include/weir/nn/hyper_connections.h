// SPDX-License-Identifier: Apache-2.0
// Hyper-connections: several residual streams in place of one, mixed around each layer by weights
// that depend on the token. Zhu et al. 2024, arXiv:2409.19606, algorithm 2. Per token, with
// streams R[0] ... R[S - 1]:
//
//   N = RMSNorm(R);  alpha = tanh(N A) s_a + alpha_0;  beta = tanh(N B) s_b + beta_0
//   input = sum_s alpha[s, 0] R[s];  M[t] = sum_s alpha[s, 1 + t] R[s]
//   R'[t] = M[t] + beta[t] branch(input)
//
//   x = expand_streams(x, 4);  x = connection->around(x, layer);  ...  x = reduce_streams(x, 4)
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <ostream>

#include "weir/export.h"
#include "weir/nn/module.h"

namespace weir::nn {

/// The arguments of the published `HyperConnections` that do not change its shapes.
struct HyperConnectionsOptions {
  std::int64_t num_residual_streams = 4;
  std::int64_t dim = 0;
  std::optional<std::int64_t> layer_index = std::nullopt;
  bool tanh = true;
  double dropout = 0;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = HyperConnectionsOptions;
    field("num_residual_streams", &Self::num_residual_streams,
          "Streams; with 1 a plain residual without parameters.");
    field("dim", &Self::dim, "Feature size of the tokens; required.");
    field("layer_index", &Self::layer_index,
          "The stream that the branch reads at first, modulo their number; none: a random one.");
    field("tanh", &Self::tanh, "Bound what tokens add to the weights.");
    field("dropout", &Self::dropout, "Share of the outcome to drop in training, in [0, 1).");
  }
};

/// x / |x| sqrt(dim) (gamma + 1), gamma 0 at first.
class WEIR_API HyperNormImpl : public torch::nn::Cloneable<HyperNormImpl> {
 public:
  explicit HyperNormImpl(std::int64_t dim_) : dim(dim_) { reset(); }

  void reset() override;
  at::Tensor forward(const at::Tensor& x);

  std::int64_t dim;
  at::Tensor gamma;
};

TORCH_MODULE(HyperNorm);

class WEIR_API HyperConnectionsImpl : public torch::nn::Cloneable<HyperConnectionsImpl> {
 public:
  /// What goes into the branch (batch, ..., dim), the mixed streams (batch * streams, ..., dim) and
  /// the weights of the branch's output in each (batch, streams, tokens, 1).
  struct Width {
    at::Tensor input, mixed, beta;
  };

  /// `branch` is registered under that name; it may be none. Throws c10::ValueError on options that
  /// do not fit.
  explicit HyperConnectionsImpl(const HyperConnectionsOptions& options,
                                std::shared_ptr<torch::nn::Module> branch = nullptr);

  /// Anew, the branch as a clone of its own.
  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// `streams` (batch * num_residual_streams, ..., dim), the streams of a batch row side by side.
  /// Throws c10::ValueError on another shape.
  Width width(const at::Tensor& streams);

  /// `output` (batch, ..., dim) of the branch -> the streams after it.
  at::Tensor depth(const at::Tensor& output, const Width& width);

  /// Both, `call(input)` being the branch.
  template <class Call>
  at::Tensor around(const at::Tensor& streams, const Call& call) {
    const Width before = width(streams);
    return depth(call(before.input), before);
  }

  HyperConnectionsOptions options;
  std::shared_ptr<torch::nn::Module> branch;
  // Undefined with one stream.
  at::Tensor static_alpha;                                      ///< (streams, 1 + streams)
  at::Tensor dynamic_alpha_fn, dynamic_alpha_scale;             ///< (dim, 1 + streams), ()
  at::Tensor static_beta, dynamic_beta_fn, dynamic_beta_scale;  ///< (streams), (dim), ()
  HyperNorm norm{nullptr};

 private:
  void register_weights();
  at::Tensor bounded(const at::Tensor& x) const;
};

WEIR_MODULE(HyperConnections);

/// (batch, ...) -> (batch * streams, ...): every row `streams` times.
WEIR_API at::Tensor expand_streams(const at::Tensor& x, std::int64_t streams);

/// (batch * streams, ...) -> (batch, ...): the sum over the streams.
WEIR_API at::Tensor reduce_streams(const at::Tensor& x, std::int64_t streams);

}  // namespace weir::nn
