// SPDX-License-Identifier: Apache-2.0
// Which misspellings are found, which are too far, and that no input whatever breaks it.
#include "config/nearest.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>

namespace weir::config {
namespace {

const std::vector<std::string> kWords = {"model.dim", "model.depth", "train.steps", "train.lr",
                                         "seed"};

TEST(Nearest, FindsASlip) {
  EXPECT_EQ(nearest("model.dpeth", kWords), "model.depth");
  EXPECT_EQ(nearest("train.step", kWords), "train.steps");
  EXPECT_EQ(nearest("sed", kWords), "seed");
}

TEST(Nearest, IgnoresCase) { EXPECT_EQ(nearest("MODEL.DIM", kWords), "model.dim"); }

TEST(Nearest, CountsASwapOfNeighboursOnce) {
  // Two substitutions in four letters would be too many.
  EXPECT_EQ(nearest("sede", kWords), "seed");
  EXPECT_EQ(nearest("sxxd", kWords), "");
}

TEST(Nearest, FindsAKeyOfAnotherTableByItsLastComponent) {
  EXPECT_EQ(nearest("depth", kWords), "model.depth");
  EXPECT_EQ(nearest("train.dim", kWords), "model.dim");
}

TEST(Nearest, PrefersTheFewestEdits) {
  EXPECT_EQ(nearest("heads", {"head", "heads_kv", "heads"}), "heads");
  EXPECT_EQ(nearest("dims", {"dimx", "dim"}), "dimx");  // equals: the first
}

TEST(Nearest, IsEmptyWhenNothingIsNear) {
  EXPECT_EQ(nearest("colour", kWords), "");
  EXPECT_EQ(nearest("", kWords), "");
  EXPECT_EQ(nearest("x", {"y", ""}), "");
  EXPECT_EQ(nearest("model", {}), "");
}

RC_GTEST_PROP(NearestProperty, GivesOneOfTheWordsOrNothing,
              (const std::string& word, const std::vector<std::string>& words)) {
  const auto found = nearest(word, words);
  RC_ASSERT(found.empty() || std::find(words.begin(), words.end(), found) != words.end());
}

RC_GTEST_PROP(NearestProperty, FindsAKnownWordItself, ()) {
  const auto word = *rc::gen::nonEmpty(rc::gen::container<std::string>(rc::gen::inRange('a', 'z')));
  const auto words = *rc::gen::arbitrary<std::vector<std::string>>();
  auto all = words;
  all.push_back(word);
  RC_ASSERT(nearest(word, all).size() == word.size());
}

}  // namespace
}  // namespace weir::config
