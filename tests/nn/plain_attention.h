// SPDX-License-Identifier: Apache-2.0
// The attention written out in scalar double, one query at a time, sharing nothing with src.
#pragma once

#include <torch/torch.h>

#include <cmath>
#include <string>
#include <vector>

#include "support/textbook_coordinate_descent.h"
#include "weir/nn/coordinate_descent_attention.h"

namespace weir::nn {

/// Softmax over the `k` scores whose `rank` is largest, of equal ones the first.
inline std::vector<double> plain_softmax(const std::vector<double>& scores,
                                         const std::vector<double>& rank, std::int64_t k) {
  std::vector<double> weights(scores.size());
  double sum = 0;
  for (std::size_t j = 0; j < scores.size(); ++j) {
    std::int64_t before = 0;
    for (std::size_t other = 0; other < scores.size(); ++other) {
      before += rank[other] > rank[j] || (rank[other] == rank[j] && other < j) ? 1 : 0;
    }
    weights[j] = before < k ? std::exp(scores[j]) : 0;
    sum += weights[j];
  }
  for (double& weight : weights) weight /= sum;
  return weights;
}

/// The coordinate-descent weights of one row of scores, all of them visible.
inline std::vector<double> plain_weights(const CoordinateDescentAttentionOptions& options,
                                         const std::vector<double>& scores, double k) {
  const tests::TextbookRow row = {scores, std::vector<bool>(scores.size(), true), k};
  const double eps = options.coor_descent_eps;
  std::vector<double> weights(scores.size());
  if (options.coor_descent_solver == "iterative") {
    const auto schedule = tests::textbook_schedule(options.coor_descent_iters, eps,
                                                   options.coor_descent_eps_init.value_or(eps),
                                                   options.coor_descent_eps_decay);
    weights = tests::textbook_forward(row, schedule).weights;
  } else {
    const double c = tests::textbook_exact_threshold(row, eps);
    for (std::size_t j = 0; j < scores.size(); ++j) {
      weights[j] = std::exp(std::min(scores[j] - c, 0.0) / eps);
    }
  }
  if (!options.coor_descent_normalize) return weights;
  double sum = 0;
  for (const double weight : weights) sum += weight;
  for (double& weight : weights) weight /= sum;
  return weights;
}

/// forward(x) of `attention`, for double parameters and x (batch, n, dim).
inline at::Tensor plain_attention(const CoordinateDescentAttentionImpl& attention,
                                  const at::Tensor& x) {
  torch::NoGradGuard no_grad;
  const auto& options = attention.options;
  const auto batch = x.size(0), n = x.size(1), nulls = options.attn_null_kv, e = options.dim_head;
  const at::Tensor centred = x - x.mean(-1, true);
  const at::Tensor normed =
      centred / (centred.square().mean(-1, true) + 1e-5).sqrt() * attention.norm->weight +
      attention.norm->bias;
  const auto qkv = normed.matmul(attention.to_qkv->weight.t()).chunk(3, -1);
  const std::int64_t group = options.heads / options.route_heads(),
                     width = options.attn_route_dim_head;
  const auto route = attention.to_route_qk
                         ? normed.matmul(attention.to_route_qk->weight.t()).chunk(2, -1)
                         : std::vector<at::Tensor>();
  at::Tensor merged = at::zeros({batch, n, options.heads * e}, x.options());
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t h = 0; h < options.heads; ++h) {
      const auto head = [&](std::size_t part) {
        return qkv[part][b].narrow(-1, h * e, e);
      };  // (n, e)
      const at::Tensor keys = at::cat({attention.null_kv[0][h], head(1)});
      const at::Tensor values = at::cat({attention.null_kv[1][h], head(2)});
      at::Tensor route_queries, route_keys;
      if (!route.empty()) {
        route_queries = route[0][b].narrow(-1, h / group * width, width);
        route_keys = at::cat(
            {attention.null_route_k[h / group], route[1][b].narrow(-1, h / group * width, width)});
      }
      for (std::int64_t i = 0; i < n; ++i) {
        double k = options.coor_descent_sparsity_k;
        if (options.learned_sparsity_k) {
          const auto& linear = attention.to_learned_k;
          const double logit =
              (normed[b][i].dot(linear->weight[h]) + linear->bias[h]).item<double>();
          k = 1 + (k - 1) / (1 + std::exp(-logit));
        }
        std::vector<double> scores, rank;
        for (std::int64_t j = 0; j <= nulls + i; ++j) {
          scores.push_back(head(0)[i].dot(keys[j]).item<double>() / std::sqrt(e));
        }
        for (std::int64_t j = 0; !route.empty() && j <= nulls + i; ++j) {
          rank.push_back(route_queries[i].dot(route_keys[j]).item<double>());
        }
        const std::string kind = options.kind();
        const auto weights =
            kind == "coordinate_descent" ? plain_weights(options, scores, k)
            : kind == "softmax"
                ? plain_softmax(scores, scores, n + nulls)
                : plain_softmax(scores, kind == "top_k" ? scores : rank, options.attn_top_k);
        at::Tensor out = merged[b][i].narrow(-1, h * e, e);
        for (std::size_t j = 0; j < weights.size(); ++j) {
          out.add_(values[static_cast<std::int64_t>(j)], weights[j]);
        }
      }
    }
  }
  return merged.matmul(attention.to_out->weight.t());
}

}  // namespace weir::nn
