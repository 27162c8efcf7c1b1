# SPDX-License-Identifier: Apache-2.0
"""Trains the model of attention_that_chooses.toml with every kind of attention and several seeds, and prints a table:
bits per byte of held-out text, seconds of training, peak memory.

usage: python examples/attention_that_chooses.py build/release/weir [--seeds 3] [--steps 3000] [--jobs 1] [--data PATH]
Each run takes a few minutes; a run that has ended is not repeated.
"""
import argparse
import concurrent.futures
import json
import os
import pathlib
import statistics
import subprocess

CONFIG = pathlib.Path(__file__).with_suffix(".toml")
DESCENT = {"attn_kind": "coordinate_descent"}
KINDS = {
    "softmax": {},
    "coordinate descent, k = 2, as published": DESCENT,
    "coordinate descent, k = 2, eps 1": DESCENT | {"coor_descent_eps": 1.0},
    "coordinate descent, k learned up to 8, eps 1": DESCENT
    | {"coor_descent_eps": 1.0, "attn_coor_descent_sparsity_k": 8, "learned_sparsity_k": "true"},
    "top-k, 16 keys": {"attn_kind": "top_k"},
    "low rank, 16 keys": {"attn_kind": "low_rank"},
    "low rank, 16 keys, coordinate descent": {"attn_kind": "low_rank", "attn_route_score": "coordinate_descent"},
}


def train(arguments, name, seed):
    """(bits per byte, seconds, peak MiB) of one run."""
    slug = "".join(c if c.isalnum() else "-" for c in name)
    out = pathlib.Path(arguments.out) / f"{slug}-{seed}"
    done = out / "peak.json"
    if not done.exists():
        options = {f"model.{key}": value for key, value in KINDS[name].items()}
        options |= {"train.seed": seed, "train.steps": arguments.steps}
        if arguments.data:
            options["data.path"] = arguments.data
        command = [arguments.weir, "train", "--config", CONFIG, "--out", out, "--resume", "auto", "--no-progress"]
        command += ["--threads", max(1, os.cpu_count() // arguments.jobs)]
        command += [word for key, value in options.items() for word in (f"--{key}", value)]
        with subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise SystemExit(f"{out}: weir train ended with {process.returncode}")
        done.write_text(json.dumps(usage.ru_maxrss / 1024))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["type"] == "evaluation"][-1]
    return last["eval_bits_per_byte"], last["seconds"], json.loads(done.read_text())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("weir")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; times are then those of shared cores")
    parser.add_argument("--data")
    parser.add_argument("--out", default="runs/attention_that_chooses")
    arguments = parser.parse_args()
    pathlib.Path(arguments.out).mkdir(parents=True, exist_ok=True)
    runs = [(name, seed) for seed in range(1, arguments.seeds + 1) for name in KINDS]
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        results = dict(zip(runs, pool.map(lambda run: train(arguments, *run), runs)))
    print("| attention | bits per byte | seeds | s | peak MiB |")
    print("| --- | --- | --- | --- | --- |")
    for name in KINDS:
        bits, seconds, peaks = zip(*(results[name, seed] for seed in range(1, arguments.seeds + 1)))
        each = ", ".join(f"{value:.3f}" for value in bits)
        print(f"| {name} | {statistics.mean(bits):.3f} | {each} | {statistics.mean(seconds):.0f} | {max(peaks):.0f} |")


if __name__ == "__main__":
    main()
