"""Runs scored on a list file: classes that it does not test, and a file that changes under the same URL."""

from __future__ import annotations

from pathlib import Path

import pytest

from fss_models.errors import FssError
from pipelines.config.evaluate import EvalConfig
from pipelines.config.method import MethodConfig
from pipelines.config.run import RunSpec
from pipelines.data.episodes import draw_episodes
from pipelines.data.folds import FoldData
from pipelines.data.published import ListedEpisode, PublishedList, write_list
from pipelines.data.shardset import Shards
from pipelines.evaluation.drive import ScoringConfig, evaluate_run, read_finished
from pipelines.evaluation.results import read_counts, untested_line
from pipelines.training.context import RunContext


def _listed(shards: Shards, *, leave_out: int | None = None, seed: int = 0) -> PublishedList:
    drawn = draw_episodes(shards, fold=0, shots=1, episodes=12, seed=seed)
    rows = tuple(ListedEpisode(e.class_id, shards.classes[e.class_id].name, e.query, e.supports, str(e.query),
                               tuple(map(str, e.supports))) for e in drawn if e.class_id != leave_out)
    return PublishedList(dataset="shapes", family="drawn", fold=0, shots=1, seed=seed, status="drawn", origin="test",
                         episodes=rows)


def _run_context(shards: Shards, out: Path) -> RunContext:
    spec = RunSpec(dataset="shapes", shards=shards.url, data_hash=shards.manifest.content_hash, fold=0,
                   method=MethodConfig(name="prior", preset="debug"))
    return RunContext(spec=spec, runs=str(out))


def test_a_class_without_an_episode_counts_0_and_is_named(shapes_shards: str, tmp_path: Path) -> None:
    """Published evaluations count a class without episodes as IoU 0; would catch one left out of the mean."""
    shards, url = Shards(shapes_shards), str(tmp_path / "list.parquet")
    tested = FoldData.open(shapes_shards, 0).tested
    assert len(tested) > 1
    missing = tested[0]
    write_list(url, _listed(shards, leave_out=missing.class_id))
    run = _run_context(shards, tmp_path)
    result = evaluate_run(run, ScoringConfig(config=EvalConfig(list=url, batch=4), resamples=200))
    assert result.per_class[missing.name] == 0
    assert set(result.per_class) == {c.name for c in tested}
    others = [v for name, v in result.per_class.items() if name != missing.name]
    assert min(others) > 0
    assert result.miou == pytest.approx(sum(others) / len(tested))
    assert result.interval[0] <= result.miou <= result.interval[1]
    assert result.details["without_episodes"] == [missing.name]
    assert untested_line(result) == (
        f"{result.run}: the episode list has no episode of {missing.name} (counted as IoU 0)")
    counts = read_counts(run.folder, result)
    assert len(counts) == result.episodes + 1  # what the leaderboard resamples
    assert counts.union[counts.class_ids == missing.class_id].sum() == 0


def test_another_list_at_the_same_url_is_another_evaluation(shapes_shards: str, tmp_path: Path) -> None:
    shards, url = Shards(shapes_shards), str(tmp_path / "list-{fold}.parquet")
    file = url.replace("{fold}", "0")
    write_list(file, _listed(shards))
    run, scored = _run_context(shards, tmp_path), ScoringConfig(config=EvalConfig(list=url, batch=4), resamples=20)
    assert read_finished(run, scored) is None
    first = evaluate_run(run, scored)
    assert read_finished(run, scored) == first
    write_list(file, _listed(shards, seed=1))
    assert read_finished(run, scored) is None
    second = evaluate_run(run, scored)
    assert second.list_hash != first.list_hash
    assert read_finished(run, scored) == second
    Path(file).unlink()
    with pytest.raises(FssError, match="does not exist"):
        read_finished(run, scored)


def test_a_drawn_list_needs_no_file(shapes_shards: str, tmp_path: Path) -> None:
    """Also where {fold} names the folds' own lists and the run has no fold."""
    shards = Shards(shapes_shards)
    run = _run_context(shards, tmp_path)
    run = run.model_copy(update={"spec": run.spec.model_copy(update={"fold": None})})
    scored = ScoringConfig(config=EvalConfig(list=str(tmp_path / "none-{fold}.parquet"), batch=4), resamples=20)
    result = evaluate_run(run, scored)
    assert read_finished(run, scored) == result
    absent = set(result.details["without_episodes"])
    assert absent.isdisjoint(result.per_class)
    assert absent | set(result.per_class) == {c.name for c in shards.manifest.classes}
