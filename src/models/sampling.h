// SPDX-License-Identifier: Apache-2.0
// From the logits of one position to a token. Everything is in double and has no ties left to
// chance: among equal logits the smaller token comes first.
#pragma once

#include <cstdint>
#include <vector>

#include "weir/export.h"
#include "weir/models/generate.h"

namespace weir::models {

using Tokens = std::vector<std::int64_t>;
using Logits = std::vector<double>;

/// Divides positive logits of the tokens in `seen` by `penalty` and multiplies the others; once per
/// token.
WEIR_API void penalise_repetition(Logits& logits, const Tokens& seen, double penalty);

/// Sets all but the k largest logits to -inf; what ties with the k-th stays.
WEIR_API void keep_top_k(Logits& logits, std::int64_t k);

/// Sets to -inf what is not among the fewest likeliest tokens whose probability reaches `p`.
WEIR_API void keep_top_p(Logits& logits, double p);

/// The token whose piece of [0, 1), divided by softmax probability, holds `uniform`.
WEIR_API std::int64_t draw(const Logits& logits, double uniform);

/// All of it: the token after `seen`. `uniform` in [0, 1) decides where temperature is not 0.
/// Logits may be -inf, but not all of them, and neither NaN nor +inf.
WEIR_API std::int64_t sample(Logits logits, const Tokens& seen, const GenerateOptions& options,
                             double uniform);

/// The random number in [0, 1) that belongs to token `index` of row `row`.
WEIR_API double uniform(std::int64_t seed, std::int64_t row, std::int64_t index);

}  // namespace weir::models
