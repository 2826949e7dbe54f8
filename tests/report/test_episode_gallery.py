"""`fss gallery`: which episodes it shows, and that pictures and page agree with the scores."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from typer.testing import CliRunner

from fss_models import registry
from jobs.cli import make_app
from pipelines.bundles.bundle import load_bundle, save_bundle
from pipelines.data.episodes import load_episode
from pipelines.data.published import bind, read_list
from pipelines.data.shardset import Shards
from pipelines.evaluation.predict import predict
from pipelines.evaluation.results import EPISODE_SCORES
from pipelines.pages.pictures import PREDICTION, TRUTH, picture
from pipelines.report.episode_gallery import pick_rows
from tests.training.mixed_data import voc_directory


def scores(ious: list[float]) -> pa.Table:
    rows = [{"episode_id": i, "class_id": 0, "iou": iou, "score": 0.0} | dict.fromkeys(
        ("inter_bg", "inter_fg", "union_bg", "union_fg"), 1) for i, iou in enumerate(ious)]
    return pa.Table.from_pylist(rows[::-1], schema=EPISODE_SCORES)  # the order of rows does not matter


def test_random_ones_are_drawn_whatever_their_score_and_the_worst_are_the_worst() -> None:
    ious = np.random.default_rng(0).random(200)
    found = pick_rows(scores(ious.tolist()))
    assert (len(found["random"]), len(found["worst"])) == (24, 8)
    assert found["worst"] == np.argsort(ious)[:8].tolist()
    assert found["random"] == pick_rows(scores((1 - ious).tolist()))["random"], "another score, the same draw"
    assert found["random"] != pick_rows(scores(ious.tolist()), seed=1)["random"]
    assert len(set(found["random"])) == 24
    few = pick_rows(scores([0.5, 0.0, 0.0]))
    assert sorted(few["random"]) == [0, 1, 2]
    assert few["worst"] == [1, 2, 0], "ties by id"


def test_the_worst_are_of_different_queries_as_far_as_they_reach() -> None:
    table = scores([0.0, 0.1, 0.2, 0.3, 0.4])
    queries = {0: 7, 1: 7, 2: 8, 3: 9, 4: 8}
    assert pick_rows(table, queries, worst=3)["worst"] == [0, 2, 3]
    assert pick_rows(table, queries, worst=4)["worst"] == [0, 1, 2, 3], "no fourth query: the worst of the others"


def test_a_picture_has_the_tint_and_the_outline() -> None:
    image = np.full((60, 90, 3), 200, np.uint8)
    mask, truth = np.zeros((60, 90), bool), np.zeros((60, 90), bool)
    mask[:, :30], truth[10:50, 40:80] = True, True
    drawn = np.array(picture(image, mask, PREDICTION, outline=truth, side=90)).astype(int)
    assert drawn.shape == (60, 90, 3)
    assert (drawn[30, 60] == int(200 * 0.85)).all(), "inside the outline the photo shows"
    assert tuple(drawn[30, 40]) == TRUTH
    assert tuple(drawn[10, 60]) == TRUTH
    assert np.abs(drawn[30, 10] - (100 + np.array(PREDICTION) / 2)).max() <= 1


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A VOC directory and an untrained bundle."""
    root = tmp_path_factory.mktemp("gallery")
    voc_directory(root / "voc")
    names = sorted(p.stem for p in (root / "voc" / "JPEGImages").iterdir())
    (root / "splits.json").write_text(json.dumps({"voc": {"train": [], "test": names}}))
    save_bundle(str(root / "bundle"), registry.build("prior", "debug", {}))
    return root


def test_the_page_shows_what_was_scored(ray_cluster: object, place: Path) -> None:
    """Would catch a missing picture, a picture of another episode, and an IoU that is not that of the mask drawn."""
    args = ["gallery", "--bundle", str(place / "bundle"), "--dataset", "pascal5i", "--root", str(place / "voc"),
            "--split", str(place / "splits.json"), "--fold", "0", "--shot", "2", "--episodes", "30", "-w",
            str(place / "out"), "--out", str(place / "pages"), "--json"]
    answer = CliRunner().invoke(make_app(), args, catch_exceptions=False)
    found = json.loads(answer.stdout)
    page = Path(found["page"])
    assert page.is_relative_to(place / "pages")
    assert [s["kind"] for s in found["shown"]] == ["random"] * 24 + ["worst"] * 8
    assert len({s["iou"] for s in found["shown"]}) > 1
    worst = [s["iou"] for s in found["shown"] if s["kind"] == "worst"]
    assert worst == sorted(worst)
    queries = {(s["query"], s["class_name"]) for s in found["shown"] if s["kind"] == "worst"}
    assert len(queries) == min(8, len({(s["query"], s["class_name"]) for s in found["shown"]}))
    html = page.read_text()
    files = set(re.findall(r'src="([^"]+)"', html))
    assert files == {name for s in found["shown"] for _, name in s["pictures"]}
    assert all(Image.open(page.parent / f).size == (360, 360) for f in files)
    assert len(files) == 32 * 3, "two supports and the query"
    assert f"IoU {found['shown'][0]['iou'] * 100:.0f}" in html
    _same_as_predicted(found, place)


def _same_as_predicted(found: dict[str, object], place: Path) -> None:
    from pipelines.base.workspace import Workspace

    shards_url = next(Path(Workspace(str(place / "out")).shards("x")).parent.iterdir())
    shards, model = Shards(str(shards_url)), load_bundle(str(place / "bundle"))[0]
    listed = bind(shards, read_list(str(next((shards_url / "episodes").iterdir()))))
    by_id = {e.episode_id: e for e in listed}
    for shown in found["shown"][:4]:  # type: ignore[index]
        sample = load_episode(shards, by_id[shown["episode_id"]])
        mask, iou = predict(model, sample)
        assert shown["iou"] == pytest.approx(iou, abs=0.02)
        own = picture(sample.targets[0].image, mask, PREDICTION, outline=sample.targets[0].mask, side=360)
        drawn = Image.open(Path(str(found["page"])).parent / shown["pictures"][-1][1])
        assert np.abs(np.array(drawn).astype(int) - np.array(own)).mean() < 2
