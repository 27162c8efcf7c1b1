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
    """(tensors, masks, options) of block_sparse_attention: patterns, masks, grouped heads, packed sequences."""
    query, key, value = torch.randn(2, 4, n, 5, dtype=dtype), torch.randn(2, 2, m, 5, dtype=dtype), torch.randn(2, 2, m, 3, dtype=dtype)
    layout, key_mask, mask = torch.rand(4, 2, 3) < 0.7, torch.rand(2, m) < 0.8, torch.rand(4, n, m) < 0.8
    packed = dict(cu_seqlens=torch.tensor([0, 2, n]), cu_seqlens_k=torch.tensor([0, 3, m]))
    for masks in ({}, dict(layout=layout[0]), dict(layout=layout, key_mask=key_mask), dict(key_mask=key_mask, mask=mask), packed):
        for pattern in ({}, dict(causal=True, window=4, prefix=2), dict(causal=True, stride=2), dict(stride=3, local=2)):
            yield [x.clone().requires_grad_() for x in (query, key, value)], masks, dict(block_size=4, **pattern)


def choosing_samples(dtype=torch.float32, n=7, m=9):
    """(query, key, value, budget), masks, options of coordinate_descent_attention."""
    for options in ({}, dict(causal=True, nulls=2), dict(causal=True, solver="exact"), dict(normalize=True, eps_init=4.0, eps_decay=0.7)):
        for masked, per_query in itertools.product((False, True), (False, True)):
            query, key, value = torch.randn(2, 4, n, 5), torch.randn(2, 2, m, 5), torch.randn(2, 2, m, 3)
            budget = torch.rand(4, n) + 1.05 if per_query else torch.tensor(2.45)
            tensors = [x.to(dtype).requires_grad_() for x in (query, key, value, budget)]
            masks = dict(key_mask=torch.rand(2, m) < 0.8, mask=torch.rand(4, n, m) < 0.8) if masked else {}
            yield tensors, masks, dict(n_iters=4, eps=1.0) | options


def local_samples(dtype=torch.float32, n=9, dim=4):
    """(tensors, keywords) of local_attention: (query, key, value, attn_bias or None)."""
    query, key, value = (torch.randn(2, heads, n, dim, dtype=dtype) for heads in (4, 2, 2))
    key_mask, inv_freq = torch.rand(2, n) < 0.8, torch.tensor([1.0, 0.1])
    for options in (dict(causal=True), dict(exact_windowsize=True), dict(causal=True, look_backward=2, shared_qk=True)):
        span = 3 * (2 + (options.get("look_backward") == 2 or not options.get("causal", False)))
        for inputs in ({}, dict(key_mask=key_mask, inv_freq=inv_freq), dict(inv_freq=inv_freq, use_xpos=True)):
            bias = None if inputs else torch.randn(4, 3, span, dtype=dtype)
            yield [x if x is None else x.clone().requires_grad_() for x in (query, key, value, bias)], options | inputs


