// SPDX-License-Identifier: Apache-2.0
// The words of the errors that constructors share.
#include "nn/check.h"

#include <c10/util/Exception.h>

#include <cmath>

namespace weir::nn {

void check_at_least(std::string_view module, std::string_view option, std::int64_t value,
                    std::int64_t least) {
  TORCH_CHECK_VALUE(value >= least, "weir::", module, ": expected `", option, "` to be at least ",
                    least, ", but got ", value, ".");
}

void check_size(std::string_view module, std::string_view option, std::int64_t value,
                std::int64_t least) {
  constexpr std::int64_t kLargest = std::int64_t{1} << 30;
  check_at_least(module, option, value, least);
  TORCH_CHECK_VALUE(value <= kLargest, "weir::", module, ": expected `", option, "` to be at most ",
                    kLargest, ", but got ", value, ".");
}

void check_positive(std::string_view module, std::string_view option, double value) {
  TORCH_CHECK_VALUE(std::isfinite(value) && value > 0, "weir::", module, ": expected `", option,
                    "` to be finite and positive, but got ", value, ".");
}

void check_share(std::string_view module, std::string_view option, double value) {
  TORCH_CHECK_VALUE(value >= 0 && value < 1, "weir::", module, ": expected `", option,
                    "` to lie in [0, 1), but got ", value, ".");
}

void check_hidden(std::string_view module, std::string_view option, std::int64_t dim, double mult) {
  constexpr std::int64_t kLargest = std::int64_t{1} << 30;
  const double units = static_cast<double>(dim) * mult;
  TORCH_CHECK_VALUE(units >= 1 && units <= kLargest, "weir::", module, ": expected `dim` * `",
                    option, "` to lie in [1, ", kLargest, "], but got ", dim, " * ", mult, ".");
}

void check_tokens(std::string_view module, const at::Tensor& x, std::int64_t dim) {
  TORCH_CHECK_VALUE(x.dim() == 3 && x.size(-1) == dim, "weir::", module,
                    ": expected `x` to have shape [batch, n, ", dim, "], but got ", x.sizes(), ".");
}

void check_padding(std::string_view module, const std::optional<at::Tensor>& mask,
                   const at::Tensor& x, std::string_view name, std::string_view x_name) {
  if (!mask) return;
  TORCH_CHECK_TYPE(mask->scalar_type() == at::kBool, "weir::", module, ": expected `", name,
                   "` to be bool (true = keep), but got ", mask->scalar_type(), ".");
  const auto places = x.sizes().slice(0, x.dim() - 1);
  TORCH_CHECK_VALUE(mask->sizes() == places, "weir::", module, ": expected `", name,
                    "` to have shape ", places, " like the tokens of `", x_name, "`, but got ",
                    mask->sizes(), ".");
}

void check_coordinate_descent(std::string_view module, const ops::CoordinateDescentOptions& solver,
                              const CoordinateDescentNames& names) {
  check_at_least(module, names.n_iters, solver.n_iters, 1);
  constexpr double kSmallestEps = 1e-12;  // that of the operator
  TORCH_CHECK_VALUE(std::isfinite(solver.eps) && solver.eps >= kSmallestEps, "weir::", module,
                    ": expected `", names.eps, "` to be finite and at least ", kSmallestEps,
                    ", but got ", solver.eps, ".");
  if (solver.eps_init) check_positive(module, names.eps_init, *solver.eps_init);
  TORCH_CHECK_VALUE(solver.eps_decay > 0 && solver.eps_decay <= 1, "weir::", module, ": expected `",
                    names.eps_decay, "` to lie in (0, 1], but got ", solver.eps_decay, ".");
  TORCH_CHECK_VALUE(solver.solver == "iterative" || solver.solver == "exact", "weir::", module,
                    ": expected `", names.solver, "` to be \"iterative\" or \"exact\", but got \"",
                    solver.solver, "\".");
}

}  // namespace weir::nn
