// SPDX-License-Identifier: Apache-2.0
// weir inspect: counts that can be done by hand, a picture, messages.
#include <gmock/gmock.h>

#include "cli/program.h"

namespace weir::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

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
  EXPECT_THAT(result.out, HasSubstr("heads 0, 2: 24 of 64 blocks"));
  EXPECT_THAT(result.out, HasSubstr("heads 1, 3: 24 of 64 blocks"));
}

TEST_F(InspectTest, UnionsAndPatternsPerHead) {
  const std::vector<std::string> sizes = {"--n", "32", "--block-size", "8", "--local-attn-ctx",
                                          "8"};
  const auto inspect = [&](std::vector<std::string> words) {
    words.insert(words.begin(), "inspect");
    words.insert(words.end(), sizes.begin(), sizes.end());
    return weir(words).out;
  };
  const std::string local = "7 of 16 blocks (43.8 %), 228 of 1024 pairs (22.3 %)\n";
  // 8 classes of 4 positions, each 4 * 5 / 2 pairs.
  const std::string strided = "10 of 16 blocks (62.5 %), 80 of 1024 pairs (7.8 %)\n";
  EXPECT_EQ(inspect({"--pattern", "local,strided", "--heads", "4"}),
            "heads 0, 1: " + local + "heads 2, 3: " + strided);
  // Together 308; both have the 32 pairs of a position with itself.
  EXPECT_EQ(inspect({"--pattern", "local+strided"}),
            "10 of 16 blocks (62.5 %), 276 of 1024 pairs (27.0 %)\n");
}

TEST_F(InspectTest, LayoutsOfOnesOwn) {
  // 3 diagonal blocks of 36 pairs and a full one of 64; the second head has the diagonal alone.
  const auto result = weir({"inspect", "--pattern", "custom", "--n", "24", "--block-size", "8",
                            "--heads", "2", "--layout", "1..", ".1.", "1.1", "100", "010", "001"});
  EXPECT_EQ(result.out,
            "head 0: 4 of 9 blocks (44.4 %), 172 of 576 pairs (29.9 %)\n"
            "head 1: 3 of 9 blocks (33.3 %), 108 of 576 pairs (18.8 %)\n")
      << result.err;
  EXPECT_THAT(weir({"inspect", "--pattern", "custom", "--layout", "1.", "x1"}).err,
              HasSubstr("but row 1 has 'x'"));
}

TEST_F(InspectTest, Draws) {
  const auto result = weir({"inspect", "--pattern", "all", "--n", "32", "--block-size", "8",
                            "--out", at("pattern.svg")});
  EXPECT_EQ(result.code, 0) << result.err;
  const std::string svg = config::read_file(at("pattern.svg"));
  EXPECT_THAT(svg, ::testing::StartsWith("<svg xmlns=\"http://www.w3.org/2000/svg\""));
  EXPECT_THAT(svg, Not(HasSubstr("<text")));
  std::size_t squares = 0;
  for (std::size_t from = svg.find("opacity"); from != std::string::npos;
       from = svg.find("opacity", from + 1)) {
    ++squares;
  }
  EXPECT_EQ(squares, 10u);
}

TEST_F(InspectTest, DrawsASquareWithACaptionPerKindOfHead) {
  weir({"inspect", "--pattern", "local,strided", "--heads", "2", "--n", "32", "--block-size", "8",
        "--local-attn-ctx", "8", "--out", at("pattern.svg")});
  const std::string svg = config::read_file(at("pattern.svg"));
  EXPECT_THAT(svg, HasSubstr(">head 0</text>"));
  EXPECT_THAT(svg, HasSubstr("<rect x=\"536\" y=\"0\" width=\"512\""));
  EXPECT_THAT(svg, HasSubstr(">head 1</text>"));
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
