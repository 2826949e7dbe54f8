"""The rules of the house that a reader cannot check by eye, over every file of the project."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TypeVar

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("fss_models", "pipelines", "jobs", "infra", "benchmarks")
FILES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))
# The models stand alone: plain PyTorch on local files.
NOT_FOR_MODELS = {"ray", "mlflow", "s3fs", "fastapi", "httpx"}
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
    ("console", "report", "papers", "integrations"),
    ("infra",),
    ("jobs", "benchmarks"),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# Labelling photos needs nothing of what trains and compares methods, apart from these readers.
INFERENCE = {"inference", "serving"}
TRAINING = {"data", "features", "training", "pretraining", "evaluation", "sweeps", "selection"}
SHARED_READERS = {"pipelines.data.rle"}
# Rooms that only stand on these few.
NARROW = {"infra": {"base", "fss_models"}}
# Nothing but the commands and the benchmarks uses published tables and analyses.
FENCED = {"papers": {"jobs", "benchmarks"}}
MAX_LINES, MAX_FUNCTION = 400, 80
T = TypeVar("T")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(p): p for package in ROOMS for p in sorted((ROOT / package).rglob("*.py"))}


def room(module: str) -> str:
    """`pipelines.data.rle` is in `data`, `jobs.commands.label` in `jobs`."""
    parts = module.split(".")
    return parts[1] if parts[0] == "pipelines" and len(parts) > 1 else parts[0]


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imported_names(path: Path) -> frozenset[str]:
    """Dotted names that a file imports, anywhere in it: modules, and what is taken from them."""
    return frozenset(_imported_names(path))


def _imported_names(path: Path) -> Iterator[str]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def imports(module: str) -> frozenset[str]:
    """The project's modules that a module imports. A lazy import saves start-up time, not the dependence: it counts."""
    names = imported_names(MODULES[module])
    return frozenset(n if n in MODULES else n.rpartition(".")[0] for n in names) & MODULES.keys() - {module}


def climbs(module: str, other: str) -> bool:
    """Whether the import of `other` by `module` goes against the order."""
    mine, theirs = room(module), room(other)
    if mine == theirs:
        return False
    return (FLOOR[mine] <= FLOOR[theirs] or theirs not in NARROW.get(mine, {theirs})
            or mine not in FENCED.get(theirs, {mine})
            or (mine in INFERENCE and theirs in TRAINING and other not in SHARED_READERS))


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


def wrong_ones(places: Iterable[T], check: Callable[[T], object]) -> dict[str, object]:
    """What a rule finds in each place, where it finds something: one test a rule, as a test a file takes 10 s more."""
    found = {name_of(p) if isinstance(p, Path) else str(p): check(p) for p in places}
    return {name: wrong for name, wrong in found.items() if wrong}


def test_the_models_are_plain_pytorch() -> None:
    def foreign(path: Path) -> set[str]:
        return {name.split(".")[0] for name in imported_names(path)} & NOT_FOR_MODELS

    models = [p for p in FILES if p.is_relative_to(ROOT / "fss_models")]
    assert len(models) > 20
    assert wrong_ones(models, foreign) == {}


def test_every_room_has_a_floor() -> None:
    assert {room(m) for m in MODULES} - {"pipelines"} == set(FLOOR)


def test_imports_point_down() -> None:
    def climbing(module: str) -> list[str]:
        return sorted(other for other in imports(module) if climbs(module, other))

    assert wrong_ones([m for m in MODULES if m != "pipelines"], climbing) == {}, "modules must not import these"


def test_no_circle_of_files() -> None:
    TopologicalSorter({m: imports(m) for m in MODULES}).prepare()  # raises CycleError, which names the circle


def test_the_rules_can_fail() -> None:
    assert climbs("pipelines.data.shards", "pipelines.training.loop")
    assert climbs("pipelines.serving.app", "pipelines.console.page")
    assert climbs("pipelines.inference.labeler", "pipelines.data.shards")
    assert climbs("pipelines.console.page", "pipelines.report.page")
    assert climbs("pipelines.report.page", "pipelines.papers.tables.run")
    assert climbs("infra.local.s3", "pipelines.bundles.bundle")
    assert not climbs("pipelines.inference.labeler", "pipelines.data.rle")
    assert not climbs("jobs.commands.label", "pipelines.labelling.run")
    assert "pipelines.papers.tables.run" in imports("jobs.commands.reproduce"), "imports in functions are seen"


