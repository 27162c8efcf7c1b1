// SPDX-License-Identifier: Apache-2.0
// attn_mode taken apart: "local+strided,all" is two patterns, the first a union.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "weir/nn/sparse_pattern.h"

namespace weir::nn {

/// What one group of heads sees: `mode`, and positions nearer than ctx if `local`.
struct SparseMode {
  std::string mode;  // all, local, strided, fixed, custom
  bool local = false;
};

/// `text` at each `separator`, without the spaces around the parts.
std::vector<std::string> split_modes(std::string_view text, char separator);

/// The modes of the groups of heads, all options checked. Throws c10::ValueError.
std::vector<SparseMode> checked_modes(const SparseAttentionOptions& options);

}  // namespace weir::nn
