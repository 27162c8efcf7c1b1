# SPDX-License-Identifier: Apache-2.0
"""The table of the modules of CoLT5-attention: rows as in cases.py.

Routers are compared where the package's are right: one route, or a batch of one (A1); a single block (A3); eps 1 and small
similarities, so that few scores are exactly 1 (A6).
"""
import itertools

import torch
import weir.colt5_attention as ours
from colt5_attention import (
    ConditionalRoutedAttention,
    ConditionalRoutedFeedForward,
    ConditionalRoutedImageAttention,
    ConditionalRoutedTransformerBlock,
    ConditionalRoutedViT,
    CoordinateDescentRouter,
)
from torch import nn
from weir.colt5_attention import ConditionalRoutedAttention as WeirAttention
from weir.colt5_attention import ConditionalRoutedFeedForward as WeirRoutedFeedForward
from weir.colt5_attention import CoordinateDescentRouter as WeirRouter

from cases import label, normal
from harness import Case
from local_attention_cases import padding

DIM = 16


class Routing(nn.Module):
    """A router called with `arguments`; what it chose by ascending index, since equal scores leave the order open."""

    def __init__(self, router, keyword=None, **arguments):
        super().__init__()
        self.router, self.keyword, self.arguments = router, keyword, arguments

    def forward(self, x, *more):
        indices, *rest = self.router(x, **self.arguments, **dict(zip([self.keyword], more)))
        if indices is None:
            return indices, *rest
        indices, order = indices.sort(dim=-1)
        scores, tokens, mask = rest
        tokens = tokens.gather(-2, order[..., None].expand_as(tokens))
        return indices, scores.gather(-1, order), tokens, None if mask is None else mask.gather(-1, order)


def router_case(batch, length, num_tokens, masked=False, call={}, **options):
    """A call with a mask, with external routing tokens, or with neither."""
    keyword = "routing_tokens" if options.get("learned_routing_tokens") else "mask"
    routes = options.get("num_routing_tokens", 1)
    sizes = dict(dim=DIM, eps=1.0) | options

    def inputs():
        x = normal(batch, length, DIM, scale=0.3)
        if options.get("learned_routing_tokens"):
            return x, normal(batch, routes, DIM, seed=1) if routes > 1 else normal(batch, DIM, seed=1)
        return (x, padding(batch, length)) if masked else (x,)

    name = f"Router: {batch} x {length} to {num_tokens}, {label(**call, **options)}{', masked' * masked}"
    return Case(
        name,
        lambda: Routing(WeirRouter(**sizes), keyword, num_tokens=num_tokens, **call),
        lambda: Routing(CoordinateDescentRouter(**sizes), keyword, num_tokens=num_tokens, **call),
        inputs,
        regime="one route or a batch of one; no blocks but a single one; few scores of 1",
    )


def router_cases():
    for through, (batch, routes), k, masked in itertools.product(
        (True, False), ((3, 1), (1, 1), (1, 3)), (1, 5, 16), (True, False)
    ):
        if masked and k == 16 and batch > 1:  # fewer tokens than that: the rest is arbitrary
            continue
        yield router_case(batch, 17, k, masked, straight_through=through, num_routing_tokens=routes)
    for schedule in (dict(eps_init=None), dict(n_iters=5, eps_decay=0.9), dict(eps=0.5, n_iters=50)):
        yield router_case(3, 17, 5, True, straight_through=False, **schedule)
    yield router_case(3, 17, 2, True, straight_through=False, fetch_k_ratio=2.0)
    for batch, routes in ((3, 1), (1, 3)):
        options = dict(num_routing_tokens=routes, straight_through=False)
        yield router_case(batch, 17, 5, True, cosine_sim_routing=True, **options)
        yield router_case(batch, 17, 5, True, cosine_sim_routing=True, cosine_sim_scale=3, **options)
        yield router_case(batch, 17, 5, learned_routing_tokens=True, **options)
        yield router_case(batch, 17, 5, learned_routing_tokens=True, cosine_sim_routing=True, **options)
        yield router_case(batch, 17, 5, True, route_block_size=17, **options)
    for masked in (True, False):
        yield router_case(3, 17, 5, masked, dict(keep_one_route_dim=True), straight_through=False)
        for routes, keep in itertools.product((1, 3), (True, False)):
            yield router_case(3, 6, 6, masked, dict(keep_one_route_dim=keep), num_routing_tokens=routes)