def too_long(path: Path) -> dict[str, int]:
    """The lines of a file and of its functions, where they are too many."""
    lines = len(path.read_text().splitlines())
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions(tree_of(path)) if f.end_lineno is not None}
    return {**({"file": lines} if lines > MAX_LINES else {}), **{k: v for k, v in long.items() if v > MAX_FUNCTION}}


def undescribed(path: Path) -> list[str]:
    """What a module lacks: its docstring, return annotations of public functions."""
    tree = tree_of(path)
    bare = [f.name for f in functions(tree) if f.returns is None and not f.name.startswith("_")]
    return bare if ast.get_docstring(tree) or not tree.body else ["no module docstring", *bare]


def test_files_and_functions_are_short() -> None:
    assert wrong_ones([*FILES, *sorted((ROOT / "tests").rglob("*.py"))], too_long) == {}


def test_public_functions_are_annotated_and_modules_described() -> None:
    assert wrong_ones(FILES, undescribed) == {}, "docstrings, and return annotations of these functions"


def test_these_rules_can_fail(tmp_path: Path) -> None:
    place = tmp_path / "long.py"
    place.write_text("def f():\n" + "    pass\n" * MAX_LINES)
    assert too_long(place) == {"file": MAX_LINES + 1, "f": MAX_LINES + 1}
    assert undescribed(place) == ["no module docstring", "f"]


def test_most_functions_are_short() -> None:
    lengths = sorted((f.end_lineno or f.lineno) - f.lineno + 1
                     for p in FILES for f in functions(tree_of(p)))
    assert lengths[len(lengths) // 2] <= 14
    assert lengths[int(len(lengths) * 0.9)] <= 40


def test_importing_starts_nothing() -> None:
    """State at import: a started cluster, a thread, a file in the working folder, a variable."""
    modules = [name_of(p).removesuffix(".py").removesuffix("/__init__").replace("/", ".") for p in FILES
               if p.name != "__main__.py" and not (p.parts[-2] == "benchmarks" and p.name == "run.py")]
    code = f"""
import importlib, os, threading
before = (set(os.listdir(".")), dict(os.environ))
for name in {modules!r}: importlib.import_module(name)
import ray, torch
assert not ray.is_initialized(), "a cluster is running"
assert set(os.listdir(".")) == before[0], f"new files: {{set(os.listdir('.')) - before[0]}}"
ours = {{k for k in os.environ if k.startswith(("FSS", "AWS", "MLFLOW"))}} - set(before[1])
assert not ours, f"new variables {{ours}}"
alive = [t.name for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]
assert not alive, f"threads {{alive}}"
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_models_work_without_ray() -> None:
    """A GPU machine with torch alone must be able to use `fss_models`."""
    code = """
import sys
class Wall:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"ray", "mlflow", "pipelines", "jobs", "s3fs", "pyarrow", "fastapi"}:
            raise ImportError(f"{name} is not for the models")
sys.meta_path.insert(0, Wall())
from fss_models import registry
print(registry.list_methods())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "prior" in done.stdout


def test_no_place_of_one_machine_is_in_the_code() -> None:
    for path in [*FILES, ROOT / "README.md", ROOT / "Makefile", *(ROOT / "jobs").rglob("*.yaml")]:
        text = path.read_text() if path.exists() else ""
        assert not any(place in text for place in ("/work/", "/root/", "/home/")), name_of(path)


def test_only_verification_and_the_registry_know_one_method() -> None:
    """Everything else goes through the contract (`fss_models/segmenter.py`) and the registry's names."""
    know = ("fss_models/methods/", "fss_models/verification/", "fss_models/registry.py")
    for path in (p for p in FILES if not name_of(p).startswith(know)):
        assert not [n for n in imported_names(path) if n.startswith("fss_models.methods")], name_of(path)


def test_no_two_classes_share_a_name() -> None:
    places: dict[str, set[str]] = {}
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, set()).add(name_of(path))
    assert not {name: sorted(files) for name, files in places.items() if len(files) > 1}
