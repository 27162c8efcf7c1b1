// SPDX-License-Identifier: Apache-2.0
// Every message of block_sparse_attention, on CPU and on Meta: the checks stand behind the
// dispatcher.
#include <gtest/gtest.h>
#include <torch/torch.h>

#include <cmath>

#include "support/attention_operand_errors.h"
#include "support/message_of.h"
#include "weir/ops/block_sparse_attention.h"

namespace weir::tests {
namespace {

using ops::block_sparse_attention;
using ops::BlockSparseAttentionMasks;
using ops::BlockSparseAttentionOptions;
using torch::Tensor;
using Shape = std::vector<std::int64_t>;

struct Bad {
  std::string words;
  Shape layout = {2, 3}, key_mask = {2, 70}, mask = {40, 70};
  torch::Dtype layout_dtype = torch::kBool, key_mask_dtype = torch::kBool,
               mask_dtype = torch::kBool;
  BlockSparseAttentionOptions options = {};
};

void PrintTo(const Bad& bad, std::ostream* out) { *out << bad.words; }

class BlockSparseAttentionErrors : public ::testing::TestWithParam<Bad> {};

TEST_P(BlockSparseAttentionErrors, SayWhatWasExpectedAndFound) {
  const Bad& bad = GetParam();
  for (const torch::Device device : {torch::Device(torch::kCPU), torch::Device(torch::kMeta)}) {
    const auto zeros = [&](const Shape& shape, torch::Dtype dtype) {
      return torch::zeros(shape, torch::dtype(dtype).device(device));
    };
    EXPECT_EQ(
        message_of([&] {
          block_sparse_attention(zeros({2, 4, 40, 8}, torch::kFloat),
                                 zeros({2, 2, 70, 8}, torch::kFloat),
                                 zeros({2, 2, 70, 6}, torch::kFloat),
                                 {.layout = zeros(bad.layout, bad.layout_dtype),
                                  .key_mask = zeros(bad.key_mask, bad.key_mask_dtype),
                                  .mask = zeros(bad.mask, bad.mask_dtype)},
                                 bad.options);
        }),
        bad.words.empty() ? "no error" : "weir::block_sparse_attention: expected " + bad.words);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Options, BlockSparseAttentionErrors,
    ::testing::Values(
        Bad{.words = ""},
        Bad{.words = "`block_size` to lie in [1, 128], but got 0.", .options = {.block_size = 0}},
        Bad{.words = "`block_size` to lie in [1, 128], but got 129.",
            .options = {.block_size = 129}},
        Bad{.words = "`window` to be at least 1, but got 0.", .options = {.window = 0}},
        Bad{.words = "`stride` to be at least 1, but got 0.", .options = {.stride = 0}},
        Bad{.words = "`prefix` to be at least 0, but got -1.", .options = {.prefix = -1}},
        Bad{.words = "`local` to be at least 0, but got -1.", .options = {.local = -1}},
        Bad{.words = "`scale` to be finite, but got nan.", .options = {.scale = NAN}},
        Bad{.words = "`scale` to be finite, but got inf.", .options = {.scale = INFINITY}}));

TEST(BlockSparseAttentionErrors, Operands) {
  expect_operand_errors("block_sparse_attention",
                        [](const Tensor& query, const Tensor& key, const Tensor& value) {
                          block_sparse_attention(query, key, value);
                        });
}

INSTANTIATE_TEST_SUITE_P(
    Masks, BlockSparseAttentionErrors,
    ::testing::Values(
        Bad{.words = "", .layout = {4, 2, 3}},
        Bad{.words = "`layout` to be bool (true = keep), but got Float.",
            .layout_dtype = torch::kFloat},
        Bad{.words = "`layout` to have shape [2, 3] or [4, 2, 3] for blocks of 32, but got "
                     "[2, 2, 3].",
            .layout = {2, 2, 3}},
        Bad{.words = "`layout` to have shape [3, 5] or [4, 3, 5] for blocks of 16, but got "
                     "[2, 3].",
            .options = {.block_size = 16}},
        Bad{.words = "`key_mask` to be bool (true = keep), but got Long.",
            .key_mask_dtype = torch::kLong},
        Bad{.words = "`key_mask` to have shape [2, 70], but got [70].", .key_mask = {70}},
        Bad{.words = "`mask` to be bool (true = keep), but got Float.",
            .mask_dtype = torch::kFloat},
        Bad{.words = "`mask` to broadcast to [2, 4, 40, 70], but got [2, 40, 70].",
            .mask = {2, 40, 70}},
        Bad{.words = "`mask` to broadcast to [2, 4, 40, 70], but got [1, 2, 4, 40, 70].",
            .mask = {1, 2, 4, 40, 70}}));

struct BadPacking {
  std::string words;
  std::optional<std::vector<std::int64_t>> cu_seqlens, cu_seqlens_k;
  std::optional<Shape> document_ids;
  std::int64_t queries = 7;
  torch::Dtype dtype = torch::kLong;
};

TEST(BlockSparseAttentionErrors, Packing) {
  const std::vector<BadPacking> cases = {
      {"`cu_seqlens` with `cu_seqlens_k`, but got none.", {}, {{0, 7}}, {}},
      {"either `cu_seqlens` or `document_ids`, but got both.", {{0, 7}}, {}, {{2, 7}}},
      {"`cu_seqlens` to be int64 or int32, but got Float.", {{0, 7}}, {}, {}, 7, torch::kFloat},
      {"`cu_seqlens_k` with 7 keys and 5 queries, but got none.", {{0, 5}}, {}, {}, 5},
      {"`cu_seqlens_k` to have shape [2] like `cu_seqlens`, but got [3].",
       {{0, 7}},
       {{0, 3, 7}},
       {}},
      {"`cu_seqlens` to ascend from 0 to 7, but got [0, 5].", {{0, 5}}, {}, {}},
      {"`cu_seqlens` to ascend from 0 to 7, but got [1, 7].", {{1, 7}}, {}, {}},
      {"`cu_seqlens_k` to ascend from 0 to 7, but got [0, 4, 3, 7].",
       {{0, 1, 2, 7}},
       {{0, 4, 3, 7}},
       {}},
      {"as many keys as queries with `document_ids`, 5, but got 7.", {}, {}, {{2, 5}}, 5},
      {"`document_ids` to have shape [2, 7], but got [7].", {}, {}, {{7}}},
  };
  for (const BadPacking& bad : cases) {
    const auto numbers = [&](const auto& x) {
      return x ? std::optional(torch::tensor(*x, torch::kLong).to(bad.dtype)) : std::nullopt;
    };
    EXPECT_EQ(message_of([&] {
                const Tensor x = torch::zeros({2, 1, 7, 4});
                BlockSparseAttentionMasks masks;
                masks.cu_seqlens = numbers(bad.cu_seqlens);
                masks.cu_seqlens_k = numbers(bad.cu_seqlens_k);
                if (bad.document_ids)
                  masks.document_ids = torch::zeros(*bad.document_ids, bad.dtype);
                block_sparse_attention(x.narrow(2, 0, bad.queries), x, x, masks);
              }),
              "weir::block_sparse_attention: expected " + bad.words);
  }
}

TEST(BlockSparseAttentionErrors, ALayoutHasTheBlocksOfTheLongestSequence) {
  const Tensor x = torch::zeros({1, 2, 64, 4});
  const auto with_layout = [&](const Shape& shape) {
    return message_of([&] {
      block_sparse_attention(x, x, x,
                             {.layout = torch::ones(shape, torch::kBool),
                              .cu_seqlens = torch::tensor({0, 40, 64}, torch::kLong)},
                             {.block_size = 16});
    });
  };
  EXPECT_EQ(with_layout({3, 3}), "no error");
  EXPECT_EQ(with_layout({2, 3}),
            "weir::block_sparse_attention: expected `layout` to have the blocks of the longest "
            "sequence, but got [2, 3].");
}

TEST(BlockSparseAttentionErrors, DevicesMustAgree) {
  const Tensor x = torch::zeros({1, 1, 3, 2}), far = x.to(torch::kMeta);
  const auto on_meta = [](const Shape& shape) {
    return torch::ones(shape, torch::dtype(torch::kBool).device(torch::kMeta));
  };
  const auto expected = [](const std::string& name) {
    return "weir::block_sparse_attention: expected `" + name +
           "` on the device of `query`, cpu, but got meta.";
  };
  EXPECT_EQ(message_of([&] { block_sparse_attention(x, far, x); }), expected("key"));
  EXPECT_EQ(message_of([&] { block_sparse_attention(x, x, far); }), expected("value"));
  EXPECT_EQ(message_of([&] {
              block_sparse_attention(x, x, x, {.layout = on_meta({1, 1})});
            }),
            expected("layout"));
  EXPECT_EQ(message_of([&] {
              block_sparse_attention(x, x, x, {.key_mask = on_meta({1, 3})});
            }),
            expected("key_mask"));
  EXPECT_EQ(message_of([&] {
              block_sparse_attention(x, x, x, {.mask = on_meta({3, 3})});
            }),
            expected("mask"));
}

}  // namespace
}  // namespace weir::tests