class PrivateCalls:
    """Records the arguments of _block_sparse_attention that a public operator comes down to."""

    def __init__(self):
        self.args = []

    def __enter__(self):
        calls = self.args

        class Mode(torch.utils._python_dispatch.TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                if func is weir._block_sparse_attention.default:
                    calls.append(args)
                return func(*args, **(kwargs or {}))

        self.mode = Mode()
        self.mode.__enter__()
        return self

    def __exit__(self, *error):
        self.mode.__exit__(*error)


class BlockSparseAttention(unittest.TestCase):
    def test_opcheck(self):
        for tensors, masks, options in attention_samples():
            with self.subTest(masks=list(masks), **options):
                with PrivateCalls() as calls:
                    weir.block_sparse_attention(*tensors, **masks, **options)
                private = [x.detach().requires_grad_() if i < 3 else x for i, x in enumerate(calls.args[0])]
                torch.library.opcheck(weir._block_sparse_attention.default, private)
                torch.library.opcheck(weir.block_sparse_attention.default, tensors, masks | options)
                torch.library.opcheck(weir.block_sparse_attention_with_lse.default, tensors, masks | options)

    def test_derivatives(self):
        for tensors, masks, options in attention_samples(torch.float64, n=3, m=5):
            if "layout" in masks or "mask" in masks or "key_mask" in masks:
                continue
            run = lambda q, k, v: weir.block_sparse_attention(q, k, v, **masks, **options)
            self.assertTrue(torch.autograd.gradcheck(run, tensors))
            self.assertTrue(torch.autograd.gradgradcheck(run, tensors))

    def test_one_graph(self):
        torch._dynamo.reset()
        f = torch.compile(lambda q: weir.block_sparse_attention(q, q, q, causal=True, scale=0.5), fullgraph=True, backend="aot_eager", dynamic=True)
        for n in (5, 8, 13):
            q = torch.randn(1, 2, n, 4, requires_grad=True)
            torch.testing.assert_close(f(q), weir.block_sparse_attention(q, q, q, causal=True, scale=0.5))


class CoordinateDescentAttention(unittest.TestCase):
    def test_opcheck(self):
        for tensors, masks, options in choosing_samples():
            with self.subTest(masked=bool(masks), **options):
                o = dict(causal=False, nulls=0, normalize=False, eps_init=1.0, eps_decay=1.0, solver="iterative") | options
                integers = [int(o["causal"]), o["nulls"], o["n_iters"], int(o["normalize"])]
                private = (*tensors, masks.get("key_mask"), masks.get("mask"), integers, [o["eps"], o["eps_init"], o["eps_decay"], 0.5], o["solver"])
                torch.library.opcheck(weir._coordinate_descent_attention.default, private)
                torch.library.opcheck(weir.coordinate_descent_attention.default, tensors, masks | options)
                torch.library.opcheck(weir.coordinate_descent_attention.number, (*tensors[:3], 2.5), masks | options)

    def test_derivatives(self):
        torch.manual_seed(0)
        for tensors, masks, options in choosing_samples(torch.float64, n=3, m=5):
            run = lambda q, k, v, b: weir.coordinate_descent_attention(q, k, v, b, **masks, **options)
            with self.subTest(masked=bool(masks), **options):
                self.assertTrue(torch.autograd.gradcheck(run, tensors))
                self.assertTrue(torch.autograd.gradgradcheck(run, tensors))

    def test_function(self):
        (q, k, v, budget), masks, options = list(choosing_samples())[-1]
        got = package.ops.coordinate_descent_attention(q, k, v, budget, masks["key_mask"], masks["mask"], True, 1, 4, 0.5, 4.0, 0.7, "exact", True, 0.3)
        keywords = dict(causal=True, nulls=1, n_iters=4, eps=0.5, eps_init=4.0, eps_decay=0.7, solver="exact", normalize=True, scale=0.3)
        self.assertTrue(torch.equal(got, weir.coordinate_descent_attention(q, k, v, budget, **masks, **keywords)))


class LocalAttention(unittest.TestCase):
    def test_opcheck(self):
        for (*tensors, bias), options in local_samples():
            with self.subTest(**options):
                torch.library.opcheck(weir.local_attention.default, (*tensors, 3), dict(attn_bias=bias, **options))

    def test_derivatives(self):
        for (*tensors, bias), options in local_samples(torch.float64, n=7):
            leaves = tensors if bias is None else (*tensors, bias)
            run = lambda q, k, v, bias=None: weir.local_attention(q, k, v, 3, attn_bias=bias, **options)
            with self.subTest(**options):
                self.assertTrue(torch.autograd.gradcheck(run, leaves))
                self.assertTrue(torch.autograd.gradgradcheck(run, leaves))


def top_k_samples(dtype=torch.float32, n=7, m=9):
    """(tensors, keywords, k) of top_k_attention: masks, grouped heads, k above and below m."""
    query, key, value = torch.randn(2, 4, n, 5, dtype=dtype), torch.randn(2, 2, m, 5, dtype=dtype), torch.randn(2, 2, m, 3, dtype=dtype)
    key_mask, mask = torch.rand(2, m) < 0.8, torch.rand(4, n, m) < 0.8
    for keywords in ({}, dict(causal=True), dict(key_mask=key_mask, mask=mask, scale=-0.3)):
        for k in (1, 3, m + 2):
            yield [x.clone().requires_grad_() for x in (query, key, value)], keywords, k


class TopKAttention(unittest.TestCase):
    def test_opcheck(self):
        for tensors, keywords, k in top_k_samples():
            with self.subTest(k=k, keywords=list(keywords)):
                torch.library.opcheck(weir.top_k_attention.default, (*tensors, k), keywords)
                private = (keywords.get("key_mask"), keywords.get("mask"), k, keywords.get("causal", False), keywords.get("scale", 0.5))
                torch.library.opcheck(weir._top_k_attention.default, (*tensors, *private))
                output, indices, weights = weir._top_k_attention(*tensors, *private)
                grad_args = (torch.randn_like(output), *(x.detach() for x in tensors), indices, weights, private[-1])
                torch.library.opcheck(weir._top_k_attention_backward.default, grad_args)

    def test_derivatives(self):
        torch.manual_seed(0)
        for tensors, keywords, k in top_k_samples(torch.float64, n=3, m=5):
            run = lambda q, key, v: package.ops.top_k_attention(q, key, v, k, **keywords)
            with self.subTest(k=k, keywords=list(keywords)):
                self.assertTrue(torch.autograd.gradcheck(run, tensors))
                self.assertTrue(torch.autograd.gradgradcheck(run, tensors))

    def test_one_graph(self):
        torch._dynamo.reset()
        f = torch.compile(lambda q: weir.top_k_attention(q, q, q, 6, causal=True, scale=0.5), fullgraph=True, backend="aot_eager", dynamic=True)
        for n in (4, 5, 8, 13):
            q, again = (x.requires_grad_() for x in torch.randn(1, 2, n, 4).expand(2, 1, 2, n, 4).clone())
            got, want = f(q), weir.top_k_attention(again, again, again, 6, causal=True, scale=0.5)
            torch.testing.assert_close(got, want)
            got.square().sum().backward(), want.square().sum().backward()
            torch.testing.assert_close(q.grad, again.grad)


def low_rank_samples(dtype=torch.float32, n=7, m=9):
    """(tensors, keywords, k) of low_rank_attention: masks, routing heads and key heads that group differently, both scores."""
    route_query, route_key = torch.randn(2, 2, n, 2, dtype=dtype), torch.randn(2, 1, m, 2, dtype=dtype)
    query, key, value = torch.randn(2, 4, n, 5, dtype=dtype), torch.randn(2, 4, m, 5, dtype=dtype), torch.randn(2, 4, m, 3, dtype=dtype)
    key_mask, mask = torch.rand(2, m) < 0.8, torch.rand(2, n, m) < 0.8
    for keywords in ({}, dict(causal=True, score="coordinate_descent", eps=0.7), dict(key_mask=key_mask, mask=mask, scale=-0.3, route_scale=0.8)):
        for k in (1, 3, m + 2):
            yield [x.clone().requires_grad_() for x in (route_query, route_key, query, key, value)], keywords, k


class LowRankAttention(unittest.TestCase):
    def test_opcheck(self):
        for tensors, keywords, k in low_rank_samples():
            with self.subTest(k=k, keywords=list(keywords)):
                torch.library.opcheck(weir.low_rank_attention.default, (*tensors, k), keywords)
                get = keywords.get
                rule = ([k, int(get("causal", False))], [get("scale", 0.5), get("route_scale", 0.7), get("eps", 0.1), 1.125], get("score", "softmax"))
                private = (*tensors, get("key_mask"), get("mask"), *rule)
                torch.library.opcheck(weir._low_rank_attention.default, private)
                output, *chosen = weir._low_rank_attention(*private)
                grad_args = (torch.randn_like(output), *(x.detach() for x in tensors), *chosen, *rule)
                torch.library.opcheck(weir._low_rank_attention_backward.default, grad_args)

    def test_derivatives(self):
        """Behind the route, where finite differences see what the gradient is of."""
        torch.manual_seed(0)
        for (route_query, route_key, *tensors), keywords, k in low_rank_samples(torch.float64, n=3, m=5):
            route = route_query.detach(), route_key.detach()
            run = lambda q, key, v: package.ops.low_rank_attention(*route, q, key, v, k, **keywords)
            with self.subTest(k=k, keywords=list(keywords)):
                self.assertTrue(torch.autograd.gradcheck(run, tensors))
                self.assertTrue(torch.autograd.gradgradcheck(run, tensors))

    def test_one_graph(self):
        torch._dynamo.reset()
        run = lambda q: weir.low_rank_attention(q[..., :2], q[..., :2], q, q, q, 6, causal=True, scale=0.5, route_scale=0.7)
        f = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
        for n in (4, 5, 8, 13):
            q, again = (x.requires_grad_() for x in torch.randn(1, 2, n, 4).expand(2, 1, 2, n, 4).clone())
            got, want = f(q), run(again)
            torch.testing.assert_close(got, want)
            got.square().sum().backward(), want.square().sum().backward()
            torch.testing.assert_close(q.grad, again.grad)


class PrefixThresholds(unittest.TestCase):
    def test_opcheck(self):
        scores, budgets = torch.randn(2, 3, 20, requires_grad=True), torch.tensor([1.5, 3.0, 4.0])
        for solver in ("iterative", "exact"):
            torch.library.opcheck(weir.prefix_thresholds.default, (scores, budgets, [4, 5, 20]), dict(solver=solver))
            private = (scores, budgets, [4, 5, 20], 9, 0.1, 2.0, 0.7, solver)
            torch.library.opcheck(weir._prefix_thresholds.default, private)

    def test_one_graph(self):
        f = torch.compile(lambda s: weir.prefix_thresholds(s, torch.ones(1), [4], solver="exact"), fullgraph=True, backend="aot_eager")
        scores, again = torch.randn(2, 8).expand(2, 2, 8).clone().requires_grad_().unbind()
        got, want = f(scores), weir.prefix_thresholds(again, torch.ones(1), [4], solver="exact")
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(torch.autograd.grad(got.sum(), scores), torch.autograd.grad(want.sum(), again))


def router_samples(dtype=torch.float32, n=7, dim=5):
    """(x, tokens), keywords of router_logits: shared routing tokens and others per entry, products and cosines."""
    for shape in ((3, dim), (2, 3, dim)):
        for keywords in ({}, dict(cosine=True, scale=0.7)):
            yield [torch.randn(s, dtype=dtype).requires_grad_() for s in ((2, n, dim), shape)], keywords


class RouterLogits(unittest.TestCase):
    def test_opcheck(self):
        for (x, tokens), keywords in router_samples():
            with self.subTest(shape=tuple(tokens.shape), **keywords):
                torch.library.opcheck(weir.router_logits.default, (x, tokens), keywords)
                cosine = keywords.get("cosine", False)
                torch.library.opcheck(weir._router_logits.default, (x, tokens, cosine))
                saved = [t.detach() for t in (x, tokens, *weir._router_logits(x, tokens, cosine))]
                for wanted in itertools.product((False, True), (False, True)):
                    torch.library.opcheck(weir._router_logits_backward.default, (torch.randn_like(saved[2]), *saved, cosine, *wanted))

    def test_derivatives(self):
        torch.manual_seed(0)
        for tensors, keywords in router_samples(torch.float64, n=3, dim=4):
            run = lambda x, tokens: package.ops.router_logits(x, tokens, **keywords)
            with self.subTest(shape=tuple(tensors[1].shape), **keywords):
                self.assertTrue(torch.autograd.gradcheck(run, tensors))
                self.assertTrue(torch.autograd.gradgradcheck(run, tensors))

    def test_one_graph(self):
        torch._dynamo.reset()
        tokens = torch.randn(3, 4)
        f = torch.compile(lambda x: weir.router_logits(x, tokens, cosine=True), fullgraph=True, backend="aot_eager", dynamic=True)
        for n in (4, 5, 8, 13):
            x, again = (x.requires_grad_() for x in torch.randn(2, n, 4).expand(2, 2, n, 4).clone())
            got, want = f(x), weir.router_logits(again, tokens, cosine=True)
            torch.testing.assert_close(got, want)
            got.square().sum().backward(), want.square().sum().backward()
            torch.testing.assert_close(x.grad, again.grad)


class L2RmsNorm(unittest.TestCase):
    def test_opcheck(self):
        x, gamma = torch.randn(2, 3, 5, requires_grad=True), torch.randn(5, requires_grad=True)
        torch.library.opcheck(weir.l2_rms_norm.default, (x, gamma))
        torch.library.opcheck(weir._l2_rms_norm.default, (x, gamma))
        output, lengths = (t.detach() for t in weir._l2_rms_norm(x, gamma))
        torch.library.opcheck(weir._l2_rms_norm_backward.default, (torch.randn_like(output), x.detach(), gamma.detach(), lengths))

    def test_derivatives(self):
        torch.manual_seed(0)
        tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((3, 4), (4,))]
        self.assertTrue(torch.autograd.gradcheck(package.ops.l2_rms_norm, tensors))
        self.assertTrue(torch.autograd.gradgradcheck(package.ops.l2_rms_norm, tensors))


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

