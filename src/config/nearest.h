// SPDX-License-Identifier: Apache-2.0
// The known word that a misspelt one was probably meant to be, for "did you mean" in messages.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "weir/export.h"

namespace weir::config {

/// The one of `words` nearest to `word` (dotted keys or plain words), the first of equals; empty
/// when none is near. Letter case does not count; a key also matches by its last component alone,
/// so that `depth` finds `model.depth`. Throws nothing.
WEIR_API std::string nearest(std::string_view word, const std::vector<std::string>& words);

}  // namespace weir::config
