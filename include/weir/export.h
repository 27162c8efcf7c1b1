// SPDX-License-Identifier: Apache-2.0
// WEIR_API marks what libweir.so shows; everything else is hidden.
#pragma once

#define WEIR_API __attribute__((visibility("default")))
