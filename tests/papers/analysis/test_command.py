"""`fss analyse` on the command line: a table and a page, only JSON on standard output, one line for a mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from fss_models.errors import FssError
from jobs.cli import make_app
from pipelines.config.recipe import Recipe
from pipelines.papers.analysis.page import TextTable
from tests.fixtures.command import Fss
from tests.jobs.test_cli import assert_one_line


@pytest.fixture
def recipe_file(recipe: Recipe, tmp_path: Path) -> str:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.model_dump()))
    return str(tmp_path / "recipe.yaml")


def test_the_figures_are_printed_and_kept(recipe_file: str, bundle: str) -> None:
    args = ["analyse", "pca", "--bundle", bundle, "--images", "2", "--recipe", recipe_file]
    plain = CliRunner().invoke(make_app(), args, catch_exceptions=False)
    assert plain.exit_code == 0
    assert "frozen" in plain.stdout
    page = Path(plain.stdout.rpartition("page: ")[2].strip())
    assert page.exists()
    answer = CliRunner().invoke(make_app(), [*args, "--json"], catch_exceptions=False)
    document = json.loads(answer.stdout)
    assert document["page"] == str(page)
    assert f"pca-{document['bundles'][0]['bundle_id']}" in document["page"]
    assert "page: " in answer.stderr


@pytest.mark.parametrize("command", ["pca", "probe", "negatives", "domains", "transfer"])
def test_a_bundle_that_is_not_there(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    args = ["--bundles", "nowhere,nowhere,nowhere,nowhere"] if command == "transfer" else ["--bundle", "nowhere"]
    answer = CliRunner().invoke(make_app(), ["analyse", command, *args])
    assert isinstance(answer.exception, FssError)
    assert "there is no bundle here" in str(answer.exception)
    assert list(tmp_path.iterdir()) == []  # no shards were built for a bundle that is not there


def test_a_mistake_ends_with_status_2_and_one_line(fss: Fss, tmp_path: Path) -> None:
    done = fss("analyse", "transfer", "--bundles", "one", cwd=tmp_path)
    assert_one_line(done, "1 bundle given, but the protocol has 4 folds")


def test_a_table_lines_up() -> None:
    table = TextTable(columns=["name", "mIoU"], rows=[["frozen", "3.6"], ["x", "43.7"]])
    assert table.text().splitlines() == ["name    mIoU", "frozen   3.6", "x       43.7"]
