"""The report shows the content of the files: scores, the predictions that were scored, failures, missing parts."""

from __future__ import annotations

import base64
import html
import io
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fss_models.errors import FssError
from jobs.cli import make_app
from jobs.commands.report import _recipe
from jobs.recipes import load_recipe
from pipelines.base.storage import Store
from pipelines.base.workspace import Workspace
from pipelines.bundles.bundle import load_bundle
from pipelines.config.recipe import Recipe
from pipelines.config.sweep import RangeConfig
from pipelines.data.episodes import load_episode
from pipelines.data.folds import FoldData
from pipelines.evaluation.drive import evaluate_run, scoring_config
from pipelines.evaluation.predict import predict
from pipelines.labelling.decisions import Decision, add_decisions
from pipelines.labelling.outputs import write_outputs
from pipelines.labelling.parts import read_parts
from pipelines.pages.pictures import TRUTH, photo_url
from pipelines.report.collect import collect, versus_baseline
from pipelines.report.examples import pick_episodes
from pipelines.report.gallery import RowSelection, make_gallery
from pipelines.report.page import render, write_report
from pipelines.selection.choose import read_leaderboard
from pipelines.selection.trials import MethodSearch, SearchResult, Trial, TrialScore
from pipelines.sweeps.sweep import RECIPE
from pipelines.training.context import RunContext
from tests.report.conftest import BROKEN, ReportWorkspace


