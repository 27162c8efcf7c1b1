// SPDX-License-Identifier: Apache-2.0
#pragma once

namespace weir::train {

/// Calls torch's unary functions once each on one number, before threads share them. MKL up to
/// 2024.2 picks the code of such a function at its first call; when several threads make that call
/// at once, one may get another accuracy (https://github.com/pytorch/pytorch/issues/188792), and a
/// resumed run would differ in its last bits. Cheap; only the first call in a process does
/// anything.
void resolve_vector_math();

}  // namespace weir::train
