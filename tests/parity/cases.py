# SPDX-License-Identifier: Apache-2.0
"""The table: each row names a Weir module, the published one, inputs, and the regime in which the package is right.

Budgets that are plain numbers are exact in float32: the package rounds them to it.
"""
import itertools

import torch
import weir
from colt5_attention import coor_descent, topk
from coordinate_descent_attention import coordinate_descent_attention as published

import corrected
from harness import Case, Function

SCHEDULES = {
    "eps 1": dict(eps=1.0),
    "eps .1": dict(eps=0.1),
    "eps .1 from 4": dict(eps=0.1, eps_init=4.0, eps_decay=0.7),
    "eps .03 from 4": dict(eps=0.03, eps_init=4.0, eps_decay=0.7),
    "eps_init below eps": dict(eps=0.5, eps_init=0.1, eps_decay=0.9),
}


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def uniform(*shape, low, high, seed=0):
    return low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_mask(*shape, keep=0.7, seed=0):
    mask = uniform(*shape, low=0, high=1, seed=seed) < keep
    mask[..., :5] = True
    return mask


def tokens(batch, length, num_tokens, seed=0):
    return torch.randint(num_tokens, (batch, length), generator=torch.Generator().manual_seed(seed))


def label(**options):
    return ", ".join(f"{name} {value}" for name, value in options.items())


# -- operators --------------------------------------------------------------------------------------------------------


def coordinate_descent_cases():
    """The budget as a number or per row, masks, iterations and schedules."""
    budgets = {"k 1": 1, "k 2.25": 2.25, "k per row": uniform(2, 3, low=0.5, high=4.5)}
    for t, schedule, budget, masked in itertools.product((1, 2, 3, 20, 50), SCHEDULES, budgets, (False, True)):
        options = dict(n_iters=t, mask=random_mask(2, 3, 17) if masked else None, **SCHEDULES[schedule])
        k = budgets[budget]
        inputs = (normal(2, 3, 17, seed=t),)
        if isinstance(k, torch.Tensor):
            inputs += (k,)
        else:
            options["k"] = k
        yield operator_case(f"coor_descent: T {t}, {schedule}, {budget}{', masked' * masked}", options, inputs)
    long = dict(n_iters=20, mask=random_mask(2, 1, 301), **SCHEDULES["eps .03 from 4"])
    inputs = (normal(2, 3, 301), uniform(3, low=8, high=60))
    yield operator_case("coor_descent: mask and k broadcast, 301 columns", long, inputs)


def operator_case(name, options, inputs):
    """k is in `options` when it is a number, the second input when it is a tensor."""

    def module(function):
        return lambda: Function(lambda s, *k: function(s, **options, **dict(zip("k", k))))

    regime = "not half precision"
    return Case(name, module(weir.ops.coor_descent), module(coor_descent), lambda: inputs, regime=regime)


def topk_cases():
    """No masks here: A9."""
    for k, ratio, schedule in itertools.product((1, 3, 16, 17), (1.0, 9 / 8, 2.0), SCHEDULES):
        options = dict(k=k, coor_descent_k_ratio=ratio, **SCHEDULES[schedule])
        yield topk_case(f"topk: k {k}, ratio {ratio}, {schedule}", options)
    yield topk_case("topk: non_differentiable", dict(k=5, non_differentiable=True))
    yield topk_case("topk: fused", dict(k=5, fused=True, eps=1.0))


def topk_case(name, options):
    def module(function):
        return lambda: Function(function, **options)

    return Case(name, module(weir.ops.topk), module(topk), lambda: (normal(2, 3, 17),), regime="no mask")


# -- layers -----------------------------------------------------------------------------------------------------------


