# SPDX-License-Identifier: Apache-2.0
"""The table of the autoregressive modules of CoLT5-attention: rows as in cases.py.

The package chooses queries from whole windows (A7), which is Weir's `autoregressive_routing="window"`, and keys by coordinate
descent also where a prefix is taken whole: compared are one route (A1) and fewer keys than a window has positions.
"""
from colt5_attention import ConditionalRoutedAutoregressiveAttention
from weir.colt5_attention import ConditionalRoutedAutoregressiveAttention as WeirAttention

from cases import label, normal
from harness import Case

DIM = 16


def autoregressive_case(batch, length, **options):
    sizes = dict(dim=DIM, num_heavy_tokens_q=3, num_heavy_tokens_kv=5, light_dim_head=8, light_heads=2, light_window_size=8)
    sizes |= dict(heavy_dim_head=8, heavy_heads=6, router_kwargs=dict(eps=1.0)) | options
    return Case(
        f"ConditionalRoutedAutoregressiveAttention: {batch} x {length}, {label(**options)}",
        lambda: WeirAttention(**sizes, autoregressive_routing="window"),
        lambda: ConditionalRoutedAutoregressiveAttention(**sizes),
        lambda: (normal(batch, length, DIM, scale=0.3),),
        regime="window routing; one route; a window at least, and fewer keys than it has positions; few scores of 1",
    )


def autoregressive_cases():
    for length in (16, 24, 29, 40):
        for through in (True, False):
            yield autoregressive_case(3, length, router_straight_through=through)
    for options in (
        dict(rotary_emb=True),
        dict(multiply_keys_by_score=True, multiply_queries_by_score=True, router_straight_through=False),
        dict(use_null_q_tokens=False),
        dict(heavy_window_size=6),
        dict(num_heavy_tokens_q=8),
        dict(router_kwargs=dict(eps=0.5, cosine_sim_routing=True)),
    ):
        yield autoregressive_case(3, 29, **options)


COLT5_CAUSAL_CASES = [*autoregressive_cases()]
