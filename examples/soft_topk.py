# SPDX-License-Identifier: Apache-2.0
"""Five scores share a budget of two, and the gradient reaches scores and k; then an attention layer that chooses so.

From the root of a checkout: PYTHONPATH=python .venv/bin/python examples/soft_topk.py
"""
import torch
import weir

scores = torch.tensor([2.0, 0.1, 1.5, -1.0, 1.4], requires_grad=True)
k = torch.tensor(2.0, requires_grad=True)
weights = weir.ops.coordinate_descent(scores, k, eps=0.1, solver="exact")
weights.square().sum().backward()
print(weights, weights.sum(), scores.grad, k.grad, sep="\n")

attention = weir.CoordinateDescentAttention(dim=64, heads=4, use_coor_descent=True)
print(attention(torch.randn(1, 16, 64)).shape)
