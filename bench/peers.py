#!/usr/bin/env python3
"""Attention side by side on one GPU: this library's benchmark and PyTorch's fp16 kernels.

    bench/peers.py build/release/bench/zipcache_cuda_bench [table.md] [--peer PROGRAM] [--repetitions N]
                                                                           (needs PyTorch with CUDA)

Runs the library's benchmark first, then times scaled_dot_product_attention with the same shapes
(32 query heads, 8 KV heads, 128 channels): CUDA graphs over sets of tensors that together outgrow
the L2 cache several times, CUDA events, medians. Prints two Markdown tables: decode attention, and
what saliency and compression of a prompt take beside its causal prefill attention.

PROGRAM, such as build/release/bench/zipcache_bitdecoding_peer, times another library's attention in
the shapes that it is given as BATCHxKV_LEN. It prints a JSON object a line with "peer", "bits",
"batch", "kv_len", "microseconds", "relative_error" and "allowed_error", and becomes a column for
each peer and bits. A time whose output is off by more than is allowed is marked by (!).
"""
import argparse
import json
import os
import re
import statistics
import subprocess
import tempfile

NUM_QO_HEADS, NUM_KV_HEADS, HEAD_DIM = 32, 8, 128
SHAPES = [(8, 4096), (8, 32768), (8, 131072), (64, 4096), (1, 131072)]
PROMPTS = [(8, 4096), (1, 32768)]
OURS = ["paper", "keys_4_values_2"]


def run_ours(binary, repetitions):
    """name of a benchmark -> its median run, or its only one."""
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.json")
        subprocess.run([binary, "--benchmark_filter=attend/cuda/(paper|keys_4_values_2)/|saliency/cuda/|"
                        "store/cuda/paper/",
                        f"--benchmark_repetitions={repetitions}", "--benchmark_min_time=0.05",
                        f"--benchmark_out={report}", "--benchmark_out_format=json"],
                       check=True, stdout=subprocess.DEVNULL)
        with open(report) as file:
            runs = json.load(file)["benchmarks"]
    wanted = "median" if repetitions > 1 else None
    return {run["run_name"].removesuffix("/manual_time"): run for run in runs
            if run.get("aggregate_name") == wanted}


def microseconds(run):
    return run["real_time"] * {"ns": 1e-3, "us": 1.0, "ms": 1e3}[run["time_unit"]]


def run_program(program):
    """column -> (batch, kv_len) -> cell."""
    shapes = [f"{batch}x{kv_len}" for batch, kv_len in SHAPES]
    # A shape that failed is a dash, and the program has said why.
    lines = subprocess.run([program, *shapes], stdout=subprocess.PIPE, text=True).stdout.splitlines()
    columns = {}
    for run in map(json.loads, lines):
        wrong = " (!)" if run["relative_error"] > run["allowed_error"] else ""
        cells = columns.setdefault(f"{run['peer']} {run['bits']} bit", {})
        cells[run["batch"], run["kv_len"]] = f"{run['microseconds']:.1f}{wrong}"
    return columns


def time_graph(torch, calls):
    """Median microseconds of one call, the calls captured into one graph."""
    for call in calls:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(2):
            for call in calls:
                call()
    samples = []
    for _ in range(15):
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        stop.record()
        stop.synchronize()
        samples.append(start.elapsed_time(stop) * 1e3 / (2 * len(calls)))
    return statistics.median(samples)


