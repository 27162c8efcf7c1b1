# SPDX-License-Identifier: Apache-2.0
"""coordinate_descent_attention on W3a of docs/performance.md, against the published composition in eager torch and under
torch.compile, and against PyTorch's causal softmax attention; then peak memory. Prints JSON.

usage: coordinate_descent_attention.py [WORKLOAD...]   WEIR_LIBRARY names libweir.so
"""
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

torch.ops.load_library(os.environ["WEIR_LIBRARY"])
weir = torch.ops.weir.coordinate_descent_attention

SHAPE, K = (1, 8, 2048, 64), 2.0
SOLVER = dict(n_iters=15, eps=0.1, eps_init=4.0, eps_decay=0.7)


def published(q, k, v):
    """As the published package writes it: logits, mask, the vector iteration, product."""
    lowest = -torch.finfo(q.dtype).max
    s = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    away = torch.ones(s.shape[-2:], dtype=torch.bool).triu(1)
    s = s.masked_fill(away, lowest)
    log_k = torch.tensor(K, dtype=s.dtype).log()
    current = max(SOLVER["eps_init"], SOLVER["eps"])
    b = -s
    for _ in range(SOLVER["n_iters"]):
        a = current * (log_k - ((s + b) / current).masked_fill(away, lowest).logsumexp(dim=-1, keepdim=True))
        b = -torch.relu(s + a)
        current = max(current * SOLVER["eps_decay"], SOLVER["eps"])
    return ((s + a + b) / current).exp().masked_fill(away, 0.0) @ v


METHODS = {
    "weir": lambda q, k, v: weir(q, k, v, K, causal=True, **SOLVER),
    "exact": lambda q, k, v: weir(q, k, v, K, causal=True, eps=SOLVER["eps"], solver="exact"),
    "published eager": published,
    "published torch.compile": torch.compile(published),
    "sdpa causal": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
}
ROUNDS = {"published eager": 3, "published torch.compile": 5}


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(calls, rounds=9):
    """Median milliseconds of each, run in turns; the slow ones fewer times."""
    for call in calls.values():
        call()
    times = {name: [] for name in calls}
    for turn in range(rounds):
        for name, call in calls.items():
            if turn < ROUNDS.get(name, rounds):
                if name not in ROUNDS:
                    call()  # caches and threads are this method's
                times[name].append(seconds(call))
    return {name: 1e3 * statistics.median(values) for name, values in times.items()}


def w3a():
    torch.manual_seed(0)
    q, k, v, upstream = (torch.randn(SHAPE) for _ in range(4))
    small = [x[:, :2, :300].double() for x in (q, k, v)]
    error = (METHODS["weir"](*(x.float() for x in small)) - published(*small)).abs().max().item()
    assert error < 2e-4, f"wrong answer, off by {error}"
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    with torch.no_grad():
        forward = compare({name: lambda m=m: m(q, k, v) for name, m in METHODS.items()})
    both = compare({name: lambda m=m: torch.autograd.grad(m(*leaves), leaves, upstream) for name, m in METHODS.items()})
    return {"forward": forward, "forward+backward": both}


TRAIN_ATTENTION = """
import torch
q, k, v = (torch.randn(1, 8, {n}, 64, requires_grad=True) for _ in range(3))
run = lambda: torch.ops.weir.coordinate_descent_attention(q, k, v, 2.0, causal=True, n_iters=15, eps=0.1, eps_init=4.0, eps_decay=0.7).sum().backward()
"""
TRAIN_MODEL = """
import torch, weir
model = weir.CoordinateDescentTransformer(num_tokens=256, dim=512, depth=2, seq_len=2048, dim_head=64, heads=8, attn_use_coor_descent=True)
tokens = torch.randint(0, 256, (1, 2048))
run = lambda: model(tokens).logsumexp(-1).sum().backward()
"""
PEAK = """
def peak():
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak(); run(); print(peak() - before)
"""


def peak_mebibytes(code):
    """Of one forward and backward, beyond what was there before, in a process of its own."""
    load = f"import torch; torch.ops.load_library({os.environ['WEIR_LIBRARY']!r})\n"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC")}
    environment["PYTHONPATH"] = str(pathlib.Path(__file__).resolve().parents[2] / "python")
    command = [sys.executable, "-c", load + code + PEAK]
    return float(subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True).stdout)


def main():
    names = sys.argv[1:]
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    torch.set_flush_denormal(True)  # helps the published peer
    report = {"torch": torch.__version__, "threads": torch.get_num_threads(), "results": {}, "peak_mebibytes": {}}
    if not names or "W3a" in names:
        report["results"]["W3a"] = w3a()
    if not names or "W3" in names:
        report["peak_mebibytes"]["W3a, n = 2,048"] = peak_mebibytes(TRAIN_ATTENTION.format(n=2048))
        report["peak_mebibytes"]["W3a, n = 16,384"] = peak_mebibytes(TRAIN_ATTENTION.format(n=16384))
        report["peak_mebibytes"]["W3: the README's model, depth 2"] = peak_mebibytes(TRAIN_MODEL)
    json.dump(report, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
