// SPDX-License-Identifier: Apache-2.0
// Denormal numbers cost 50-150 cycles each on x86 and carry nothing here: exponentials of far-off
// scores times small gradients. While this lives, the thread computes with zeros in their place.
#pragma once

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace weir::kernels {

class FlushDenormals {
 public:
#if defined(__SSE__)
  FlushDenormals() : before_(_mm_getcsr()) {
    _mm_setcsr(before_ | kFlushToZero | kDenormalsAreZero);
  }
  ~FlushDenormals() { _mm_setcsr(before_); }
#else
  FlushDenormals() {}  // user-provided, so that the variable is not called unused
#endif
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

#if defined(__SSE__)
 private:
  static constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
  unsigned before_;
#endif
};

}  // namespace weir::kernels