# -- ConditionalRoutedFeedForward ---------------------------------------------------------------------------------------


def feed_forward_cases():
    for through, length, masked in itertools.product((True, False), (1, 5, 6, 17), (True, False)):
        yield feed_forward_case(length, masked, router_straight_through=through)
    yield feed_forward_case(17, True, light_ff_mult=1.3, heavy_ff_mult=2.7)
    yield feed_forward_case(17, True, router_kwargs=dict(cosine_sim_routing=True, eps=0.5))
    yield feed_forward_case(17, True, router_kwargs=dict(route_block_size=17, eps=1.0))


def feed_forward_case(length, masked, **options):
    """Masked tokens are compared too: they take the light branch."""
    sizes = dict(dim=DIM, num_heavy_tokens=5, router_kwargs=dict(eps=1.0)) | options
    return Case(
        f"ConditionalRoutedFeedForward: n {length}, {label(**options)}{', masked' * masked}",
        lambda: WeirRoutedFeedForward(**sizes),
        lambda: ConditionalRoutedFeedForward(**sizes),
        lambda: (normal(3, length, DIM, scale=0.3), padding(3, length)) if masked else (normal(3, length, DIM, scale=0.3),),
        regime="no blocks but a single one; few scores of 1",
    )


# -- ConditionalRoutedAttention -----------------------------------------------------------------------------------------


def attention_case(batch, length, masked=False, **options):
    """Lengths are whole half windows, or masked (A10); one route, or a batch of one (A1)."""
    sizes = dict(dim=DIM, num_heavy_tokens_q=5, num_heavy_tokens_kv=4, light_dim_head=8, light_heads=2, light_window_size=4)
    sizes |= dict(heavy_dim_head=8, heavy_heads=6, router_kwargs=dict(eps=1.0)) | options

    def inputs():
        x = normal(batch, length, DIM, scale=0.3)
        return (x, padding(batch, length)) if masked else (x,)

    def module(kind):
        return lambda: WithMask(kind(**sizes))

    name = f"ConditionalRoutedAttention: {batch} x {length}, {label(**options)}{', masked' * masked}"
    regime = "one route or a batch of one; whole half windows, or a mask; few scores of 1"
    return Case(name, module(WeirAttention), module(ConditionalRoutedAttention), inputs, regime=regime)


