// SPDX-License-Identifier: Apache-2.0
// Feed-forward layer whose activation is GELU or coordinate descent over the hidden units.
//
//   x (..., dim) -> LayerNorm -> Linear -> activation (..., dim * mult) -> Linear -> (..., dim)
//
// Coordinate descent replaces the hidden values by their soft top-k weights in [0, 1], or
// multiplies them with these.
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <string>

#include "weir/export.h"
#include "weir/nn/module.h"
#include "weir/ops/coordinate_descent.h"

namespace weir::nn {

/// The arguments of the published `FeedForward`, and the solver.
struct CoordinateDescentFeedForwardOptions {
  std::int64_t dim = 0;
  double mult = 4;
  bool use_coor_descent = false;
  std::int64_t coor_descent_iters = 20;
  std::optional<double> coor_descent_sparsity_k = std::nullopt;
  double coor_descent_eps = 0.1;
  std::optional<double> coor_descent_eps_init = 4.0;
  double coor_descent_eps_decay = 0.7;
  std::string coor_descent_solver = "iterative";
  bool coor_descent_gate = false;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = CoordinateDescentFeedForwardOptions;
    field("dim", &Self::dim, "Feature size of the tokens; required.");
    field("mult", &Self::mult, "Hidden units as a multiple of dim.");
    field("use_coor_descent", &Self::use_coor_descent, "Coordinate descent in place of GELU.");
    field("coor_descent_iters", &Self::coor_descent_iters, "Iterations of the iterative solver.");
    field("coor_descent_sparsity_k", &Self::coor_descent_sparsity_k,
          "Sum that the hidden values approach; none: a tenth of the hidden units.");
    field("coor_descent_eps", &Self::coor_descent_eps,
          "Entropy of the activation; smaller is harder.");
    field("coor_descent_eps_init", &Self::coor_descent_eps_init,
          "Entropy of the first iteration; none: coor_descent_eps.");
    field("coor_descent_eps_decay", &Self::coor_descent_eps_decay,
          "Factor on the entropy from one iteration to the next.");
    field("coor_descent_solver", &Self::coor_descent_solver,
          "iterative (coor_descent_iters steps) or exact (rows sum to k).");
    field("coor_descent_gate", &Self::coor_descent_gate,
          "Multiply the hidden values with the weights instead of replacing them.");
  }
};

class WEIR_API CoordinateDescentFeedForwardImpl
    : public torch::nn::Cloneable<CoordinateDescentFeedForwardImpl> {
 public:
  /// Throws c10::ValueError on options that do not fit.
  explicit CoordinateDescentFeedForwardImpl(const CoordinateDescentFeedForwardOptions& options);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// (..., dim) -> (..., dim). Throws c10::Error on a shape that does not fit.
  at::Tensor forward(const at::Tensor& x);

  /// Hidden units: dim * mult.
  std::int64_t hidden() const;

  CoordinateDescentFeedForwardOptions options;
  torch::nn::Sequential proj_in{nullptr};  ///< LayerNorm, Linear(dim, hidden)
  torch::nn::Linear proj_out{nullptr};

 private:
  ops::CoordinateDescentOptions solver_;
  double budget_ = 0;
};

WEIR_MODULE(CoordinateDescentFeedForward);

}  // namespace weir::nn
