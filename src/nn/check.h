// SPDX-License-Identifier: Apache-2.0
// The checks that constructors share. Every message reads
//
//   weir::<module>: expected `<option>` to ..., but got <value>.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string_view>

#include "weir/ops/coordinate_descent.h"

namespace weir::nn {

void check_at_least(std::string_view module, std::string_view option, std::int64_t value,
                    std::int64_t least);

/// The same for a size, which also is small enough for products of three to fit in int64.
void check_size(std::string_view module, std::string_view option, std::int64_t value,
                std::int64_t least = 1);

/// Finite and > 0.
void check_positive(std::string_view module, std::string_view option, double value);

/// In [0, 1): what dropout drops.
void check_share(std::string_view module, std::string_view option, double value);

/// `dim * mult` hidden units, rounded down: at least one, and few enough for a size.
void check_hidden(std::string_view module, std::string_view option, std::int64_t dim, double mult);

/// `x` (batch, n, dim): three dimensions, the last of size `dim`.
void check_tokens(std::string_view module, const at::Tensor& x, std::int64_t dim);

/// `mask`, if there is one: bool (batch, n), the tokens of `x` (batch, n, dim); with n two or more
/// sizes, as of an image.
void check_padding(std::string_view module, const std::optional<at::Tensor>& mask,
                   const at::Tensor& x, std::string_view name = "mask",
                   std::string_view x_name = "x");

/// What a module calls the options of its solver.
struct CoordinateDescentNames {
  std::string_view n_iters = "coor_descent_iters";
  std::string_view eps = "coor_descent_eps";
  std::string_view eps_init = "coor_descent_eps_init";
  std::string_view eps_decay = "coor_descent_eps_decay";
  std::string_view solver = "coor_descent_solver";
};

/// The solver of a module; the default names are the published `coor_descent_*`.
void check_coordinate_descent(std::string_view module, const ops::CoordinateDescentOptions& solver,
                              const CoordinateDescentNames& names = {});

/// The solver's options out of a module's, checked.
template <class Options>
ops::CoordinateDescentOptions coordinate_descent_options(std::string_view module,
                                                         const Options& options) {
  ops::CoordinateDescentOptions solver = {.n_iters = options.coor_descent_iters,
                                          .eps = options.coor_descent_eps,
                                          .eps_init = options.coor_descent_eps_init,
                                          .eps_decay = options.coor_descent_eps_decay,
                                          .solver = options.coor_descent_solver};
  check_coordinate_descent(module, solver);
  return solver;
}

}  // namespace weir::nn
