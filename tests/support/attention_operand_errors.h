// SPDX-License-Identifier: Apache-2.0
// What every attention operator says of a query, key and value that do not fit each other, on CPU
// and on Meta.
#pragma once

#include <gtest/gtest.h>
#include <torch/torch.h>

#include <string>
#include <vector>

#include "support/message_of.h"

namespace weir::tests {

struct BadOperands {
  using Shape = std::vector<std::int64_t>;

  std::string words;
  Shape query = {2, 4, 40, 8}, key = {2, 2, 70, 8}, value = {2, 2, 70, 6};
  torch::Dtype dtype = torch::kFloat, key_dtype = torch::kFloat, value_dtype = torch::kFloat;
};

inline std::vector<BadOperands> bad_operands() {
  return {
      {.words = "`query` to have shape (batch, heads, n, dim), but got [4, 40, 8].",
       .query = {4, 40, 8}},
      {.words = "`query` to have shape (batch, heads, n, dim), but got [].", .query = {}},
      {.words = "`key` to have shape (batch, kv_heads, m, dim), but got [8].", .key = {8}},
      {.words = "`value` to have shape (batch, kv_heads, m, value_dim), but got [2, 70, 6].",
       .value = {2, 70, 6}},
      {.words = "`query` to be floating point, but got Long.", .dtype = torch::kLong},
      {.words = "`key` to have the dtype of `query`, Float, but got Double.",
       .key_dtype = torch::kDouble},
      {.words = "`value` to have the dtype of `query`, Float, but got BFloat16.",
       .value_dtype = torch::kBFloat16},
      {.words = "the last dimension of `query` to be at least 1, but got [2, 4, 40, 0].",
       .query = {2, 4, 40, 0}},
      {.words = "`key` to have batch 2 and dim 8 like `query`, but got [1, 2, 70, 8].",
       .key = {1, 2, 70, 8}},
      {.words = "`key` to have batch 2 and dim 8 like `query`, but got [2, 2, 70, 9].",
       .key = {2, 2, 70, 9}},
      {.words = "the heads of `key` to divide those of `query`, 4, but got 3.",
       .key = {2, 3, 70, 8}},
      {.words = "the heads of `key` to divide those of `query`, 4, but got 0.",
       .key = {2, 0, 70, 8}},
      {.words = "`value` to have shape [2, 2, 70] like `key` in its first 3 dimensions, but got "
                "[2, 2, 71, 6].",
       .value = {2, 2, 71, 6}},
  };
}

/// `call(query, key, value)` runs weir::<op>.
template <class Call>
void expect_operand_errors(const std::string& op, const Call& call) {
  for (const BadOperands& bad : bad_operands()) {
    for (const torch::Device device : {torch::Device(torch::kCPU), torch::Device(torch::kMeta)}) {
      const auto zeros = [&](const BadOperands::Shape& shape, torch::Dtype dtype) {
        return torch::zeros(shape, torch::dtype(dtype).device(device));
      };
      const auto query = zeros(bad.query, bad.dtype), key = zeros(bad.key, bad.key_dtype),
                 value = zeros(bad.value, bad.value_dtype);
      EXPECT_EQ(message_of([&] { call(query, key, value); }),
                "weir::" + op + ": expected " + bad.words);
    }
  }
}

}  // namespace weir::tests
