"""A small table of our own: trained, scored in two ways, resumed and shown; once as a sweep on a real cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import yaml

import pipelines.papers.tables.run
from fss_models import registry
from fss_models.errors import FssError
from jobs.commands.reproduce import _reproduce
from jobs.tables import load_table, make_cells
from pipelines.base.storage import Store
from pipelines.base.workspace import Workspace
from pipelines.config.data import DataConfig
from pipelines.config.method import method_labels
from pipelines.config.recipe import Recipe
from pipelines.data.folds import FoldData
from pipelines.evaluation.drive import evaluate_run, failed_result, measure_latency, read_finished, scoring_config
from pipelines.evaluation.results import RunResult
from pipelines.papers.tables.outcome import collect_outcome
from pipelines.papers.tables.show import render_text
from pipelines.sweeps.plan import plan_sweep
from pipelines.training.context import RunContext
from pipelines.training.loop import fit
from pipelines.training.task import WorkerRank
from pipelines.training.worker import write_bundle

TABLE = {
    "title": "Small", "paper": "none", "source": "made up for this test", "reference": "SANSA", "resamples": 200,
    "columns": {
        "one": {"title": "1-shot", "recipe": "RECIPE", "folds": 2},
        "two": {"title": "2-shot", "recipe": "RECIPE", "set": {"eval.shots": 2}},
        "speed": {"title": "speed", "recipe": "RECIPE", "measure": "fps"},
        "trained": {"title": "trained", "recipe": "RECIPE", "measure": "trained_m"},
        "masks": {"title": "masks", "recipe": "RECIPE", "measure": "mask_miou", "set": {"sweep.folds": [0]}},
        "recall": {"title": "masks", "recipe": "RECIPE", "measure": "mask_recall", "set": {"sweep.folds": [0]}},
    },
    "rows": [
        {"name": "SANSA", "columns": ["one", "two", "speed", "trained"],
         "published": {"one": [10.0, 20.0, 15.0], "two": 12.0}},
        {"name": "prior", "columns": ["one", "two", "speed"], "set": {"methods.0.name": "prior"},
         "published": {"one": [None, None, 99.0]}},
        {"name": "FCP", "columns": ["masks", "recall"], "mask": "attention", "set": {"methods.0.name": "fcp"},
         "published": {"masks": 60.9}},
        {"name": "conventional", "columns": ["masks"], "mask": "conventional", "set": {"methods.0.name": "fcp"}},
    ],
    "rivals": [{"name": "rival", "source": "elsewhere", "published": {"one": [1.0, 3.0, 2.0]}}],
}


@pytest.fixture
def table_file(shapes_config: DataConfig, shapes_shards: str, tmp_path: Path) -> Path:
    """A table file and its recipe; the shards are the session's."""
    recipe = {"name": "small", "data": shapes_config.model_dump(), "methods": [{"name": "sansa", "preset": "debug"}],
              "train": {"steps": 4, "batch": 2, "checkpoint_every": 2, "log_every": 2, "pool_bytes": 64_000_000},
              "eval": {"episodes": 10}, "sweep": {"folds": [0, 1], "cpus_per_run": 0.9, "parallel": 2}}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(recipe))
    text = yaml.safe_dump(TABLE).replace("RECIPE", str(tmp_path / "small.yaml"))
    (tmp_path / "mine.yaml").write_text(text)
    shards = Path(Workspace(str(tmp_path / "out")).shards(shapes_config.name))
    shards.parent.mkdir(parents=True)
    shards.symlink_to(shapes_shards)
    return tmp_path / "mine.yaml"


