// SPDX-License-Identifier: Apache-2.0
// weir doctor: its facts, one per line.
#include <gmock/gmock.h>

#include "cli/program.h"

namespace weir::cli {
namespace {

using ::testing::ContainsRegex;

TEST(DoctorTest, SaysWhatItRunsOn) {
  const auto result = weir({"doctor"});
  for (const char* fact :
       {"^weir: [0-9.]+\n", "\ntorch: built for [0-9.]+, found [0-9.]+\n",
        "\ninstruction set: [A-Z0-9_]+\n", "\nthreads: [0-9]+, seen at work in OpenMP: [0-9]+\n",
        "\nOpenMP runtime: /.*gomp", "\nCUDA: ", "\nmemory available: [0-9.]+ GiB\n",
        "\n(default corpus: Python standard library|problem: )"}) {
    EXPECT_THAT(result.out, ContainsRegex(fact));
  }
  EXPECT_EQ(result.code == 0, result.out.ends_with("\nok\n")) << result.out;
}

}  // namespace
}  // namespace weir::cli
