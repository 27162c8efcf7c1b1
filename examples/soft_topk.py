# SPDX-License-Identifier: Apache-2.0
"""Soft top-k with a learnt k: five scores share a budget of two, and the gradient reaches scores and k."""
import torch

torch.ops.load_library("build/release/libweir.so")

scores = torch.tensor([2.0, 0.1, 1.5, -1.0, 1.4], requires_grad=True)
k = torch.tensor(2.0, requires_grad=True)
weights = torch.ops.weir.coordinate_descent(scores, k, eps=0.1, solver="exact")
weights.square().sum().backward()
print(weights, weights.sum(), scores.grad, k.grad, sep="\n")