class WithMask(nn.Module):
    """A module whose mask is a keyword; what it drops is not compared, the package leaves junk there."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, mask=None):
        out = self.module(x, mask=mask)
        return out if mask is None else out[mask]


def attention_cases():
    for batch, routes, through, masked in itertools.product((3, 1), (1, 3), (True, False), (True, False)):
        if batch > 1 and routes > 1:
            continue
        yield attention_case(batch, 16, masked, num_routed_kv=routes, router_straight_through=through)
    for options in (
        dict(rotary_emb=True),
        dict(multiply_keys_by_score=True, multiply_queries_by_score=True, router_straight_through=False),
        dict(use_null_q_tokens=False),
        dict(has_light_attn=False),
        dict(num_heavy_tokens_q=16),
        dict(num_heavy_tokens_kv=16),
    ):
        yield attention_case(3, 16, **options)
        yield attention_case(1, 16, num_routed_kv=2, **options)


# -- ConditionalRoutedImageAttention ------------------------------------------------------------------------------------

IMAGE = dict(dim=DIM, num_heavy_tokens_q=5, num_heavy_tokens_kv=4, light_dim_head=8, light_heads=2, light_window_size=4,
             heavy_dim_head=8, heavy_heads=6, router_kwargs=dict(eps=1.0))  # fmt: skip


def image_case(batch, height, width, **options):
    """Routed by window, as the package does, of more places than are routed (A4); one route, or a single window (A1)."""
    sizes = IMAGE | options
    shape = (batch, DIM, height, width) if sizes.get("channel_first") else (batch, height, width, DIM)
    return Case(
        f"ConditionalRoutedImageAttention: {batch} x {height} x {width}, {label(**options)}",
        lambda: ours.ConditionalRoutedImageAttention(**sizes, routing="window"),
        lambda: ConditionalRoutedImageAttention(**sizes),
        lambda: (normal(*shape, scale=0.3),),
        regime="by window, each larger than what is routed; one route or one window; few scores of 1",
    )


def image_cases():
    for through in (True, False):
        yield image_case(2, 8, 12, router_straight_through=through)
        yield image_case(1, 4, 4, router_straight_through=through, num_routed_kv=3)
    for options in (
        dict(channel_first=True),
        dict(multiply_keys_by_score=True, multiply_queries_by_score=True, router_straight_through=False),
        dict(use_null_q_tokens=False),
        dict(num_heavy_tokens_kv=16),
        dict(light_window_size=3, router_kwargs=dict(eps=0.5, cosine_sim_routing=True)),
    ):
        yield image_case(2, 12, 12, **options)


# -- ConditionalRoutedTransformerBlock ----------------------------------------------------------------------------------


def block_case(batch, length, masked=False, **options):
    """The regime of attention_case."""
    sizes = dict(dim=DIM, num_heavy_attn_tokens_q=5, num_heavy_attn_tokens_kv=4, num_heavy_ff_tokens=6, light_dim_head=8)
    sizes |= dict(light_heads=2, light_window_size=4, heavy_dim_head=8, heavy_heads=6, router_kwargs=dict(eps=1.0)) | options

    def inputs():
        x = normal(batch, length, DIM, scale=0.3)
        return (x, padding(batch, length)) if masked else (x,)

    return Case(
        f"ConditionalRoutedTransformerBlock: {batch} x {length}, {label(**options)}{', masked' * masked}",
        lambda: WithMask(ours.ConditionalRoutedTransformerBlock(**sizes)),
        lambda: WithMask(ConditionalRoutedTransformerBlock(**sizes)),
        inputs,
        regime="one route or a batch of one; whole half windows, or a mask; few scores of 1",
    )


def block_cases():
    for masked in (False, True):
        yield block_case(3, 16, masked)
        yield block_case(1, 16, masked, num_routed_kv=3)
    yield block_case(3, 16, light_ff_mult=0.7, heavy_ff_mult=2, use_null_q_tokens=False, router_straight_through=False,
                     multiply_keys_by_score=True, multiply_queries_by_score=True)  # fmt: skip


# -- ConditionalRoutedViT -----------------------------------------------------------------------------------------------


class PositionsInFloat64(ConditionalRoutedViT):
    """The package computes its table of positions in torch's default dtype, whatever the dtype of the model."""

    def forward(self, img):
        before = torch.get_default_dtype()
        torch.set_default_dtype(img.dtype)
        try:
            return super().forward(img)
        finally:
            torch.set_default_dtype(before)


def vit_case(batch, height, width, **options):
    """The regime of image_case."""
    sizes = dict(image_size=(8, 12), patch_size=2, num_classes=7, dim=DIM, depth=2, attn_num_heavy_tokens_q=2)
    sizes |= dict(attn_num_heavy_tokens_kv=3, attn_heavy_dim_head=8, attn_heavy_heads=2, attn_light_dim_head=4)
    sizes |= dict(attn_light_heads=3, attn_light_window_size=2, ff_num_heavy_tokens=5, ff_heavy_mult=3, ff_light_mult=0.5)
    sizes |= dict(default_coor_descent_eps=8.0) | options
    return Case(
        f"ConditionalRoutedViT: {batch} x {height} x {width}, {label(**options)}",
        lambda: ours.ConditionalRoutedViT(**sizes, routing="window"),
        lambda: PositionsInFloat64(**sizes),
        lambda: (normal(batch, sizes.get("channels", 3), height, width),),
        regime="by window, each larger than what is routed; one route; few scores of 1; positions in float64",
    )


def vit_cases():
    yield vit_case(3, 8, 12)
    yield vit_case(2, 16, 4, router_straight_through=False)
    yield vit_case(2, 8, 12, channels=1, patch_size=(2, 3), image_size=(8, 12), router_kwargs=dict(eps=6.0))


COLT5_CASES = [
    *router_cases(), *feed_forward_cases(), *attention_cases(), *image_cases(), *block_cases(), *vit_cases(),
]  # fmt: skip
