# SPDX-License-Identifier: Apache-2.0
"""coordinate_descent against the published iteration, eager and under torch.compile, in one run.

The published vector form, not ours: what a user of the Python package runs. Blocks of calls alternate, so that both
sides see the same machine; figures are medians, ratios medians of paired ratios. Prints one JSON object.
Needs torch.compile's C++ compiler. WEIR_LIBRARY names libweir.so.
"""
import json
import os
import statistics
import sys
import time

import torch

torch.ops.load_library(os.environ["WEIR_LIBRARY"])
weir = torch.ops.weir

ANNEALED = dict(eps_init=4.0, eps_decay=0.7)
WORKLOADS = {
    "W0a": dict(rows=2, cols=32768, k=1152.0, n_iters=20, eps=0.03, **ANNEALED),
    "W0b": dict(rows=16, cols=131072, k=144.0, n_iters=20, eps=0.03, **ANNEALED),
    "W0c": dict(rows=16384, cols=2048, k=2.0, n_iters=15, eps=0.1, **ANNEALED),
    "W0d": dict(rows=2, cols=32768, k=1152.0, n_iters=50, eps=1.0, eps_init=1.0, eps_decay=1.0),
}


def published(scores, k, n_iters, eps, eps_init, eps_decay):
    """The iteration as the papers and packages write it: a vector b per iteration."""
    log_k = torch.tensor(k, dtype=scores.dtype).clamp(min=1e-20).log()
    current = max(eps_init, eps)
    b = -scores
    for _ in range(n_iters):
        a = current * (log_k - ((scores + b) / current).logsumexp(dim=-1, keepdim=True))
        b = -torch.relu(scores + a)
        current = max(current * eps_decay, eps)
    return ((scores + a + b) / current).exp()


def seconds(call, repeats):
    """Per call, in a block of its own: the first call, which finds the caches full of another method, is not timed."""
    call()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def compare(ours, peers, rounds, repeats):
    """Median seconds of all, and the median over rounds of peer / ours."""
    for call in [ours, *peers.values()]:
        call()
    times = {name: [] for name in ["weir", *peers]}
    for _ in range(rounds):
        times["weir"].append(seconds(ours, repeats))
        for name, peer in peers.items():
            times[name].append(seconds(peer, repeats))
    result = {name: {"ms": 1e3 * statistics.median(values)} for name, values in times.items()}
    for name in peers:
        result[name]["ratio"] = statistics.median(p / o for p, o in zip(times[name], times["weir"]))
    return result


def main():
    names = sys.argv[1:] or list(WORKLOADS)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", os.cpu_count())))
    torch.set_flush_denormal(True)  # helps the compiled peer most
    report = {"torch": torch.__version__, "threads": torch.get_num_threads(), "results": {}}
    for name in names:
        w = dict(WORKLOADS[name])
        rows, cols, k = w.pop("rows"), w.pop("cols"), w.pop("k")
        torch.manual_seed(0)
        scores, upstream = torch.randn(rows, cols), torch.randn(rows, cols)
        leaf = scores.clone().requires_grad_()
        compiled = torch.compile(lambda s: published(s, k, **w))
        methods = {
            "weir": lambda s: weir.coordinate_descent(s, k, **w),
            "exact": lambda s: weir.coordinate_descent(s, k, eps=w["eps"], solver="exact"),
            "eager": lambda s: published(s, k, **w),
            "compiled": compiled,
            "softmax": lambda s: s.softmax(-1),
        }
        expected = published(scores[:2].double(), k, **w)
        error = (methods["weir"](scores[:2]) - expected).abs().max().item()
        assert error < 2e-5, f"{name}: wrong answer, off by {error}"
        rounds, repeats = (15, 10) if rows * cols < 1e6 else (5, 2) if rows * cols < 1e7 else (3, 1)

        def forward(method):
            return lambda: method(scores)

        def both(method):
            return lambda: torch.autograd.grad(method(leaf), leaf, upstream)

        peers = [m for m in methods if m != "weir"]
        with torch.no_grad():
            report["results"][f"{name} forward"] = compare(forward(methods["weir"]), {m: forward(methods[m]) for m in peers}, rounds, repeats)
        report["results"][f"{name} forward+backward"] = compare(both(methods["weir"]), {m: both(methods[m]) for m in peers}, rounds, repeats)
    json.dump(report, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
