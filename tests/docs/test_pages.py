"""The documentation: it builds without a warning, its links lead somewhere, its commands parse, its keys exist."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from jobs.cli import make_app
from jobs.parse import parse_command
from jobs.recipes import load_pretraining, load_recipe
from pipelines.config.recipe import Recipe

ROOT = Path(__file__).parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md"), ROOT / "infra/README.md"])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)
sys.path.insert(0, str(ROOT / "docs"))


def commands(text: str) -> tuple[list[str], list[str]]:
    """(the `fss` command lines in a page's blocks of code, the commands that it names between backticks)."""
    lines = [
        line
        for kind, block in FENCE.findall(text)
        if kind in ("", "sh", "bash")
        for line in block.replace("\\\n", " ").split("\n")
    ]
    whole = []
    for line in lines:
        line = re.sub(r"\s#\s.*$", "", line.strip().removeprefix("$ "))
        line = m[1] if (m := re.search(r"\$\((fss [^)]*)\)", line)) else re.sub(r"^(?:[A-Z_]+=\S*\s+)+", "", line)
        whole += [part.strip() for part in line.split(";") if part.strip().startswith("fss ")]
    return whole, re.findall(r"`fss ([^`]+)`", FENCE.sub("", text))


TYPED = [
    (page.relative_to(ROOT).as_posix(), line)
    for page in PAGES
    for line in commands(page.read_text())[0]
    if "..." not in line and page.name != "CHANGELOG.md"
]
NAMED = sorted({name for page in PAGES for name in commands(page.read_text())[1] if "..." not in name})


def test_there_are_commands_to_check() -> None:
    assert len(TYPED) > 40
    assert len(NAMED) > 25


@pytest.mark.parametrize(("page", "line"), TYPED)
def test_a_command_line_is_one_that_fss_takes(page: str, line: str) -> None:
    parsed = parse_command(shlex.split(line)[1:])
    if parsed.path == "submit":
        parsed = parse_command(parsed.values["command"])
    sets = next((v for k in ("sets", "overrides", "set_") if (v := parsed.values.get(k))), [])
    if parsed.path == "pretrain":
        load_pretraining(parsed.values["recipe"], sets)
    elif parsed.path != "reproduce":
        root = ["data.source.root=photos"] if parsed.values.get("data") else []
        load_recipe(parsed.values.get("recipe") or ("demo_coco" if root else "demo"), [*root, *sets])


@pytest.mark.parametrize("name", NAMED)
def test_a_command_that_is_named_exists(name: str) -> None:
    node: Any = typer.main.get_command(make_app())
    for word in shlex.split(name):
        if hasattr(node, "commands"):
            if word.startswith("-"):
                break
            node = node.commands[word.removesuffix(",")]
        elif word.startswith("--"):
            assert any(word.partition("=")[0] in (*p.opts, *p.secondary_opts) for p in node.params) or word == "--help"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_blocks_of_yaml_are_recipes_and_json_is_json(page: Path) -> None:
    for kind, block in FENCE.findall(page.read_text()):
        if kind == "yaml":
            Recipe.model_validate({"methods": [{"name": "prior"}], **yaml.safe_load(block)})
        if kind == "json":
            yaml.safe_load(block.replace("...", "1"))
        if kind == "python":
            compile(block, page.name, "exec")


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.parent == ROOT or p.parent.name == "infra"], ids=lambda p: p.name
)
def test_links_of_pages_outside_the_site_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


def test_keys_that_pages_name_exist() -> None:
    """`train.steps` and the like between backticks."""
    known = {place for place, _ in generated().sections(Recipe)}
    keys = {
        f"{place}.{key}" if place else key
        for place, model in generated().sections(Recipe)
        for key in model.model_fields
    }
    tops = {k for k in known if k and "." not in k}
    wrong = []
    for page in PAGES:
        for word in re.findall(r"`([a-z]+(?:\.[a-zA-Z0-9_]+)+)(?:[=:][^`]*)?`", page.read_text()):
            name = re.sub(r"\.(\d+)\.", ".N.", word)
            if (
                name.split(".")[0] in tops
                and name not in keys | known
                and not re.search(r"\.(py|json|yaml|md|N\.\w+|jsonl|html)$", name)
            ):
                wrong.append((page.name, word))
    assert not wrong


def generated():
    """docs/generate.py."""
    import generate

    return generate


def test_every_key_of_a_recipe_has_a_meaning() -> None:
    missing = [
        f"{place}.{key}"
        for place, model in generated().sections(Recipe)
        for key, meaning, _ in generated().keys(model)
        if not meaning
    ]
    assert not missing


def test_every_command_is_in_the_reference() -> None:
    page = generated().cli_page()
    for name in ("sweep run", "label", "review page", "verify-golden", "analyse pca"):
        assert f"### fss {name}\n" in page


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 8192


def test_the_site_builds_strictly(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path / "site")],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    page = (tmp_path / "site/reference/recipes.html").read_text()
    assert "train.selection" in page or "base-holdout" in page
    assert '<script src="http' not in page
    assert "https://fonts" not in page  # nothing is loaded from elsewhere


def test_every_column_of_a_part_is_explained() -> None:
    from pipelines.labelling.parts import CALIBRATED, COMPARED, INSTANCES, KEPT, SOURCE_ID

    page = (ROOT / "docs/reference/outputs.md").read_text()
    columns = {field.name for field in [*CALIBRATED, INSTANCES, SOURCE_ID, *KEPT, *COMPARED]}
    assert len(columns) > 15
    assert [c for c in sorted(columns) if f"`{c}`" not in page] == []
