# SPDX-License-Identifier: Apache-2.0
"""CoLT5's other layers on W2, W10 and W11 of docs/performance.md, against the published package CoLT5-attention in eager torch.
Prints JSON. Where the package crashes it is called as near by as it works; each workload says how.

usage: routed_sequences.py [WORKLOAD...]   WEIR_LIBRARY names libweir.so
"""
import json
import os
import sys

import colt5_attention as published
import colt5_attention.transformer_block as published_code
import torch
from torch import nn

from conditional_routing import both, compare, forward
from weir import colt5_attention as weir_colt5

published_code.should_route_queries = True  # a name that the package's cross attention reads and never defines


def equal(ours, theirs):
    """The same weights, for similarities of size 1."""
    for name, parameter in theirs.named_parameters():
        if name.endswith("routing_token"):
            parameter.data *= 0.03
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def check(ours, theirs, x):
    """The mean of squares of outputs, where both choose the same but for a few ties and defects of many windows or routes."""
    with torch.no_grad():
        got, expected = ours(x), theirs(x)
    assert got.shape == expected.shape
    error = abs(got.square().mean() / expected.square().mean() - 1)
    assert error < 0.1, f"wrong answer, squares off by {error}"


class Memories(nn.Module):
    """Cross attention of one argument, which is attended to."""

    def __init__(self, package, **options):
        super().__init__()
        self.attention = package.ConditionalRoutedCrossAttention(
            dim=512, dim_head=64, heads=8, num_tokens_q=512, num_tokens_kv=1024, kv_routing_tokens=2, **options
        )
        self.register_buffer("tokens", torch.randn(1, 1024, 512, generator=torch.Generator().manual_seed(0)), persistent=False)

    def forward(self, memories):
        return self.attention(self.tokens, memories)


def cross():
    """1024 tokens, 512 of them, to 1024 of 1,048,576 memories; Weir from blocks of 131,072, which crash in the package."""
    return *equal(Memories(weir_colt5, route_block_size=131072), Memories(published)), torch.randn(1, 1048576, 512)


def autoregressive():
    """2 x 8192 x 512, windows of 128, 32 queries of each, 1024 keys, 2 routes; Weir without looking ahead, the package with."""
    sizes = dict(dim=512, num_heavy_tokens_q=32, num_heavy_tokens_kv=1024, num_routed_kv=2, light_window_size=128)
    name = "ConditionalRoutedAutoregressiveAttention"
    modules = (getattr(package, name)(**sizes) for package in (weir_colt5, published))
    return *equal(*modules), torch.randn(2, 8192, 512)


def image(routing, number):
    """A map of 256 x 256 x 32, windows of 32; the package inside each window, of which it must leave a token."""
    sizes = dict(dim=32, light_dim_head=64, light_heads=8, light_window_size=32, channel_first=True, heavy_dim_head=64, heavy_heads=8)
    ours = weir_colt5.ConditionalRoutedImageAttention(**sizes, num_heavy_tokens_q=number, num_heavy_tokens_kv=number, routing=routing)
    theirs = published.ConditionalRoutedImageAttention(**sizes, num_heavy_tokens_q=1023, num_heavy_tokens_kv=1023)
    return *equal(ours, theirs), torch.randn(1, 32, 256, 256)


WORKLOADS = {
    "W2": cross,
    "W10": autoregressive,
    "W11, all 65,536 places": lambda: image("global", 1024),
    "W11, inside windows": lambda: image("window", 1023),
}


def main():
    names = sys.argv[1:]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    torch.set_flush_denormal(True)  # helps the published package
    report = {"torch": torch.__version__, "threads": torch.get_num_threads(), "results": {}}
    for name, make in WORKLOADS.items():
        if names and name.split(",")[0] not in names:
            continue
        torch.manual_seed(0)
        ours, theirs, x = make()
        if name != "W11, all 65,536 places":
            check(ours, theirs, x)
        results = {"forward": compare(forward, ours, {"published eager": theirs}, x, rounds=3)}
        if not name.startswith("W11"):  # the package would keep 20 GB
            results["forward + backward"] = compare(both, ours, {"published eager": theirs}, x, rounds=1)
        report["results"][name] = results
    json.dump(report, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
