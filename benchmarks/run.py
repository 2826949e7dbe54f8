"""Runs benchmarks and writes dated result files. It does not import Ray, so that it runs where only torch is installed.

    python -m benchmarks.run                              list them
    python -m benchmarks.run batched_queries store_write  run these ("all" for all)
    python -m benchmarks.run batched_queries --set method=sansa --set images=16
"""

from __future__ import annotations

import argparse
import datetime
import importlib
import json
import os
import pkgutil
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import benchmarks.suite
from fss_models.allocator import keep_freed_memory

RESULTS = Path(__file__).with_name("results")
PACKAGES = ("torch", "torchvision", "timm", "sam2", "numpy", "safetensors", "pyarrow", "ray")


def names() -> list[str]:
    """The names of all benchmarks."""
    return sorted(m.name for m in pkgutil.iter_modules(benchmarks.suite.__path__))


def run(name: str, overrides: dict[str, Any], folder: Path = RESULTS) -> Path:
    """Run one benchmark and write its result file; returns its path. Raises `SystemExit` for an unknown name or key."""
    if name not in names():
        raise SystemExit(f"error: no benchmark {name!r} (known: {', '.join(names())})")
    module = importlib.import_module(f"benchmarks.suite.{name}")
    for key in overrides:
        if key not in module.CONFIG:
            raise SystemExit(f"error: {name} has no setting {key!r} (known: {', '.join(module.CONFIG)})")
    config = {**module.CONFIG, **overrides}
    torch.set_num_threads(config["threads"])
    keep_freed_memory()  # as every `fss` command does
    result = module.run(config)
    figures: dict[str, bytes] = result.pop("figures", {})  # file ending -> picture, written beside the result
    chosen = re.sub(r"[^a-z0-9.]+", "-", "".join(f"-{k}-{v}" for k, v in sorted(overrides.items())).lower())
    short = re.sub(r"[^a-z0-9]+", "-", hardware()["name"].lower()).strip("-")[:40]
    path = write_result(folder, f"{name}{chosen}-{short}", name, module.__doc__, config=config, result=result)
    for ending, picture in figures.items():
        path.with_suffix(f".{ending}").write_bytes(picture)
    return path


def write_result(folder: Path, stem: str, name: str, about: str | None, **found: Any) -> Path:
    """Write what was `found` with the time, machine, versions and commit; returns the file: today's date and `stem`.

    `about` is the benchmark's description, of which the first paragraph is written.
    """
    now = datetime.datetime.now(datetime.UTC)
    document = {"benchmark": name, "what": (about or "").split("\n\n")[0].replace("\n", " "),
                "time": now.isoformat(timespec="seconds"), "hardware": hardware(), "versions": versions(),
                "commit": commit(), **found}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{now:%Y-%m-%d}-{stem}.json"
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def hardware() -> dict[str, Any]:
    """A description of this machine: its name, GPUs, CPU, cores, memory, load and system."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cores = len(os.sched_getaffinity(0))
    return {"name": gpus[0] if gpus else f"cpu-{cores}-cores", "gpus": gpus, "cpu": _cpu(), "cores": cores,
            "memory_gb": round(memory, 1), "load": round(os.getloadavg()[0], 2), "system": platform.platform()}


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def versions() -> dict[str, str]:
    """The versions of Python, CUDA and those of `PACKAGES` that are installed."""
    found = {"python": platform.python_version(), "cuda": torch.version.cuda or ""}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The commit of the checkout, with `-dirty` if files differ from it; "unknown" outside a checkout."""
    done = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=Path(__file__).parent,
                          capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> None:
    """Run the benchmarks that the command line names, or list all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="Run benchmarks.")
    parser.add_argument("names", nargs="*", help="benchmarks to run; `all` runs all; without a name they are listed")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="change a setting of the benchmarks; may be repeated")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the result files")
    args = parser.parse_args()
    if not args.names:
        print("\n".join(names()))
        return
    overrides = dict(_setting(item) for item in args.set)
    for name in names() if args.names == ["all"] else args.names:
        path = run(name, overrides, args.out)
        result = json.loads(path.read_text())["result"]
        print(f"{name}: ratio {result['ratio']:.2f}  ({path})")


def _setting(item: str) -> tuple[str, Any]:
    key, eq, value = item.partition("=")
    if not eq:
        sys.exit(f"error: --set {item!r} has no '='")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


if __name__ == "__main__":
    main()
