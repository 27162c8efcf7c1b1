// SPDX-License-Identifier: Apache-2.0
// Heavy attention whose keys and values are rows of a table. Where every window of a sequence
// chooses keys of its own, projecting all tokens once costs less than projecting the chosen ones,
// and the gather has a gradient that is a sum by rows.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/constant_pad_nd.h>
#include <ATen/ops/embedding.h>
#include <ATen/ops/stack.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <vector>

#include "nn/rotary.h"
#include "weir/nn/heavy_attention.h"
#include "weir/ops/block_sparse_attention.h"

namespace weir::nn {
namespace {

// Gathered at a time where no gradient is wanted: W10 of docs/performance.md would gather 264 MB
// per route at once, in about the same time.
constexpr std::int64_t kRowsAtOnce = 4096;

}  // namespace

at::Tensor HeavyAttentionImpl::project(const at::Tensor& x, const at::Tensor& positions,
                                       const std::optional<at::Tensor>& inv_freq) {
  const at::Tensor slots = to_kv(norm(x)).unflatten(-1, {options.heads, 2, options.dim_head});
  if (!inv_freq) return slots;
  const auto halves = slots.unbind(3);  // (batch, n, heads, dim_head)
  const at::Tensor keys = rotated(halves[0].transpose(1, 2), positions, *inv_freq);
  return at::stack({keys.transpose(1, 2), halves[1]}, 3);
}

at::Tensor HeavyAttentionImpl::null_row() const { return at::stack({null_kv[0], null_kv[1]}, 1); }

at::Tensor HeavyAttentionImpl::forward_rows(const at::Tensor& x, const at::Tensor& table,
                                            const HeavyAttentionRoutes& routes,
                                            const HeavyAttentionInputs& inputs) {
  const at::Tensor of_x = queries(x, inputs);  // (batch, heads, n, dim_head)
  const std::int64_t batch = x.size(0), slots = 1 + routes.rows.size(2);
  // What is gathered for a gradient stays; else it need not leave the cache.
  const std::int64_t step =
      std::max<std::int64_t>(1, c10::GradMode::is_enabled() ? batch : kRowsAtOnce / slots);
  std::vector<at::Tensor> parts;
  for (std::int64_t begin = 0; begin < batch || parts.empty(); begin += step) {
    const auto part = [&](const at::Tensor& all) {
      return all.defined() ? all.narrow(0, begin, std::min(step, batch - begin)) : all;
    };
    parts.push_back(attend_rows(part(of_x), table,
                                {part(routes.rows), part(routes.mask), part(routes.scores)}));
  }
  return to_out(at::cat(parts).transpose(1, 2).flatten(2));
}

// Queries (batch, heads, n, dim_head) -> the same.
at::Tensor HeavyAttentionImpl::attend_rows(const at::Tensor& of_x, const at::Tensor& table,
                                           const HeavyAttentionRoutes& routes) const {
  const std::int64_t count = routes.rows.size(1), heads = options.heads / count;
  const auto of_routes = of_x.chunk(count, 1);
  // The heads of a route stand side by side: a row of the table is `count` rows of this view.
  const at::Tensor source = table.view({-1, heads * 2 * options.dim_head});
  std::vector<at::Tensor> parts;  // (batch, heads of the route, n, dim_head)
  for (std::int64_t route = 0; route < count; ++route) {
    const auto behind_null = [&](const at::Tensor& all, const at::Scalar& of_null) {
      return at::constant_pad_nd(all.select(1, route), {1, 0}, of_null);  // (batch, 1 + m)
    };
    const at::Tensor rows = behind_null(routes.rows, 0) * count + route;
    auto slots = at::embedding(source, rows)
                     .unflatten(-1, {heads, 2, options.dim_head})
                     .unbind(3);  // (batch, 1 + m, heads of the route, dim_head)
    if (routes.scores.defined()) {
      const at::Tensor factors =
          behind_null(routes.scores, 1).to(table.scalar_type()).unsqueeze(-1).unsqueeze(-1);
      if (options.multiply_keys_by_score) slots[0] = slots[0] * factors;
      slots[1] = slots[1] * factors;
    }
    parts.push_back(ops::block_sparse_attention(of_routes[static_cast<std::size_t>(route)],
                                                slots[0].transpose(1, 2), slots[1].transpose(1, 2),
                                                {.key_mask = behind_null(routes.mask, true)}));
  }
  return at::cat(parts, 1);
}

}  // namespace weir::nn