def run_peer(torch, backend, batch, kv_len):
    """Microseconds; the better of two ways to pass grouped queries; None where it does not run."""
    from torch.nn.attention import sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as attention

    bytes_of_set = 4 * batch * NUM_KV_HEADS * kv_len * HEAD_DIM
    count = max(1, min(12, -(-(250 << 20) // bytes_of_set)))
    def make(heads, length):
        return torch.randn(batch, heads, length, HEAD_DIM, device="cuda", dtype=torch.float16)

    sets = [(make(NUM_QO_HEADS, 1), make(NUM_KV_HEADS, kv_len), make(NUM_KV_HEADS, kv_len))
            for _ in range(count)]
    def by_heads(q, k, v):
        return lambda: attention(q, k, v, enable_gqa=True)
    def by_rows(q, k, v):  # a group's query heads as rows of one query
        rows = q.view(batch, NUM_KV_HEADS, NUM_QO_HEADS // NUM_KV_HEADS, HEAD_DIM)
        return lambda: attention(rows, k, v)

    best = None
    with sdpa_kernel(backend), torch.no_grad():
        for way in (by_heads, by_rows):
            try:
                time = time_graph(torch, [way(*tensors) for tensors in sets])
            except RuntimeError:
                continue
            best = time if best is None else min(best, time)
    return best


def run_prefill(torch, backend, batch, seq_len):
    """Microseconds of causal attention of whole prompts; None where it does not run."""
    from torch.nn.attention import sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention as attention

    def make(heads):
        return torch.randn(batch, heads, seq_len, HEAD_DIM, device="cuda", dtype=torch.float16)

    q, k, v = make(NUM_QO_HEADS), make(NUM_KV_HEADS), make(NUM_KV_HEADS)
    with sdpa_kernel(backend), torch.no_grad():
        try:
            return time_graph(torch, [lambda: attention(q, k, v, is_causal=True, enable_gqa=True)])
        except RuntimeError:
            return None


def prefill_lines(torch, ours, peers):
    """The table of what a prompt costs."""
    lines = ["Prompts, microseconds a layer: causal attention; saliency of 5 % recent and 5 % random",
             "probes, in brackets of the faster fp16 kernel's time; keys and values compressed (paper), in",
             "brackets of the time to copy the bytes it must move",
             "", "| batch x tokens | " + " | ".join(f"fp16 {name}" for name in peers) +
             " | saliency with lse | without | compress |",
             "| --- |" + " ---: |" * (len(peers) + 3)]
    for batch, seq_len in PROMPTS:
        times = [run_prefill(torch, backend, batch, seq_len) for backend in peers.values()]
        torch.cuda.empty_cache()
        fastest = min((time for time in times if time is not None), default=None)
        cells = ["-" if time is None else f"{time:.0f}" for time in times]
        shape = f"/batch:{batch}/seq_len:{seq_len}"
        for name in ("with_lse", "without_lse"):
            time = microseconds(ours[f"saliency/cuda/normalized_{name}{shape}"])
            share = "" if fastest is None else f" ({100 * time / fastest:.1f} %)"
            cells.append(f"{time:.0f}{share}")
        compress = ours[f"store/cuda/paper{shape}"]
        copies = 100 / compress["percent_of_peak_bandwidth"]
        cells.append(f"{microseconds(compress):.0f} ({copies:.2f}x)")
        lines.append(f"| {batch} x {seq_len} | " + " | ".join(cells) + " |")
    return lines


def main(binary, target, program, repetitions):
    ours = run_ours(binary, repetitions)
    others = run_program(program) if program else {}
    import torch
    from torch.nn.attention import SDPBackend

    peers = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
    lines = [f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, CUDA {torch.version.cuda}; "
             "microseconds a layer, in brackets the gain over the faster fp16 kernel", "",
             "| batch x context | " + " | ".join([*(f"fp16 {name}" for name in peers), *others, *OURS]) +
             " |", "| --- |" + " ---: |" * (len(peers) + len(others) + len(OURS))]
    for batch, kv_len in SHAPES:
        times = [run_peer(torch, backend, batch, kv_len) for backend in peers.values()]
        torch.cuda.empty_cache()
        fastest = min((time for time in times if time is not None), default=None)
        cells = ["-" if time is None else f"{time:.1f}" for time in times]
        cells += [column.get((batch, kv_len), "-") for column in others.values()]
        for preset in OURS:
            time = microseconds(ours[f"attend/cuda/{preset}/batch:{batch}/kv_len:{kv_len}"])
            gain = "" if fastest is None else f" ({fastest / time:.1f}x)"
            cells.append(f"{time:.1f}{gain}")
        lines.append(f"| {batch} x {kv_len} | " + " | ".join(cells) + " |")
    lines += ["", *prefill_lines(torch, ours, peers)]
    table = "\n".join(lines) + "\n"
    print(table, end="")
    if target:
        with open(target, "w") as file:
            file.write(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("target", nargs="?")
    parser.add_argument("--peer", metavar="PROGRAM")
    parser.add_argument("--repetitions", type=int, default=5, metavar="N",
                        help="runs of the library's benchmark, most of whose time is preparation")
    arguments = parser.parse_args()
    main(arguments.binary, arguments.target, arguments.peer, arguments.repetitions)
