// SPDX-License-Identifier: Apache-2.0
// Every schema of the library. `_<op>` and `_<op>_backward` are the private pair that devices
// implement; the public operator is composed of it, so that C++, Python and tracing meet the same
// checks.
#include <torch/library.h>

TORCH_LIBRARY(weir, m) {
  m.def(
      "coordinate_descent(Tensor scores, Tensor budget, *, Tensor? mask=None, int n_iters=20, "
      "float eps=0.1, float? eps_init=None, float eps_decay=1.0, str solver=\"iterative\") -> "
      "Tensor");
  m.def(
      "coordinate_descent.number(Tensor scores, float budget, *, Tensor? mask=None, int "
      "n_iters=20, "
      "float eps=0.1, float? eps_init=None, float eps_decay=1.0, str solver=\"iterative\") -> "
      "Tensor");
  m.def(
      "_coordinate_descent(Tensor scores, Tensor budget, Tensor? mask, int n_iters, float eps, "
      "float? eps_init, float eps_decay, str solver) -> (Tensor output, Tensor trace)");
  m.def(
      "_coordinate_descent_backward(Tensor grad, Tensor scores, Tensor budget, Tensor? mask, "
      "Tensor trace, int n_iters, float eps, float? eps_init, float eps_decay, str solver) "
      "-> (Tensor grad_scores, Tensor grad_budget)");
  m.def(
      "topk(Tensor scores, int k, *, float coor_descent_k_ratio=1.125, int n_iters=20, float "
      "eps=0.1, "
      "float? eps_init=None, float eps_decay=1.0, Tensor? mask=None, str solver=\"iterative\", "
      "bool non_differentiable=False) "
      "-> (Tensor values, Tensor indices, Tensor coor_descent_values, Tensor gates)");
}
