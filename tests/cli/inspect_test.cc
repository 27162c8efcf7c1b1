// SPDX-License-Identifier: Apache-2.0
// weir inspect: counts that can be done by hand, a picture, messages.
#include <gmock/gmock.h>

#include "cli/program.h"

namespace weir::cli {
namespace {

using ::testing::HasSubstr;

using InspectTest = Workplace;

TEST_F(InspectTest, CountsBlocksAndPairs) {
  // 4 blocks of 8: 10 on or below the diagonal; 32 * 33 / 2 pairs.
  EXPECT_EQ(weir({"inspect", "--pattern", "all", "--n", "32", "--block-size", "8"}).out,
            "10 of 16 blocks (62.5 %), 528 of 1024 pairs (51.6 %)\n");
  // 4 diagonal blocks and the 3 below them; 8 keys each, but for the first 7 positions.
  EXPECT_EQ(weir({"inspect", "--pattern", "local", "--local-attn-ctx", "8", "--n", "32",
                  "--block-size", "8"})
                .out,
            "7 of 16 blocks (43.8 %), 228 of 1024 pairs (22.3 %)\n");
  EXPECT_EQ(weir({"inspect", "--pattern", "strided", "--local-attn-ctx", "16", "--n", "32",
                  "--block-size", "16", "--bidirectional"})
                .out,
            "4 of 4 blocks (100.0 %), 64 of 1024 pairs (6.2 %)\n");
}

TEST_F(InspectTest, HeadsThatDiffer) {
  const auto result = weir({"inspect", "--pattern", "fixed", "--local-attn-ctx", "16", "--n", "32",
                            "--block-size", "4", "--heads", "4", "--num-verts", "2"});
  EXPECT_EQ(result.code, 0) << result.err;
  EXPECT_THAT(result.out, HasSubstr("heads 0 + 2 i: 24 of 64 blocks"));
  EXPECT_THAT(result.out, HasSubstr("heads 1 + 2 i: 24 of 64 blocks"));
}

TEST_F(InspectTest, Draws) {
  const auto result = weir({"inspect", "--pattern", "all", "--n", "32", "--block-size", "8",
                            "--out", at("pattern.svg")});
  EXPECT_EQ(result.code, 0) << result.err;
  const std::string svg = config::read_file(at("pattern.svg"));
  EXPECT_THAT(svg, ::testing::StartsWith("<svg xmlns=\"http://www.w3.org/2000/svg\""));
  std::size_t squares = 0;
  for (std::size_t from = svg.find("opacity"); from != std::string::npos;
       from = svg.find("opacity", from + 1)) {
    ++squares;
  }
  EXPECT_EQ(squares, 10u);
}

TEST_F(InspectTest, Messages) {
  EXPECT_THAT(weir({"inspect"}).err, HasSubstr("--pattern is required"));
  EXPECT_THAT(weir({"inspect", "--pattern", "local"}).err,
              HasSubstr("expected `local_attn_ctx` with `attn_mode` \"local\""));
  EXPECT_THAT(weir({"inspect", "--pattern", "all", "--n", "0"}).err,
              HasSubstr("--n: expected 1 to 16384, but got 0"));
  const auto misspelt = weir({"inspect", "--pattern", "all", "--block-sise", "8"});
  EXPECT_NE(misspelt.code, 0);
  EXPECT_THAT(misspelt.err, HasSubstr("--block-size"));
}

}  // namespace
}  // namespace weir::cli
