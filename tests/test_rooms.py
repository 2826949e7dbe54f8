"""The order of rooms: a room imports only what stands below it, no two rooms import each other, no files form a circle.

Imports inside functions count too: a lazy import saves start-up time, it does not change who depends on whom.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("fss_models", "pipelines", "jobs", "infra", "benchmarks")
# From the bottom to the top. Rooms of one floor do not import each other.
FLOORS = (
    ("fss_models",),
    ("base",),
    ("config",),
    ("pages", "submission"),
    ("bundles", "sizing"),
    ("data",),
    ("features",),
    ("training",),
    ("pretraining",),
    ("evaluation",),
    ("inference", "sweeps"),
    ("serving", "selection"),
    ("labelling",),
    ("review",),
    ("console", "report", "papers"),
    ("infra",),
    ("jobs", "benchmarks"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Labelling photos needs nothing of what trains and compares methods, apart from these readers.
INFERENCE = {"inference", "serving"}
TRAINING = {"data", "features", "training", "pretraining", "evaluation", "sweeps", "selection"}
SHARED_READERS = {"pipelines.data.decode", "pipelines.data.rle"}
# Rooms that only stand on these few.
NARROW = {"infra": {"base", "fss_models"}}
# Nothing but the commands and the benchmarks uses published tables and analyses.
FENCED = {"papers": {"jobs", "benchmarks"}}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(p): p for package in PACKAGES for p in sorted((ROOT / package).rglob("*.py"))}


def room(module: str) -> str:
    """`pipelines.data.rle` is in `data`, `jobs.commands.label` in `jobs`."""
    parts = module.split(".")
    return parts[1] if parts[0] == "pipelines" and len(parts) > 1 else parts[0]


@cache
def imports(module: str) -> frozenset[str]:
    """The project's modules that a module imports, anywhere in it."""
    return frozenset(_imports(ast.parse(MODULES[module].read_text()))) - {module}


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in MODULES or node.module in MODULES:
                    yield full if full in MODULES else node.module


def climbs(module: str, other: str) -> bool:
    """Whether the import of `other` by `module` goes against the order."""
    mine, theirs = room(module), room(other)
    if mine == theirs:
        return False
    return (FLOOR[mine] <= FLOOR[theirs] or theirs not in NARROW.get(mine, {theirs})
            or mine not in FENCED.get(theirs, {mine})
            or (mine in INFERENCE and theirs in TRAINING and other not in SHARED_READERS))


def test_every_room_has_a_floor() -> None:
    assert {room(m) for m in MODULES} - {"pipelines"} == set(FLOOR)


@pytest.mark.parametrize("module", [m for m in MODULES if m != "pipelines"])
def test_imports_point_down(module: str) -> None:
    wrong = sorted(other for other in imports(module) if climbs(module, other))
    assert not wrong, f"{module} ({room(module)}) must not import {wrong}"


def test_no_circle_of_files() -> None:
    """By Tarjan's algorithm: a strongly connected component of more than one module is a circle."""
    circles = [c for c in components() if len(c) > 1]
    assert not circles, circles


def components() -> list[list[str]]:
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = lowest[module] = len(number)
        stack.append(module)
        for other in sorted(imports(module)):
            if other not in number:
                visit(other)
                lowest[module] = min(lowest[module], lowest[other])
            elif other in stack:
                lowest[module] = min(lowest[module], number[other])
        if lowest[module] == number[module]:
            first = stack.index(module)
            found.append(stack[first:])
            del stack[first:]

    for module in MODULES:
        if module not in number:
            visit(module)
    return found


def test_the_rules_can_fail() -> None:
    assert climbs("pipelines.data.shards", "pipelines.training.loop")
    assert climbs("pipelines.serving.app", "pipelines.console.page")
    assert climbs("pipelines.inference.labeler", "pipelines.data.shards")
    assert climbs("pipelines.console.page", "pipelines.report.page")
    assert climbs("pipelines.report.page", "pipelines.papers.tables.run")
    assert climbs("infra.local.s3", "pipelines.bundles.bundle")
    assert not climbs("pipelines.inference.labeler", "pipelines.data.rle")
    assert not climbs("jobs.commands.label", "pipelines.labelling.run")