@pytest.fixture
def no_workers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run sweeps in this process with the code of the workers. Returns the list of runs that were trained or scored."""
    torch.set_num_threads(1)
    done: list[str] = []

    @contextmanager
    def nothing() -> Iterator[None]:
        yield

    def run_sweep(recipe: Recipe) -> list[RunResult]:
        results = [_run(RunContext(spec=s, runs=Workspace(recipe.out).runs), recipe, done) for s in plan_sweep(recipe)]
        labels = dict(zip([m.key for m in recipe.methods], method_labels(recipe.methods), strict=True))
        bundles = {labels[r.spec.method.key]: r.bundle for r in results if not r.error}
        if bundles:
            first = results[0].spec
            measured = measure_latency(bundles, first.shards, first.fold, recipe.eval, 0)
            Store(recipe.out).write_json("latency.json", measured)
        return results

    monkeypatch.setattr(pipelines.papers.tables.run, "cluster", nothing)
    monkeypatch.setattr(pipelines.papers.tables.run, "run_sweep", run_sweep)
    return done


def _run(run: RunContext, recipe: Recipe, done: list[str]) -> RunResult:
    spec, scored, data = run.spec, scoring_config(recipe), FoldData.of(run.spec)
    if known := read_finished(run, scored):
        return known
    try:
        if spec.trains and not Store(run.bundle).exists("bundle.json"):
            done.append(f"train {spec.method.name} {spec.fold}")
            model = registry.build(spec.method.name, spec.method.preset, spec.method.config)
            fit(spec, model, worker=WorkerRank(), resume=None, save=lambda step, write: None, log_row=lambda step,
                row: None, open_stream=lambda position: data.stream(spec, position=position, rank=0, world=1))
            write_bundle(run, model, data, train_s=0.0)
        done.append(f"score {spec.method.name} {spec.fold} {recipe.eval.shots}")
        return evaluate_run(run, scored)
    except FssError as error:
        return failed_result(run, scored, error)


def call(table_file: Path, **options: object) -> None:
    given = {"show": False, "rows": [], "columns": [], "roots": {}, "weights": {}, "sets": [], "as_json": True}
    _reproduce(str(table_file), out=str(table_file.parent / "out"), **(given | options))  # type: ignore[arg-type]


def test_a_table_is_run_resumed_and_shown(table_file: Path, no_workers: list[str],
                                          capfd: pytest.CaptureFixture[str]) -> None:
    """Would catch: a second way of scoring that overwrites the first or trains again, a resume that runs anything,
    figures that are not those of the runs, pseudo masks scored on other episodes."""
    out = table_file.parent / "out"
    call(table_file, rows=["SANSA", "prior"], columns=["one", "two"])
    first = json.loads(capfd.readouterr().out)
    assert sorted(no_workers) == sorted(
        [f"train sansa {f}" for f in (0, 1)] + [f"score {m} {f} {k}" for m in ("sansa", "prior") for f in (0, 1)
                                                for k in (1, 2)]), "2-shot is the 1-shot model"
    no_workers.clear()

    call(table_file)
    document = json.loads(capfd.readouterr().out)
    assert no_workers == ["train fcp 0", "score fcp 0 1"], "both pseudo masks and both measures are of one run"
    again = {(f["row"], f["column"], f["fold"]): f for f in document["figures"]}
    for f in first["figures"]:
        assert f["column"] not in ("one", "two") or again[f["row"], f["column"], f["fold"]] == f
    _check_figures(again, out)
    no_workers.clear()

    call(table_file)
    told = capfd.readouterr()
    assert json.loads(told.out) == document
    assert "cells are finished" in told.err
    assert no_workers == []
    _check_pages(out, document)


def _check_figures(figures: dict[tuple[str, str, object], dict[str, object]], out: Path) -> None:
    cell = figures["SANSA", "one", "mean"]
    folds = [figures["SANSA", "one", f]["ours"] for f in (0, 1)]
    assert cell["ours"] == pytest.approx(sum(folds) / 2)  # type: ignore[arg-type]
    assert cell["difference"] == pytest.approx(cell["ours"] - 15.0)  # type: ignore[operator]
    low, high = cell["interval"]  # type: ignore[misc]
    assert low <= cell["ours"] <= high
    assert cell["published_outside"] == (not low <= 15.0 <= high)
    assert "versus_reference" not in cell
    gain, *spread = figures["prior", "one", "mean"]["versus_reference"]  # type: ignore[misc]
    assert gain == pytest.approx(figures["prior", "one", "mean"]["ours"] - cell["ours"])  # type: ignore[operator]
    assert spread[0] <= gain <= spread[1]
    assert figures["SANSA", "two", "mean"]["ours"] != cell["ours"]
    assert figures["SANSA", "speed", "mean"]["ours"] > 0  # type: ignore[operator]
    kept = [json.loads(p.read_text()) for p in out.glob("runs/*sansa*/result.json")]
    trained = [r["trainable_params"] for r in kept]
    assert figures["SANSA", "trained", "mean"]["ours"] == max(trained) / 1e6
    assert 0 <= figures["FCP", "masks", "mean"]["ours"] <= 100  # type: ignore[operator]
    assert figures["FCP", "recall", "mean"]["ours"] is not None
    assert figures["rival", "one", 1] == {"row": "rival", "column": "one", "fold": 1, "ours": None, "interval": None,
                                          "published": 3.0, "difference": None, "published_outside": False,
                                          "fewer_folds": False}


def _check_pages(out: Path, document: dict[str, object]) -> None:
    assert json.loads((out / "tables/mine.json").read_text()) == document
    page, plain = (out / "tables/mine.html").read_text(), (out / "tables/mine.md").read_text()
    for shown in (page, plain):
        assert "rival [1]" in shown
        assert "[1] elsewhere." in shown
        assert "difference to SANSA" in shown
    assert "no verdict on the method" in page, "the prior is untrained at debug"


def test_one_fold_is_no_mean_of_two(table_file: Path, no_workers: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    call(table_file, rows=["prior"], columns=["one"], sets=["sweep.folds=[1]"])
    shown = json.loads(capfd.readouterr().out)["figures"]
    figures = {f["fold"]: f for f in shown if (f["row"], f["column"]) == ("prior", "one")}
    assert figures[0]["ours"] is None
    assert figures["mean"]["ours"] == figures[1]["ours"]
    assert figures["mean"]["fewer_folds"]
    assert figures["mean"]["difference"] is None
    stem, table = load_table(str(table_file))
    cells = make_cells(table, sets=["sweep.folds=[1]"], out=str(table_file.parent / "out"))
    assert "(fewer folds)" in render_text(collect_outcome(stem, table, cells, ["sweep.folds=[1]"]))


def test_failed_runs_are_told_and_tried_again(table_file: Path, no_workers: list[str],
                                              capfd: pytest.CaptureFixture[str]) -> None:
    import typer

    options = {"rows": ["SANSA"], "columns": ["two"], "sets": ["methods.0.config.stages=[7]", "sweep.folds=[0]"]}
    for _ in range(2):
        with pytest.raises(typer.Exit) as stop:
            call(table_file, **options)
        assert stop.value.exit_code == 1
        assert json.loads(capfd.readouterr().out)["figures"][0]["ours"] is None
    assert len(no_workers) == 2, "a failed run is tried again by the next call"
    call(table_file, **(options | {"show": True}))
    assert "No cell of this table was run here yet." in capfd.readouterr().err


def test_a_table_is_a_sweep_on_a_cluster(table_file: Path, ray_cluster: object,
                                         capfd: pytest.CaptureFixture[str]) -> None:
    """Would catch a group that is not a valid recipe of a sweep, and results or latency that are not found afterwards.
    """
    call(table_file, rows=["prior"], columns=["one", "speed"])
    figures = json.loads(capfd.readouterr().out)["figures"]
    assert all(f["ours"] is not None for f in figures if f["row"] == "prior" and f["column"] in ("one", "speed"))
    call(table_file, rows=["prior"], columns=["one", "speed"])
    told = capfd.readouterr()
    assert json.loads(told.out)["figures"] == figures
    assert "runs done" not in told.err, "a finished cell is not run again"
