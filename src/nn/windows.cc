// SPDX-License-Identifier: Apache-2.0
#include "nn/windows.h"

namespace weir::nn {

at::Tensor to_windows(const at::Tensor& map, std::int64_t w) {
  const std::int64_t down = map.size(1) / w, across = map.size(2) / w;
  const at::Tensor cut = map.unflatten(2, {across, w}).unflatten(1, {down, w});
  return cut.transpose(2, 3).flatten(3, 4).flatten(0, 2);  // of (batch, down, across, w, w, ...)
}

at::Tensor from_windows(const at::Tensor& windows, at::IntArrayRef sizes, std::int64_t w) {
  const std::int64_t down = sizes[1] / w, across = sizes[2] / w;
  const at::Tensor cut = windows.unflatten(1, {w, w}).unflatten(0, {sizes[0], down, across});
  return cut.transpose(2, 3).reshape(sizes);
}

}  // namespace weir::nn
