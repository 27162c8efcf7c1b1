// SPDX-License-Identifier: Apache-2.0
// Routers, heavy attention, and the way back to the places of the queries.
#include "nn/heavy_branch.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>
#include <c10/util/Exception.h>

#include "weir/nn/route_back.h"

namespace weir::nn {

at::Tensor HeavyBranch::forward(const RoutedFrom& queries, const RoutedFrom& context) {
  const auto q = q_router->forward(queries.tokens, queries.num_tokens, queries.inputs);
  const auto kv = kv_router->forward(context.tokens, context.num_tokens, context.inputs);
  HeavyAttentionInputs inputs = {.context = context.tokens, .mask = context.inputs.mask};
  if (kv.indices) {
    inputs.context = kv.routed_tokens;
    inputs.mask = kv.routed_mask;
    inputs.normalized_scores_kv = kv.scores;
  }
  if (multiply_queries_by_score) inputs.normalized_scores_q = q.scores;
  if (inv_freq) {
    inputs.inv_freq = inv_freq;
    inputs.positions_q = q.indices;
    inputs.positions_kv = kv.indices;
  }
  const at::Tensor& x = queries.tokens;
  const at::Tensor out = attention->forward(q.routed_tokens, inputs);
  if (!q.indices) return out.to(x.scalar_type());
  const at::Tensor rest = null_q_token.defined() ? null_q_token.to(x.scalar_type())
                                                 : at::zeros({x.size(2)}, x.options());
  return route_back(rest.expand(x.sizes()), out * q.scores.unsqueeze(-1), *q.indices);
}

void check_routes(std::string_view module, std::string_view option, std::int64_t routes,
                  std::string_view heads_option, std::int64_t heads) {
  TORCH_CHECK_VALUE(heads % routes == 0, "weir::", module, ": expected `", option, "` to divide `",
                    heads_option, "`, ", heads, ", but got ", routes, ".");
}

}  // namespace weir::nn
