#!/usr/bin/env python3
"""Time of a decode step against context and batch, as SVG, from Google Benchmark's JSON.

    zipcache_cuda_bench --benchmark_filter=growth --benchmark_out=growth.json --benchmark_out_format=json
    bench/plot_growth.py growth.json growth.svg        (needs matplotlib)

Both axes are logarithmic, with a dashed line of slope one through the last point: a step that grows
with the bytes it reads runs along it, what is above it at the left is fixed cost.
"""
import json
import re
import sys

PANELS = {
    "context": ("tokens of one sequence", "kv_len"),
    "batch": ("sequences of 4096 tokens", "batch"),
}


def read_series(path):
    """panel -> [(size, microseconds)] in ascending order of size, and the name of the machine."""
    with open(path) as file:
        report = json.load(file)
    series = {}
    for run in report["benchmarks"]:
        match = re.search(r"growth/\w+/(\w+)/batch:(\d+)/kv_len:(\d+)", run["name"])
        if match is None or run.get("aggregate_name", "median") != "median":
            continue
        if run.get("error_occurred"):
            sys.exit(f"{run['name']}: {run['error_message']}")
        panel, batch, kv_len = match.group(1), int(match.group(2)), int(match.group(3))
        scale = {"ns": 1e-3, "us": 1.0, "ms": 1e3}[run["time_unit"]]
        size = kv_len if PANELS[panel][1] == "kv_len" else batch
        series.setdefault(panel, []).append((size, run["real_time"] * scale))
    if not series:
        sys.exit(f"{path}: has no benchmark of growth")
    return {panel: sorted(points) for panel, points in series.items()}


def draw(series, target):
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(series), figsize=(5.2 * len(series), 4), squeeze=False)
    for axis, (panel, points) in zip(axes[0], series.items()):
        sizes, times = zip(*points)
        axis.loglog(sizes, times, "o-", base=2, label="measured")
        axis.loglog(sizes, [times[-1] * size / sizes[-1] for size in sizes], "--", base=2, color="0.6",
                    label="in proportion to the last")
        axis.set_xlabel(PANELS[panel][0])
        axis.set_ylabel("microseconds a layer")
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axis.xaxis.set_major_formatter(
            lambda value, _: f"{value / 1024:g}k" if value >= 1024 else f"{value:g}")
        axis.grid(True, alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(target)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    draw(read_series(sys.argv[1]), sys.argv[2])
