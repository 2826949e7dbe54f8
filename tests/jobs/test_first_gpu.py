"""`fss reproduce first-gpu` with random checkpoints in the official layouts, from a real HTTP server."""

from __future__ import annotations

import http.server
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fss_models import registry
from fss_models.official import official_state
from fss_models.sam2_core.build import build_sam2
from jobs.first_gpu import KIT
from jobs.recipes import load_recipe
from jobs.tables import load_table
from pipelines.base.workspace import Workspace
from pipelines.config.data import DataConfig
from tests.fixtures.command import Fss
from tests.fss_models.debug_outputs import fill
from tests.jobs.test_cli import assert_one_line
from tests.web import Quiet, serving


class Web(Quiet, http.server.SimpleHTTPRequestHandler):
    """A server that ends the answers of `cut` half way."""

    cut = ""

    def do_GET(self) -> None:
        if self.path != self.cut:
            super().do_GET()
            return
        data = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2])


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("FSS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "web").mkdir()
    with serving(partial(Web, directory=str(tmp_path / "web"))) as url:
        yield url


def on_shapes(config: DataConfig, shards: str, out: Path, preset: str) -> list[str]:
    """Options of a run on the generated dataset, whose finished shards are put into the workspace `out`."""
    target = Path(Workspace(str(out)).shards(config.name))
    target.parent.mkdir(parents=True)
    target.symlink_to(shards)
    sets = [f"data={config.model_dump_json()}", f"methods.0.preset={preset}", "methods.0.sha256=''", "eval.episodes=2"]
    return ["reproduce", "first-gpu", "--cpu", "--out", str(out), *(a for s in sets for a in ("--set", s))]


def sansa_files(folder: Path, seed: int = 5) -> None:
    """SAM 2 in Meta's layout and SANSA's adapters in the authors', both at debug size."""
    torch.save({"model": build_sam2("debug", object_scores=True).state_dict()}, folder / "sam.pt")
    model = registry.build("sansa", "debug", weights=str(folder / "sam.pt"))
    fill(model, seed)
    torch.save({"model": official_state(model), "epoch": 4}, folder / "adapter.pth")


def test_files_are_fetched_scored_compared_and_remembered(
    shapes_config: DataConfig, shapes_shards: str, web: str, fss: Fss, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sansa_files(tmp_path / "web")
    out = tmp_path / "out"
    given = [*on_shapes(shapes_config, shapes_shards, out, "debug"), "--row", "SANSA", "--json",
             "--weight", f"sam2_hiera_large.pt={web}/sam.pt", "--weight", f"adapter_coco_fold0.pth={web}/adapter.pth"]
    monkeypatch.setattr(Web, "cut", "/adapter.pth")
    broken = fss(*given)
    assert broken.returncode == 2
    assert "cannot download this file" in broken.stderr.strip().splitlines()[-1]
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and "adapter" in p.name]
    assert not list(out.glob("first-gpu/*"))
    monkeypatch.setattr(Web, "cut", "")

    done = fss(*given)
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)["rows"][0]
    check_figures(row, json.loads((out / "first-gpu" / "SANSA.json").read_text())["result"])
    assert [p["value"] for p in row["published"]] == [58.9, 57.7]
    assert all(text in done.stderr for text in ("58.9", "57.7", f"{row['ours']:.1f}", "do not follow the published"))
    info = json.loads((Path(row["bundle"]) / "bundle.json").read_text())
    assert info["config"]["data_side"] == 640, "settings that the file does not tell come from the recipe"
    assert not info["untrained"]

    (tmp_path / "web" / "adapter.pth").unlink()
    assert json.loads(fss(*given).stdout)["rows"][0] == row, "a second call runs and fetches nothing"
    assert json.loads(fss(*given, "--show").stdout)["rows"][0] == row

    sansa_files(tmp_path / "web", seed=6)
    other = fss(*given, "--weight", f"adapter_coco_fold0.pth={tmp_path}/web/adapter.pth")
    assert other.returncode == 2
    assert "adapter_coco_fold0.pth is another file than at its first use" in other.stderr.strip().splitlines()[-1]


