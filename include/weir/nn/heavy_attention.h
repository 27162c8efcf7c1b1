// SPDX-License-Identifier: Apache-2.0
// The heavy branch of CoLT5's attention: few queries attend to few keys, which one or several
// routes have chosen, and to a learned null key.
//
//   x (batch, n, dim), context (batch, routes, m, dim) -> norm -> q, k, v (batch, heads, ...,
//   dim_head) head h reads route h / (heads / routes);  v times the scores of the context
//   -> softmax over the null key and the m -> (batch, n, dim)
#pragma once

#include <ATen/core/Tensor.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/any.h>
#include <torch/nn/modules/linear.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <utility>
#include <vector>

#include "weir/export.h"
#include "weir/nn/l2_rms_norm.h"
#include "weir/nn/module.h"

namespace weir::nn {

/// The arguments of the published `Attention`.
struct HeavyAttentionOptions {
  std::int64_t dim = 0;
  std::int64_t dim_head = 64;
  std::int64_t heads = 8;
  bool multiply_keys_by_score = false;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = HeavyAttentionOptions;
    field("dim", &Self::dim, "Feature size of the tokens; required.");
    field("dim_head", &Self::dim_head, "Feature size of one head.");
    field("heads", &Self::heads, "Number of heads.");
    field("multiply_keys_by_score", &Self::multiply_keys_by_score,
          "Multiply keys, not only values, with the scores of the context.");
  }
};

/// Optional tensors of `forward`.
struct HeavyAttentionInputs {
  std::optional<at::Tensor> context = std::nullopt;
  std::optional<at::Tensor> mask = std::nullopt;
  std::optional<at::Tensor> normalized_scores_kv = std::nullopt;
  std::optional<at::Tensor> normalized_scores_q = std::nullopt;
  std::optional<at::Tensor> inv_freq = std::nullopt;
  std::optional<at::Tensor> positions_q = std::nullopt;
  std::optional<at::Tensor> positions_kv = std::nullopt;

  template <class Visitor>
  static void fields(Visitor&& field) {
    using Self = HeavyAttentionInputs;
    field("context", &Self::context,
          "What is attended to: (batch, m, dim) or (batch, routes, m, dim), routes dividing heads; "
          "none: x.");
    field("mask", &Self::mask,
          "Of the context: bool (batch, m) or (batch, routes, m), true = keep.");
    field("normalized_scores_kv", &Self::normalized_scores_kv,
          "Of the context, (batch, m) or (batch, routes, m): factors on the values.");
    field("normalized_scores_q", &Self::normalized_scores_q,
          "Of x, (batch, n): factors on the queries.");
    field("inv_freq", &Self::inv_freq,
          "Rotary embedding by angles position * inv_freq (dim_head / 2); none: without.");
    field("positions_q", &Self::positions_q,
          "Where x stands, int64 (batch, n); none: 0 ... n - 1.");
    field("positions_kv", &Self::positions_kv,
          "Where the context stands, int64 (batch, m) or (batch, routes, m); none: 0 ... m - 1.");
  }
};

/// Which rows of a table the queries attend to.
struct HeavyAttentionRoutes {
  at::Tensor rows;    ///< int64 (batch, routes, m)
  at::Tensor mask;    ///< bool, the same shape; true = keep
  at::Tensor scores;  ///< the same shape: factors on the values; undefined: 1
};

/// Ainslie et al. 2023, "CoLT5", arXiv:2303.09752.
class WEIR_API HeavyAttentionImpl : public torch::nn::Cloneable<HeavyAttentionImpl> {
 public:
  /// Throws c10::ValueError on options that do not fit.
  explicit HeavyAttentionImpl(const HeavyAttentionOptions& options);

  void reset() override;
  void pretty_print(std::ostream& stream) const override;

  /// `x` (batch, n, dim) -> (batch, n, dim). Routes divide heads. The null key is never masked,
  /// rotated or scaled: a query all of whose keys are masked gives the null value. Throws
  /// c10::Error on shapes that do not fit.
  at::Tensor forward(const at::Tensor& x, const HeavyAttentionInputs& inputs = {});

  /// The keys and values of all heads for `x` (batch, n, dim): (batch, n, heads, 2, dim_head), keys
  /// rotated by `positions`, int64 (batch, n), if there are frequencies `inv_freq`.
  at::Tensor project(const at::Tensor& x, const at::Tensor& positions,
                     const std::optional<at::Tensor>& inv_freq);

  /// The null key and value, (heads, 2, dim_head).
  at::Tensor null_row() const;

  /// `forward` for `x` (batch, n, dim) whose keys and values are rows of `table` (..., heads, 2,
  /// dim_head), contiguous, whose first row is `null_row`. Many queries may share a row: each token
  /// is projected once. Of `inputs` it takes what belongs to the queries.
  at::Tensor forward_rows(const at::Tensor& x, const at::Tensor& table,
                          const HeavyAttentionRoutes& routes, const HeavyAttentionInputs& inputs);

  HeavyAttentionOptions options;
  L2RMSNorm norm{nullptr};
  torch::nn::Linear to_q{nullptr};
  torch::nn::Linear to_kv{nullptr};  ///< rows of head h: its keys, then its values
  torch::nn::Linear to_out{nullptr};
  at::Tensor null_kv;  ///< (2, heads, dim_head)

 protected:
  FORWARD_HAS_DEFAULT_ARGS({1, torch::nn::AnyValue(HeavyAttentionInputs())})

 private:
  at::Tensor queries(const at::Tensor& x, const HeavyAttentionInputs& inputs);
  at::Tensor attend_rows(const at::Tensor& of_x, const at::Tensor& table,
                         const HeavyAttentionRoutes& routes) const;
  std::pair<at::Tensor, at::Tensor> keys_and_values(const at::Tensor& context);
};

WEIR_MODULE(HeavyAttention);

}  // namespace weir::nn
