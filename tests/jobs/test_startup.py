"""What `fss` must not import before a command's work begins: help and mistakes are shown at once."""

from __future__ import annotations

import subprocess
import sys

import typer

from jobs.cli import PANELS, make_app

HEAVY = (
    "torch",
    "numpy",
    "pyarrow",
    "ray",
    "mlflow",
    "matplotlib",
    "scipy",
    "pandas",
    "PIL",
    "fsspec",
    "s3fs",
    "httpx",
    "pycocotools",
    "sam2",
    "timm",
    "jinja2",
    "cachetools",
    "filelock",
)

# Shows the help of every command, then makes a mistake in every command that takes a recipe.
SCRIPT = """
import sys
import jobs.cli
from fss_models.errors import FssError
from typer.testing import CliRunner

app, runner = jobs.cli.make_app(), CliRunner()
import typer.main
def commands(node, path):
    yield path, node
    for name, child in getattr(node, "commands", {}).items():
        yield from commands(child, [*path, name])

seen = wrong = 0
for path, node in commands(typer.main.get_command(app), []):
    assert runner.invoke(app, [*path, "--help"]).exit_code == 0, path
    seen += 1
    sets = [o for o in node.params if "--set" in o.opts]
    needed = [o for o in node.params if o.required]
    if not sets or any(p in path for p in ("eval", "gallery", "demo", "reproduce", "report")):
        continue  # these look at a bundle, a folder or a table before they read the recipe
    values = [w for o in needed for w in ([*o.opts[:1], "5"] if o.opts[0].startswith("-") else ["5"])]
    result = runner.invoke(app, [*path, *values, "--set", "train.stesp=50"])
    assert isinstance(result.exception, FssError) and "unknown key" in str(result.exception), (path, result)
    wrong += 1
print(seen, wrong, *(name for name in sys.argv[1:] if name in sys.modules))
"""


def test_help_and_mistakes_import_nothing_heavy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *HEAVY], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    seen, wrong, *heavy = done.stdout.split()
    assert not heavy
    assert int(seen) > 50
    assert int(wrong) > 20


def test_every_command_is_in_one_panel() -> None:
    app = make_app()
    names = sorted(str(c.name) for c in (*app.registered_commands, *app.registered_groups))
    assert sorted(name for panel in PANELS.values() for name in panel) == names
    assert list(typer.main.get_command(app).list_commands(None)) == [n for panel in PANELS.values() for n in panel]  # type: ignore[attr-defined,arg-type]