def check_figures(row: dict[str, Any], result: dict[str, Any]) -> None:
    """The document's figures are the evaluation's, in percent, and its differences are to the published ones."""
    assert row["ours"] == pytest.approx(100 * result["miou"])
    assert row["interval"] == pytest.approx([100 * v for v in result["interval"]])
    assert row["photos_per_s"] == result["images_per_s"] > 0
    assert (row["episodes"], row["fold"], result["spec"]["fold"], row["device"]) == (2, 0, 0, "CPU")
    for p in row["published"]:
        assert p["difference"] == pytest.approx(row["ours"] - p["value"])
    assert all(len(digest) == 64 for digest in row["sha256"].values())
    assert len(row["sha256"]) == len(next(k for k in KIT if k.name == row["row"]).files)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_fssam_needs_its_checkpoint_alone(
    shapes_config: DataConfig, shapes_shards: str, fss: Fss, tmp_path: Path
) -> None:
    """At the smallest size that official files have: 125 M parameters, with SAM 2 and DINOv2 in the file."""
    model = registry.build("fssam", "tiny", {"train": "published", "prior": "dinov2_base"})
    fill(model)
    torch.save({"epoch": 90, "state_dict": {f"module.{k}": v for k, v in official_state(model).items()}},
               tmp_path / "best_1shot.pth")
    given = on_shapes(shapes_config, shapes_shards, tmp_path / "out", "tiny")
    done = fss(*given, "--row", "FSSAM", "--weight", f"best_1shot.pth={tmp_path / 'best_1shot.pth'}", "--json")
    assert done.returncode == 0, done.stderr
    row = json.loads(done.stdout)["rows"][0]
    check_figures(row, json.loads((tmp_path / "out" / "first-gpu" / "FSSAM.json").read_text())["result"])
    assert [p["value"] for p in row["published"]] == [81.6]


def test_what_a_person_has_to_get_is_listed_with_its_page(fss: Fss, tmp_path: Path) -> None:
    done = fss("reproduce", "first-gpu", "--cpu", cwd=tmp_path)
    assert done.returncode == 2
    for told in ("data coco20i: not found", "data pascal5i: not found", "https://github.com/ClaudiaCuttano/SANSA",
                 "--weight adapter_coco_fold0.pth=FILE", "https://github.com/Sam1224/FSSAM", "4 datasets or files"):
        assert told in done.stderr, told
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_asks_first(fss: Fss, tmp_path: Path) -> None:
    assert_one_line(fss("reproduce", "first-gpu", cwd=tmp_path),
                    "on a CPU take hours to days (give --cpu to go on without one)")


@pytest.mark.parametrize(("args", "line"), [
    (("first-gpu", "--row", "FCP"), "no row 'FCP'"),
    (("first-gpu", "--weight", "sam.pt=x"), "no weight file 'sam.pt'"),
    (("first-gpu", "--root", "fss1000=x"), "no dataset 'fss1000'"),
    (("first-gpu", "--column", "coco"), "--column has no meaning for first-gpu"),
    (("fcp_table1", "--cpu"), "--cpu has no meaning for fcp_table1"),
])
def test_mistakes_are_one_line(fss: Fss, tmp_path: Path, args: tuple[str, ...], line: str) -> None:
    assert_one_line(fss("reproduce", *args, cwd=tmp_path), line)


def test_addresses_and_figures_are_those_of_recipes_and_tables() -> None:
    for row in KIT:
        recipe = load_recipe(row.recipe)
        if row.base:
            assert row.base.address == recipe.methods[0].weights
        assert row.recipe == load_table(row.table)[1].columns[row.column].recipe


def test_show_needs_nothing(fss: Fss, tmp_path: Path) -> None:
    done = fss("reproduce", "first-gpu", "--show", cwd=tmp_path)
    assert done.returncode == 0
    assert [figure in done.stdout for figure in ("58.9", "57.7", "81.6")] == [True] * 3
