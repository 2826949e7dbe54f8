"""Packing of a sweep's runs into a cluster: the makespan, compared with a lower bound that no order can beat.

The decisions are those of the sweep's scheduler (`pipelines/sweeps/schedule.py`). 8 to 512 runs of known lengths are
simulated on logical GPUs, with a clock that jumps from event to event: first every run takes one GPU, then runs take a
quarter, a half, one, or two GPUs as two workers. For 8 runs the bound is the shortest possible schedule. A few runs
that only sleep are also executed on a real Ray cluster by the sweep's own loop. `ratio` is the worst makespan divided
by its bound; a plot is written beside the result.
"""

from __future__ import annotations

import heapq
import io
import time
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

CONFIG: dict[str, Any] = {"runs": [8, 16, 32, 64, 128, 256, 512], "runs_a_gpu": 8, "draws": 3, "seed": 0, "threads": 1,
                          "real_runs": 12, "real_gpus": 2, "real_unit_s": 4.0}
SECONDS = (60, 90, 240, 400, 700, 900)  # six methods, from training-free to the slowest; folds differ by up to 30 %
MACHINE_GPUS = 8
EXACT_RUNS = 8  # up to this number of runs, the bound is the shortest schedule, found by trying all orders


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Makespan divided by the lower bound, for every number of simulated runs and for the real runs."""
    rows = [_simulate(n, mixed, draw, config) for n in config["runs"] for mixed in (False, True)
            for draw in range(config["draws"])]
    worst = {f"{n}-{kind}": max(r["ratio"] for r in rows if r["runs"] == n and r["needs"] == kind)
             for n in config["runs"] for kind in ("one", "mixed")}
    real = _run_real(config) if config["real_runs"] else {}
    ratio = max([*worst.values(), *([real["ratio"]] if real else [])])
    return {"ratio": ratio, "worst": worst, "simulated": rows, "real": real, "figures": {"svg": _plot(rows, real)}}


def _simulate(runs: int, mixed: bool, draw: int, config: dict[str, Any]) -> dict[str, Any]:
    from pipelines.sweeps.schedule import Machine, QueuedRun, RunResources, Schedule

    rng = np.random.default_rng([config["seed"], draw, runs, int(mixed)])
    gpus = max(2, runs // config["runs_a_gpu"])
    machines = [Machine(cpus=64.0, gpus=(1.0,) * min(MACHINE_GPUS, gpus - first))
                for first in range(0, gpus, MACHINE_GPUS)]
    needs = [RunResources(gpus=1.0), RunResources(gpus=0.5), RunResources(gpus=0.25),
             RunResources(gpus=1.0, workers=2)] if mixed else [RunResources(gpus=1.0)]
    tasks = [QueuedRun(key=f"run-{i}", resources=needs[int(rng.integers(len(needs)))],
                       seconds=SECONDS[i % len(SECONDS)] * float(rng.uniform(1, 1.3))) for i in range(runs)]
    schedule, began = Schedule(machines), time.perf_counter()
    schedule.add(tasks)
    now, ends = 0.0, list[tuple[float, str]]()
    while schedule.busy:
        for task in schedule.start():
            heapq.heappush(ends, (now + task.seconds, task.key))
        now, key = heapq.heappop(ends)
        schedule.finish(key)
    deciding, bound = time.perf_counter() - began, lower_bound(tasks, machines)
    if runs <= EXACT_RUNS and bound < now:
        bound = shortest_makespan(tasks, gpus, now)
    return {"runs": runs, "gpus": gpus, "needs": "mixed" if mixed else "one", "draw": draw, "makespan_s": now,
            "bound_s": bound, "ratio": now / bound, "deciding_s": deciding}


def lower_bound(tasks: Sequence[Any], machines: Sequence[Any]) -> float:
    """Seconds that no order of the runs can beat: the largest of these bounds.

    - all work spread evenly over the GPUs, or over the CPUs
    - the longest run, after all runs that need every GPU
    - of the k * GPUs + 1 longest parts that cannot share a GPU, k + 1 are on one GPU: at least the k + 1 shortest
    """
    gpus, cpus = sum(len(m.gpus) for m in machines), sum(m.cpus for m in machines)
    even = [sum(t.seconds * t.resources.workers * t.resources.gpus for t in tasks) / gpus,
            sum(t.seconds * t.resources.workers * t.resources.cpus for t in tasks) / cpus]
    alone = [t for t in tasks if t.resources.workers * t.resources.gpus > gpus - 0.25]
    rest = [t.seconds for t in tasks if t not in alone]
    parts = sorted((t.seconds for t in tasks if t.resources.gpus > 0.5 for _ in range(t.resources.workers)),
                   reverse=True)
    pigeons = [sum(parts[k * gpus - k : k * gpus + 1]) for k in range(1, (len(parts) - 1) // gpus + 1)]
    return float(max(*even, sum(t.seconds for t in alone) + max(rest, default=0.0), *pigeons, 0.0))


def shortest_makespan(tasks: Sequence[Any], gpus: int, upper_bound: float) -> float:
    """The makespan of the shortest schedule, or `upper_bound` if that is less, by branch and bound.

    All orders of starts on all GPUs are tried, except those that cannot beat the best one. A GPU is four quarters, each
    free from some time on; in order of starts, a run takes the quarters that are free first.
    """
    wants = [(round(4 * t.resources.gpus), t.resources.workers, t.seconds) for t in tasks]
    best = upper_bound

    def go(left: frozenset[int], free: tuple[tuple[float, ...], ...], last: float) -> None:
        nonlocal best
        if not left:
            best = min(best, max(max(gpu) for gpu in free))
            return
        work = sum(quarters * workers * seconds for quarters, workers, seconds in (wants[i] for i in left))
        if (sum(max(at, last) for gpu in free for at in gpu) + work) / (4 * gpus) >= best - 1e-9:
            return
        for i in left:
            quarters, workers, seconds = wants[i]
            for chosen in {tuple(sorted(free[g] for g in c)): c for c in combinations(range(gpus), workers)}.values():
                start = max(last, *(free[g][quarters - 1] for g in chosen))
                if start + seconds < best - 1e-9:
                    after = [tuple(sorted((*gpu[quarters:], *[start + seconds] * quarters))) if g in chosen else gpu
                             for g, gpu in enumerate(free)]
                    go(left - {i}, tuple(after), start)

    go(frozenset(range(len(tasks))), ((0.0,) * 4,) * gpus, 0.0)
    return best


def _run_real(config: dict[str, Any]) -> dict[str, Any]:
    """Execute runs that sleep on logical GPUs of a real cluster by the loop of a sweep, without start-up."""
    from pipelines.base.cluster import cluster
    from pipelines.sweeps.execute import pack_runs
    from pipelines.sweeps.machines import machines_of
    from pipelines.sweeps.schedule import QueuedRun, RunResources, Schedule

    rng = np.random.default_rng(config["seed"])
    lengths = {f"run-{i}": config["real_unit_s"] * float(rng.uniform(0.5, 2)) for i in range(config["real_runs"])}

    def sleep(seconds: float) -> None:
        time.sleep(seconds)

    with cluster(cpus=2, gpus=config["real_gpus"]) as ray:
        if ray.cluster_resources().get("GPU", 0) < config["real_gpus"]:
            raise SystemExit("error: packing needs its own cluster with logical GPUs, but this process is already in a "
                             "cluster; run the benchmark alone")
        task = ray.remote(sleep).options(num_cpus=0, num_gpus=0.5)
        ray.get([task.remote(0) for _ in range(2 * config["real_gpus"])])  # the workers' processes start
        schedule = Schedule(machines_of(ray))
        tasks = [QueuedRun(key=k, resources=RunResources(cpus=0.0, gpus=0.5), seconds=s) for k, s in lengths.items()]
        schedule.add(tasks)
        began = time.perf_counter()
        ended = [key for key, _ in pack_runs(schedule, lambda key: task.remote(lengths[key]), ray, lambda: None)]
        seconds = time.perf_counter() - began
        bound = max(sum(lengths.values()) / (2 * config["real_gpus"]), *lengths.values())
    return {"runs": len(ended), "gpus": config["real_gpus"], "share": 0.5, "makespan_s": seconds, "bound_s": bound,
            "ratio": seconds / bound}


def _plot(rows: list[dict[str, Any]], real: dict[str, Any]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for kind, mark, label in (("one", "o", "one GPU a run"), ("mixed", "^", "a quarter to two GPUs a run")):
        some = [r for r in rows if r["needs"] == kind]
        axes.plot([r["runs"] for r in some], [r["ratio"] for r in some], mark, alpha=0.6, label=label)
    if real:
        axes.plot([real["runs"]], [real["ratio"]], "s", color="black", label="real Ray tasks, half a GPU each")
    axes.axhline(1.1, color="gray", linestyle="--", linewidth=1)
    axes.set(xscale="log", xlabel="runs", ylabel="makespan / lower bound",
             title="Packing of runs of known length (logical GPUs)")
    axes.set_xticks(sorted({r["runs"] for r in rows}), [str(n) for n in sorted({r["runs"] for r in rows})])
    axes.minorticks_off()
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