def attention_cases():
    for nulls, length in itertools.product((0, 3), (1, 2, 7, 12)):
        yield attention_case(length, attn_null_kv=nulls)
    for t, k, eps, nulls in itertools.product((1, 5, 20), (1, 2, 3.5), (0.1, 1.0), (0, 3)):
        options = dict(coor_descent_iters=t, coor_descent_sparsity_k=k, coor_descent_eps=eps, attn_null_kv=nulls)
        yield attention_case(9, use_coor_descent=True, **options)
    schedule = dict(coor_descent_eps_init=2.0, coor_descent_eps_decay=0.9)
    yield attention_case(9, use_coor_descent=True, coor_descent_sparsity_k=2, **schedule)
    for length, nulls in itertools.product((5, 8), (0, 3)):
        options = dict(coor_descent_sparsity_k=4, learned_sparsity_k=True, attn_null_kv=nulls)
        yield attention_case(length, corrected.Attention, use_coor_descent=True, **options)


def attention_case(length, reference=published.Attention, **options):
    sizes = dict(dim=16, dim_head=8, heads=2) | options
    return Case(
        f"Attention: n {length}, {label(**options)}",
        lambda: weir.CoordinateDescentAttention(**sizes),
        lambda: reference(**sizes),
        lambda: (normal(2, length, 16),),
        regime="CPU; learned k: corrected (B3)",
        prepare=undo_small_k,
    )


def undo_small_k(module):
    """At its initial bias of -10 a learned k is 1 + 5e-5 (k - 1), and nothing about it could be seen."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("to_learned_k.bias"):
                parameter += 10


def feed_forward_cases():
    yield feed_forward_case(published.FeedForward)
    yield feed_forward_case(published.FeedForward, mult=2.5)
    for t, k, eps in itertools.product((1, 4, 20), (None, 2), (0.1, 1.0)):
        options = dict(coor_descent_iters=t, coor_descent_sparsity_k=k, coor_descent_eps=eps)
        yield feed_forward_case(corrected.FeedForward, use_coor_descent=True, **options)


def feed_forward_case(reference, **options):
    return Case(
        f"FeedForward: {label(**options)}",
        lambda: weir.CoordinateDescentFeedForward(dim=14, **options),
        lambda: reference(dim=14, **options),
        lambda: (normal(2, 5, 14),),
        regime="GELU; coordinate descent: corrected (B1)",
    )


# -- models -----------------------------------------------------------------------------------------------------------

SMALL = dict(num_tokens=11, dim=16, seq_len=12, depth=2, dim_head=8, heads=2, ff_mult=3)


def transformer_options():
    """Every combination of the switches; coordinate descent in the feed-forward always with its k said (B7)."""
    switches = (False, True)
    for attention, feed_forward, nulls, learned in itertools.product(switches, switches, (0, 2), switches):
        if learned and not attention:
            continue
        options = dict(attn_use_coor_descent=attention, ff_use_coor_descent=feed_forward)
        options |= dict(attn_null_kv=nulls, learned_sparsity_k=learned)
        if feed_forward:
            options["ff_coor_descent_sparsity_k"] = 5
        yield options


def transformer_cases():
    for options in transformer_options():
        yield transformer_case(options)
    solver = dict(attn_coor_descent_sparsity_k=3, coor_descent_iters=7, coor_descent_eps=0.5)
    yield transformer_case(dict(attn_use_coor_descent=True, **solver))


def transformer_case(options):
    broken = options.get("ff_use_coor_descent") or options.get("learned_sparsity_k")
    reference = corrected.Transformer if broken else published.Transformer
    return Case(
        f"Transformer: {label(**options)}",
        lambda: weir.CoordinateDescentTransformer(**SMALL, **options),
        lambda: reference(**SMALL, **options),
        lambda: (tokens(3, 11, SMALL["num_tokens"]),),
        regime="CPU; fixed k and GELU, else corrected (B1, B3)",
        prepare=undo_small_k,
    )


TRANSFORMERS = list(transformer_cases())
CASES = [*coordinate_descent_cases(), *topk_cases(), *attention_cases(), *feed_forward_cases(), *TRANSFORMERS]
