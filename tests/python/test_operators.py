# SPDX-License-Identifier: Apache-2.0
"""The operators as torch sees them: torch.library.opcheck, torch.compile, gradcheck."""
import itertools
import unittest

import torch
import weir as package  # loads them

weir = torch.ops.weir
assert package.library.exists()

SHAPES = [(7,), (3, 5), (2, 3, 17), (4, 300), (0, 5), (5, 0)]
SOLVERS = ["iterative", "exact"]


def samples(dtype=torch.float32, requires_grad=True):
    """Arguments of _coordinate_descent: shapes x masks x budgets x solvers."""
    for shape, masked, per_row, solver in itertools.product(SHAPES, (False, True), (False, True), SOLVERS):
        scores = torch.randn(shape, dtype=dtype, requires_grad=requires_grad)
        budget = torch.full(shape[:-1] if per_row else (), 2.5, dtype=dtype, requires_grad=requires_grad)
        mask = torch.rand(shape[-1:]) < 0.7 if masked else None
        yield scores, budget, mask, 6, 0.3, 4.0, 0.7, solver


class Opcheck(unittest.TestCase):
    def test_private_pair(self):
        for args in samples():
            with self.subTest(shape=tuple(args[0].shape), mask=args[2] is not None, solver=args[-1]):
                torch.library.opcheck(weir._coordinate_descent.default, args)

    def test_public(self):
        for scores, budget, mask, n_iters, eps, eps_init, eps_decay, solver in samples():
            keywords = dict(mask=mask, n_iters=n_iters, eps=eps, eps_init=eps_init, eps_decay=eps_decay, solver=solver)
            torch.library.opcheck(weir.coordinate_descent.default, (scores, budget), keywords)
            torch.library.opcheck(weir.coordinate_descent.number, (scores, 2.5), keywords)

    def test_topk(self):
        for shape, masked in itertools.product([(7,), (3, 9), (2, 3, 17), (4, 300), (0, 5)], (False, True)):
            scores = torch.randn(shape, requires_grad=True)
            mask = torch.rand(shape) < 0.7 if masked else None
            torch.library.opcheck(weir.topk.default, (scores, 3), dict(mask=mask, eps=1.0))


def attention_samples(dtype=torch.float32, n=7, m=9):
    """Arguments of _block_sparse_attention: plain, causal, windows, strides, layouts, masks, grouped heads."""
    query, key, value = torch.randn(2, 4, n, 5, dtype=dtype), torch.randn(2, 2, m, 5, dtype=dtype), torch.randn(2, 2, m, 3, dtype=dtype)
    layout, key_mask, mask = torch.rand(4, 2, 3) < 0.7, torch.rand(2, m) < 0.8, torch.rand(4, n, m) < 0.8
    for masks in ((None, None, None), (layout[0], None, None), (layout, key_mask, None), (None, key_mask, mask)):
        for causal, window, stride, prefix in ((False, None, 1, 0), (True, 4, 1, 2), (True, None, 2, 0)):
            tensors = [x.clone().requires_grad_() for x in (query, key, value)]
            yield (*tensors, *masks, 4, causal, window, stride, prefix, None)


class BlockSparseAttention(unittest.TestCase):
    def test_opcheck(self):
        names = ["layout", "key_mask", "mask", "block_size", "causal", "window", "stride", "prefix", "scale"]
        for args in attention_samples():
            with self.subTest(args=args[6:], masks=[x is not None for x in args[3:6]]):
                torch.library.opcheck(weir._block_sparse_attention.default, args)
                keywords = dict(zip(names, args[3:]))
                torch.library.opcheck(weir.block_sparse_attention.default, args[:3], keywords)
                torch.library.opcheck(weir.block_sparse_attention_with_lse.default, args[:3], keywords)

    def test_derivatives(self):
        for args in attention_samples(torch.float64, n=3, m=5):
            args = (*args[:3], None, None, None, *args[6:])
            run = lambda q, k, v: weir._block_sparse_attention(q, k, v, *args[3:])[0]
            self.assertTrue(torch.autograd.gradcheck(run, args[:3]))
            self.assertTrue(torch.autograd.gradgradcheck(run, args[:3]))

    def test_one_graph(self):
        torch._dynamo.reset()
        f = torch.compile(lambda q: weir.block_sparse_attention(q, q, q, causal=True, scale=0.5), fullgraph=True, backend="aot_eager", dynamic=True)
        for n in (5, 8, 13):
            q = torch.randn(1, 2, n, 4, requires_grad=True)
            torch.testing.assert_close(f(q), weir.block_sparse_attention(q, q, q, causal=True, scale=0.5))


class Gradcheck(unittest.TestCase):
    def test_first_and_second_derivatives(self):
        torch.manual_seed(0)
        for args in samples(torch.float64):
            scores, budget, mask, *rest = args
            if scores.numel() == 0 or scores.numel() > 200:
                continue

            def run(s, k):
                return weir._coordinate_descent(s, k, mask, *rest)[0]

            self.assertTrue(torch.autograd.gradcheck(run, (scores, budget)))
            self.assertTrue(torch.autograd.gradgradcheck(run, (scores, budget)))


class Compile(unittest.TestCase):
    def test_one_graph(self):
        def step(scores, budget):
            return weir.coordinate_descent(scores * 2, budget, n_iters=5, eps=1.0).square().sum()

        scores = torch.randn(4, 33, requires_grad=True)
        budget = torch.full((4,), 3.0, requires_grad=True)
        expected = torch.autograd.grad(step(scores, budget), (scores, budget))
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
        for got, want in zip(torch.autograd.grad(compiled(scores, budget), (scores, budget)), expected):
            torch.testing.assert_close(got, want)

