// SPDX-License-Identifier: Apache-2.0
#include "train/vector_math.h"

#include <torch/types.h>

namespace weir::train {

void resolve_vector_math() {
  static const bool resolved = [] {
    for (const auto dtype : {torch::kFloat, torch::kDouble}) {
      const torch::Tensor one = torch::full({1}, 0.5, dtype);
      for (const auto& function :
           {&at::sqrt, &at::exp, &at::expm1, &at::log, &at::log1p, &at::log2, &at::log10, &at::sin,
            &at::cos, &at::tan, &at::asin, &at::acos, &at::atan, &at::sinh, &at::cosh, &at::tanh,
            &at::erf, &at::erfc, &at::erfinv}) {
        function(one);
      }
    }
    return true;
  }();
  static_cast<void>(resolved);
}

}  // namespace weir::train