class Page(HTMLParser):
    """The addresses that a browser would load from a page, and the text that it would show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.pictures: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.loads += [v for k, v in values.items() if k in ("src", "href", "xlink:href", "data") and v]
        if tag == "img":
            self.pictures.append(values["src"] or "")
        if tag in ("table", "section", "details", "svg", "div", "main"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("table", "section", "details", "svg", "div", "main"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def page(workspace: ReportWorkspace) -> str:
    return Store(write_report(workspace.recipe)).read_bytes().decode()


def test_the_page_stands_alone_and_is_whole(page: str) -> None:
    """Catches a script or a style from elsewhere, and tags that an empty part leaves open."""
    read = Page(page)
    assert read.open == []
    outside = [u for u in read.loads if not u.startswith(("data:", "#"))]
    assert not outside
    assert "@import" not in page
    assert "url(http" not in page
    assert len(page) < 5_000_000


def test_figures_are_the_leaderboards(workspace: ReportWorkspace, page: str) -> None:
    board = read_leaderboard(workspace.recipe)
    text = " ".join(Page(page).words)
    assert board.reason in text
    for row in board.rows:
        assert f"{row.miou * 100:.1f}" in text
        assert f"{row.interval[0] * 100:.1f} – {row.interval[1] * 100:.1f}" in text
    gain, low, high = versus_baseline(collect(workspace.recipe))["sansa"]
    assert low <= gain <= high
    assert f"sansa is {abs(gain) * 100:.1f} points {'above' if gain > 0 else 'below'} prior" in text


def test_pictures_are_of_the_predictions_that_were_scored(workspace: ReportWorkspace) -> None:
    """The IoU of every episode shown, predicted again, is the one in episodes.parquet."""
    material = collect(workspace.recipe)
    row = next(r for r in material.board.rows if r.label == "prior")
    picks = pick_episodes(material, row)
    assert {p.kind for p in picks} == {"good", "middling", "bad"}
    assert len({(p.run.run, p.episode_id) for p in picks}) == len(picks)
    good, bad = (np.mean([p.iou for p in picks if p.kind == k]) for k in ("good", "bad"))
    assert good > bad
    for pick in picks:
        listed = FoldData.open(workspace.shards.url, pick.run.spec.fold).episodes(workspace.recipe.eval)
        episode = next(e for e in listed if e.episode_id == pick.episode_id)
        mask, iou = predict(load_bundle(pick.run.bundle)[0], load_episode(workspace.shards, episode))
        assert mask.dtype == bool
        assert iou == pytest.approx(pick.iou, abs=0.02)


def test_every_picture_can_be_decoded(page: str) -> None:
    pictures = Page(page).pictures
    assert len(pictures) > 20
    for url in pictures:
        Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).load()


def test_a_tint_is_where_the_mask_is() -> None:
    mask = np.zeros((80, 120), dtype=bool)
    mask[20:60, 20:60] = True
    url = photo_url(np.full((80, 120, 3), 128, dtype=np.uint8), mask, TRUTH, side=120)
    shown = np.array(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))).astype(int)
    assert shown.shape == (80, 120, 3)
    assert shown[40, 40, 1] - shown[40, 40, 0] > 40
    assert np.ptp(shown[70, 100]) < 12


def test_labels_failures_and_agreement(workspace: ReportWorkspace, page: str) -> None:
    material = collect(workspace.recipe)
    found = make_gallery(material.labels[0], material.shards, workspace.class_name)
    assert [f["file"] for f in found.failures] == [BROKEN]
    assert html.escape(BROKEN) in page
    assert BROKEN not in page
    assert found.agreement is not None
    assert found.agreement.present + found.agreement.absent == len(workspace.shards.images("test"))
    assert 0 < found.agreement.overlapping <= found.agreement.present
    assert 0 < found.agreement.mean_iou < 1
    assert f"mean IoU {found.agreement.mean_iou * 100:.1f}" in page


def test_labels_are_as_people_decided(workspace: ReportWorkspace, tmp_path: Path) -> None:
    """Would catch counts that contradict labels.json."""
    labels = collect(workspace.recipe).labels[0]
    shutil.copytree(labels.url, tmp_path / "labels")
    before = make_gallery(labels, None, workspace.class_name).counts
    copy = replace(labels, url=str(tmp_path / "labels"))
    row = next(r for rows in read_parts(Store(labels.url), labels.manifest.chunks) for r in rows if r["area"])
    add_decisions(Store(copy.url), [Decision(image_id=row["image_id"], image=row["file_name"],
                                             class_name=workspace.class_name, decision="reject")])
    summary = write_outputs(Store(copy.url), labels.manifest)
    counts = make_gallery(copy, None, workspace.class_name).counts
    assert counts == (before[0] - 1, before[1] + 1) == (summary["with_object"], summary["without_object"])


def test_choice_keeps_the_extremes_and_forgets_the_rest() -> None:
    """Would catch a selection that keeps a million labels in memory in order to show sixteen."""
    choice = RowSelection(each=3, sample_size=50)
    scores = np.random.default_rng(1).permutation(2000)
    for i, score in enumerate(scores):
        choice.add({"image_id": i, "area": int(score > 100), "score": score / 2000, "file_name": str(i)})
    kinds = choice.kinds()
    assert [round(r["score"] * 2000) for r in kinds["highest score"]] == [1999, 1998, 1997]
    assert [round(r["score"] * 2000) for r in kinds["lowest score"]] == [103, 102, 101]
    assert len(kinds["no label"]) == 3
    assert all(700 < r["score"] * 2000 < 1400 for r in kinds["middle score"])
    assert len(choice._some) == 50


def test_missing_parts_are_said(workspace: ReportWorkspace, tmp_path: Path) -> None:
    for name in ("leaderboard.json", "latency.json"):
        if Path(workspace.recipe.out, name).exists():
            shutil.copy(Path(workspace.recipe.out, name), tmp_path / name)
    recipe = workspace.recipe.model_copy(update={"out": str(tmp_path)})
    text = " ".join(Page(render(collect(recipe))).words)
    for line in ("The shards are not in this workspace", "Nothing was labelled", "No champion was promoted",
                 "their times are not in this workspace"):
        assert line in text


def test_a_search_is_shown_with_what_was_spent(workspace: ReportWorkspace, tmp_path: Path, page: str) -> None:
    assert "Search of settings" not in page
    shutil.copy(Path(workspace.recipe.out, "leaderboard.json"), tmp_path / "leaderboard.json")
    trials = [Trial(number=i, values={"train.lr": lr}, ended="trained <to> its end", steps=40, clips=160, seconds=75.0,
                    scores=[TrialScore(steps=20, miou=lr * 100, interval=(0.1, 0.4), folds={0: lr * 100})])
              for i, lr in enumerate((0.003, 0.001))]
    method = MethodSearch(label="sansa", method="sansa", space={"train.lr": RangeConfig(log=(0.001, 0.01))}, rungs=1,
                          trials=trials, importance={"train.lr": 1.0}, importance_steps=20)
    found = SearchResult(recipe=workspace.recipe.name, folds=[0], rungs=[20], held_out={0: ["disc"]}, episodes=6,
                         list_hashes={0: "h"}, methods=[method], code="c")
    Store(str(tmp_path)).write_json(f"search/{workspace.recipe.name}.json", found.model_dump(mode="json"))
    text = render(collect(workspace.recipe.model_copy(update={"out": str(tmp_path)})))
    assert Page(text).open == []
    words = " ".join(Page(text).words)
    for shown in ("Search of settings", "30.0", "10.0 – 40.0", "2 min 30 s", "320", "sansa: 2 trials at 20 steps",
                  "100 %", "trained <to> its end"):
        assert shown in words


def test_another_recipes_episodes_are_not_passed_off(workspace: ReportWorkspace) -> None:
    other = workspace.recipe.model_copy(update={"eval": workspace.recipe.eval.model_copy(update={"seed": 9})})
    assert "give the recipe that the leaderboard was made with" in render(collect(other))


def test_a_later_evaluation_of_a_run_does_not_change_the_report(workspace: ReportWorkspace, tmp_path: Path) -> None:
    """Would catch figures of a later evaluation on the page of an earlier leaderboard."""
    out = tmp_path / "out"
    shutil.copytree(workspace.recipe.out, out, symlinks=True)
    recipe = workspace.recipe.model_copy(update={"out": str(out)})
    longer = recipe.model_copy(update={"eval": recipe.eval.model_copy(update={"episodes": 24})})
    for result in workspace.results[:2]:
        evaluate_run(RunContext(spec=result.spec, runs=Workspace(recipe.out).runs), scoring_config(longer))
    material = collect(recipe)
    assert material.results == collect(workspace.recipe).results
    row = next(r for r in material.board.rows if r.label == "prior")
    assert {p.episode_id for p in pick_episodes(material, row, each=12)} <= set(range(12))
    assert versus_baseline(material) == versus_baseline(collect(workspace.recipe))


def test_a_failed_run_is_shown_and_cannot_be_hidden(workspace: ReportWorkspace, tmp_path: Path) -> None:
    board = read_leaderboard(workspace.recipe)
    row = board.rows[0].model_copy(update={"complete": False, "failed": {"run-x": "ran out of <memory>"}})
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "shapes").symlink_to(workspace.shards.url)
    recipe = workspace.recipe.model_copy(update={"out": str(tmp_path)})
    board = board.model_copy(update={"rows": [row, *board.rows[1:]]})
    Store(str(tmp_path)).write_json("leaderboard.json", board.model_dump())
    text = render(collect(recipe))
    assert "ran out of &lt;memory&gt;" in text
    assert re.search(r"badge warn\">incomplete", text)


def test_the_command(workspace: ReportWorkspace, tmp_path: Path) -> None:
    """Without a recipe the command uses the one stored in the workspace, so the episodes can be shown."""
    target = tmp_path / "page.html"
    answer = CliRunner().invoke(make_app(), ["report", "--out", workspace.recipe.out, "--to", str(target)])
    assert answer.exit_code == 0, answer.output
    assert f"report: {target}" in answer.output
    assert "give the recipe that the leaderboard was made with" not in target.read_text()
    with pytest.raises(FssError, match="there is no leaderboard yet"):
        write_report(Recipe(out=str(tmp_path / "empty")))
    assert not Path(Workspace(str(tmp_path / "empty")).report).exists()


def test_without_a_recipe_that_of_the_sweep_is_taken(workspace: ReportWorkspace, tmp_path: Path) -> None:
    out = str(tmp_path)
    assert _recipe("", None, out) == load_recipe("demo", out=out)
    Store(out).write_json(RECIPE, workspace.recipe.model_dump(mode="json"))
    train = workspace.recipe.train.model_copy(update={"steps": 9})
    assert _recipe("", ["train.steps=9"], out) == workspace.recipe.model_copy(update={"out": out, "train": train})
