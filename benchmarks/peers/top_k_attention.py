# SPDX-License-Identifier: Apache-2.0
"""top_k_attention and low_rank_attention against eager torch and PyTorch's dense attention on W9 of docs/performance.md. Prints JSON.

Eager works in chunks of queries, as the published code does: logits, torch.topk, softmax over them; then either the values of
the kept keys are gathered, or the weights are scattered into a dense matrix and multiplied. low_rank_attention chooses by the
first 16 features of queries and keys: per head, or once for four heads.

usage: top_k_attention.py [WORKLOAD...]   WEIR_LIBRARY names libweir.so
"""
import json
import os
import sys

import torch
import torch.nn.functional as F
from block_sparse_attention import run, seconds

weir = torch.ops.weir.top_k_attention
low_rank = torch.ops.weir.low_rank_attention
HEADS, DIM, K, CHUNK = 12, 64, 128, 1024
ROUTE_DIM = 16


def eager(q, k, v, gathered):
    n, outputs = k.size(2), []
    positions = torch.arange(n)
    for start in range(0, q.size(2), CHUNK):
        part = q[:, :, start : start + CHUNK]
        logits = part @ k.transpose(-2, -1) * DIM**-0.5
        logits = logits.masked_fill(positions[None] > positions[start : start + CHUNK, None], -torch.inf)
        top, indices = logits.topk(K, dim=-1, sorted=False)
        weights = top.softmax(-1)
        if gathered:
            flat = (indices + n * torch.arange(HEADS)[:, None, None]).flatten()
            values = v.flatten(0, 2).index_select(0, flat).view(*indices.shape, DIM)
            outputs.append((weights.unsqueeze(-2) @ values).squeeze(-2))
        else:
            outputs.append(torch.zeros_like(logits).scatter(-1, indices, weights) @ v)
    return torch.cat(outputs, 2)


def routed(q, k, v, heads):
    route = (x[:, :: HEADS // heads, :, :ROUTE_DIM] for x in (q, k))
    return low_rank(*route, q, k, v, K, causal=True)


METHODS = {
    "weir": lambda q, k, v: weir(q, k, v, K, causal=True),
    "weir low_rank, 12 routes": lambda q, k, v: routed(q, k, v, HEADS),
    "weir low_rank, 3 routes": lambda q, k, v: routed(q, k, v, 3),
    "eager, gathered": lambda q, k, v: eager(q, k, v, True),
    "eager, scattered": lambda q, k, v: eager(q, k, v, False),
    "sdpa causal, dense": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
}


def main():
    names = sys.argv[1:]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    torch.manual_seed(0)
    report = {"torch": torch.__version__, "threads": torch.get_num_threads(), "results": {}}
    if not names or "W9" in names:
        q, k, v = (torch.randn(1, HEADS, 2048, DIM, requires_grad=True) for _ in range(3))
        with torch.no_grad():
            # A few rows of nearly equal logits may keep another key.
            error = (METHODS["weir"](q, k, v) - METHODS["eager, gathered"](q, k, v)).abs().amax(-1)
            assert (error > 1e-5).float().mean() < 1e-3, f"W9: wrong answer, off by {error.max().item()}"
            # Routed by all features it is top_k_attention.
            error = (low_rank(q, k, q, k, v, K, causal=True) - METHODS["weir"](q, k, v)).abs().max().item()
            assert error < 1e-5, f"W9: wrong answer of low_rank_attention, off by {error}"
        report["results"]["W9 n 2048, k 128"] = run(q, k, v, torch.randn_like(q), METHODS, 3)
        q, k, v = (torch.randn(1, HEADS, 16384, DIM) for _ in range(3))
        weir(q[:, :, :64], k, v, K)
        once = {name: 1e3 * seconds(lambda m=method: m(q, k, v)) for name, method in METHODS.items()}
        report["results"]["W9 n 16384, k 128"] = {"forward": once}
    json.dump(report, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
