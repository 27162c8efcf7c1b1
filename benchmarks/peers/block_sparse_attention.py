# SPDX-License-Identifier: Apache-2.0
"""block_sparse_attention against PyTorch's own attention on W7 and W8 of docs/performance.md. Prints JSON.

usage: block_sparse_attention.py [WORKLOAD...]   WEIR_LIBRARY names libweir.so
"""
import json
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

torch.ops.load_library(os.environ["WEIR_LIBRARY"])
weir = torch.ops.weir.block_sparse_attention


def fixed_layout(n, block, ctx):
    blocks, chunk = torch.arange(n // block), ctx // block
    return (blocks[:, None] // chunk == blocks[None] // chunk) | (blocks % chunk == chunk - 1)[None]


def positions(n):
    return torch.arange(n)[:, None], torch.arange(n)[None]


def w7():
    """{mode: (arguments of weir, rule of positions)}; batch 4, 4 heads, 1024 positions, 64 features, block 32."""
    fixed = fixed_layout(1024, 32, 128)
    return {
        "W7 all": (dict(causal=True), lambda i, j: j <= i),
        "W7 fixed, ctx 128": (dict(causal=True, layout=fixed), lambda i, j: (j <= i) & ((i // 128 == j // 128) | (j % 128 >= 96))),
        "W7 local, ctx 32": (dict(causal=True, window=32), lambda i, j: (j <= i) & (i - j < 32)),
        "W7 strided, ctx 32": (dict(causal=True, stride=32), lambda i, j: (j <= i) & ((i - j) % 32 == 0)),
    }


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(calls, rounds):
    """Median milliseconds of each, run in turns."""
    for call in calls.values():
        call()
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            call()  # caches and threads are this method's
            times[name].append(seconds(call))
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def run(q, k, v, upstream, methods, rounds):
    def both(method):
        return lambda: torch.autograd.grad(method(q, k, v), (q, k, v), upstream)

    plain = [x.detach() for x in (q, k, v)]
    forward = compare({name: lambda m=m: m(*plain) for name, m in methods.items()}, rounds)
    trainable = {name: both(m) for name, m in methods.items() if name != "flex"}  # no backward on a CPU
    return {"forward": forward, "forward+backward": compare(trainable, rounds)}


def main():
    names = sys.argv[1:]
    wanted = lambda workload: not names or workload in names
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    torch.manual_seed(0)
    report = {"torch": torch.__version__, "threads": torch.get_num_threads(), "results": {}}
    if wanted("W7"):
        q, k, v = (torch.randn(4, 4, 1024, 64, requires_grad=True) for _ in range(3))
        upstream = torch.randn(4, 4, 1024, 64)
        for name, (arguments, rule) in w7().items():
            mask = rule(*positions(1024))
            block_mask = create_block_mask(lambda b, h, i, j: rule(i, j), None, None, 1024, 1024, device="cpu", BLOCK_SIZE=32)
            flex = torch.compile(flex_attention)
            methods = {
                "weir": lambda q, k, v, a=arguments: weir(q, k, v, **a),
                "sdpa with mask": lambda q, k, v, m=mask: F.scaled_dot_product_attention(q, k, v, attn_mask=m),
                "sdpa causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
                "flex": lambda q, k, v, b=block_mask, f=flex: f(q, k, v, block_mask=b),
            }
            with torch.no_grad():
                error = (methods["weir"](q, k, v) - methods["sdpa with mask"](q, k, v)).abs().max().item()
            assert error < 1e-5, f"{name}: wrong answer, off by {error}"
            report["results"][name] = run(q, k, v, upstream, methods, 9)
    if wanted("W8"):
        q, k, v = (torch.randn(1, 8, 65536, 64, requires_grad=True) for _ in range(3))
        upstream = torch.randn(1, 8, 65536, 64)
        methods = {"weir": lambda q, k, v: weir(q, k, v, window=65)}
        try:
            from local_attention import LocalAttention

            package = LocalAttention(window_size=64, look_backward=1, look_forward=1, exact_windowsize=True, use_rotary_pos_emb=False)
            methods["local-attention"] = lambda q, k, v: package(q, k, v)
            with torch.no_grad():
                error = (methods["weir"](q, k, v) - package(q, k, v)).abs().max().item()
            assert error < 1e-5, f"W8: wrong answer, off by {error}"
        except ImportError:
            pass
        report["results"]["W8"] = run(q, k, v, upstream, methods, 3)
    json.dump(report, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
