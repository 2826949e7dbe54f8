"""The rules of the house that a reader cannot check by eye, over every file of the project."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("fss_models", "pipelines", "jobs", "infra", "benchmarks")
FILES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))
# what a room may not import: jobs -> pipelines -> fss_models, and the models know no Ray
FORBIDDEN = {
    "fss_models": {"ray", "mlflow", "pipelines", "jobs", "infra", "benchmarks", "s3fs", "fastapi", "httpx"},
    "pipelines": {"jobs", "infra", "benchmarks"},
    "infra": {"jobs", "benchmarks"},
    "jobs": {"benchmarks"},
}
MAX_LINES, MAX_FUNCTION = 400, 80


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(tree: ast.AST) -> Iterator[str]:
    """Top-level packages a file imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    wrong = FORBIDDEN.get(room, set()) & set(imports(ast.parse(path.read_text())))
    assert not wrong, f"{name_of(path)} imports {sorted(wrong)}"


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "tests").rglob("*.py"))], ids=name_of)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    long = {f.name: f.end_lineno - f.lineno + 1 for f in functions(ast.parse(text)) if f.end_lineno is not None}
    assert not {k: v for k, v in long.items() if v > MAX_FUNCTION}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_public_functions_are_annotated_and_modules_described(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or not tree.body, "no module docstring"
    bare = [f.name for f in functions(tree) if f.returns is None and not f.name.startswith("_")]
    assert not bare, f"without a return annotation: {bare}"


def test_most_functions_are_short() -> None:
    lengths = sorted((f.end_lineno or f.lineno) - f.lineno + 1
                     for p in FILES for f in functions(ast.parse(p.read_text())))
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
        found = [n.module for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ImportFrom) and n.module]
        assert not [m for m in found if m.startswith("fss_models.methods")], name_of(path)
