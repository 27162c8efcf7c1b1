# SPDX-License-Identifier: Apache-2.0
"""The rows A5 and A7 of docs/differences.md: what CoLT5-attention does in causal layers, and that Weir does the right thing."""
import pytest
import torch
from weir.colt5_attention import ConditionalRoutedAutoregressiveAttention

pytest.importorskip("coordinate_descent_attention", reason="tests/parity/requirements.txt is not installed")

from colt5_attention import ConditionalRoutedAutoregressiveAttention as Published

from cases import normal
from harness import TOLERANCES

SIZES = dict(dim=16, num_heavy_tokens_q=3, num_heavy_tokens_kv=5, light_dim_head=8, light_heads=2, light_window_size=8,
             heavy_dim_head=8, heavy_heads=6, router_kwargs=dict(eps=1.0))  # fmt: skip


def modules(**options):
    torch.manual_seed(0)
    theirs, ours = Published(**SIZES).double(), ConditionalRoutedAutoregressiveAttention(**SIZES, **options).double()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def test_a5_fewer_tokens_than_a_window():
    theirs, ours = modules()
    x = normal(2, 5, 16)
    with pytest.raises(Exception):
        theirs(x)
    torch.testing.assert_close(ours(x), theirs.light_attn(x), rtol=0, atol=TOLERANCES[torch.float64])


def earlier_ones_move(module, n=32):
    """Whether a change at any position changes an output before it."""
    x = normal(2, n, 16)
    before = module(x)
    for t in range(1, n):
        other = x.clone()
        other[:, t] *= -3
        if not torch.equal(module(other)[:, :t], before[:, :t]):
            return True
    return False


def test_a7_which_queries_are_routed_depends_on_later_tokens():
    theirs, ours = modules()
    assert earlier_ones_move(theirs)
    assert earlier_ones_move(modules(autoregressive_routing="window")[1])
    assert not earlier_ones_move(ours)
