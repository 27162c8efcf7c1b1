# SPDX-License-Identifier: Apache-2.0
"""CoLT5's layers on W1, W1a and W1b of docs/performance.md, against the published package CoLT5-attention in eager torch and,
at a quarter of the size, under torch.compile; then W1n, the block beside a dense layer as the sequence grows. Prints JSON.

usage: conditional_routing.py [WORKLOAD...]   WEIR_LIBRARY names libweir.so
"""
import json
import os
import pathlib
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python"))
import colt5_attention as published  # noqa: E402
import weir  # noqa: E402

DIM, TOKENS, HEAVY = 512, (2, 32768), 1024
ATTENTION = dict(light_dim_head=64, light_heads=8, light_window_size=128, heavy_dim_head=64, heavy_heads=8)
FEED_FORWARD = dict(light_ff_mult=0.5, heavy_ff_mult=4)


def attention(package, heavy=HEAVY, **options):
    return package.ConditionalRoutedAttention(DIM, num_heavy_tokens_q=heavy, num_heavy_tokens_kv=heavy, **ATTENTION, **options)


def feed_forward(package, heavy=HEAVY, **options):
    return package.ConditionalRoutedFeedForward(DIM, num_heavy_tokens=heavy, **FEED_FORWARD, **options)


class Block(nn.Module):
    """The published ConditionalRoutedTransformerBlock."""

    def __init__(self, package, heavy=HEAVY, **options):
        super().__init__()
        self.conditional_ff, self.conditional_attn = feed_forward(package, heavy, **options), attention(package, heavy, **options)

    def forward(self, x):
        x = self.conditional_attn(x) + x
        return self.conditional_ff(x) + x


class Dense(nn.Module):
    """A layer of the same width: full attention and a feed-forward of four times the width."""

    def __init__(self):
        super().__init__()
        self.norm, self.to_qkv, self.to_out = nn.LayerNorm(DIM), nn.Linear(DIM, 3 * DIM, bias=False), nn.Linear(DIM, DIM, bias=False)
        self.ff = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (8, 64)).transpose(1, 2) for t in self.to_qkv(self.norm(x)).chunk(3, -1))
        x = self.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)) + x
        return self.ff(x) + x


MODULES = {"W1": Block, "W1a": feed_forward, "W1b": attention}


def pair(make, heavy=HEAVY, **options):
    """Weir's module and the package's, of the same weights."""
    torch.manual_seed(0)
    theirs, ours = make(published, heavy, **options), make(weir, heavy, **options)
    for name, parameter in theirs.named_parameters():
        if name.endswith("routing_token"):
            parameter.data *= 0.03  # similarities of size 1: few scores are 1, among which the package chooses any
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def check(make):
    """Where the package is right: scores that do not saturate, windows that divide the sequence, gradients of what is chosen."""
    ours, theirs = pair(make, 64, router_kwargs=dict(eps=1.0))
    torch.manual_seed(1)
    x = torch.randn(2, 512, DIM).requires_grad_()
    upstream = torch.randn(2, 512, DIM)
    results = []
    for module in (ours, theirs):
        out = module(x)
        results.append([out, *torch.autograd.grad(out, [x, *dict(sorted(module.named_parameters())).values()], upstream)])
    for got, expected in zip(*results):
        error = (got - expected).abs().max() / expected.abs().max().clamp_min(1)
        assert error < 2e-4, f"wrong answer, off by {error}"
    exact = results[0][0].detach()
    error = (ours.bfloat16()(x.detach().bfloat16()).float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert error < 0.1, f"wrong answer in bfloat16, off by {error}"  # one token in 64 may be another


def forward(module, x):
    with torch.no_grad():
        module(x)


def both(module, x):
    leaf = x.detach().requires_grad_()
    torch.autograd.grad(module(leaf).sum(), [leaf, *module.parameters()])


def milliseconds(run, *args):
    start = time.perf_counter()
    run(*args)
    return 1e3 * (time.perf_counter() - start)


def compare(run, ours, peers, x, rounds=5):
    """Median milliseconds, and the median over rounds of peer / ours, run one after the other."""
    for module in (ours, *peers.values()):
        run(module, x)
    times, ratios = {name: [] for name in ("weir", *peers)}, {name: [] for name in peers}
    for _ in range(rounds):
        for name, peer in peers.items():
            times["weir"].append(milliseconds(run, ours, x))
            times[name].append(milliseconds(run, peer, x))
            ratios[name].append(times[name][-1] / times["weir"][-1])
    return {name: dict(ms=statistics.median(t), ratio=statistics.median(ratios.get(name, [1.0]))) for name, t in times.items()}


def against_the_package(name):
    make, results = MODULES[name], {}
    check(make)
    for dtype in (torch.float32, torch.bfloat16):
        ours, theirs = (module.to(dtype) for module in pair(make))
        x = torch.randn(*TOKENS, DIM, dtype=dtype)
        small_ours, small_theirs = (module.to(dtype) for module in pair(make, HEAVY // 4))
        quarter = x[:, : TOKENS[1] // 4].contiguous()
        for direction, run in {"forward": forward, "forward + backward": both}.items():
            kind = f"{direction}, {str(dtype).removeprefix('torch.')}"
            results[kind] = compare(run, ours, {"published eager": theirs}, x)
            compiled = {"published eager": small_theirs, "published torch.compile": torch.compile(small_theirs)}
            results[f"{kind}, a quarter"] = compare(run, small_ours, compiled, quarter)
    return results


def scaling(lengths=(4096, 8192, 16384, 32768, 65536, 131072), longest_backward=32768):
    results, dense = {}, Dense()
    for n in lengths:
        torch.manual_seed(0)
        ours, x = Block(weir, n // 16), torch.randn(1, n, DIM)
        rounds = 5 if n <= 8192 else 1
        results[f"{n} tokens, forward"] = compare(forward, ours, {"dense": dense}, x, rounds)
        if n <= longest_backward:
            results[f"{n} tokens, forward + backward"] = compare(both, ours, {"dense": dense}, x, rounds)
    return results


def main():
    names = sys.argv[1:]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    torch.set_flush_denormal(True)  # helps the published package
    report = {"torch": torch.__version__, "threads": torch.get_num_threads(), "results": {}}
    for name in MODULES:
        if not names or name in names:
            report["results"][name] = against_the_package(name)
    if not names or "W1n" in names:
        report["results"]["W1n"] = scaling()
    json.dump(report, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
