"""Episode lists and shard reading."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fss_models.errors import FssError
from pipelines.config.evaluate import EvalConfig
from pipelines.data.episodes import draw_episodes, episode_list, list_name, load_episode, read_episodes
from pipelines.data.shardset import Shards
from pipelines.papers.analysis.scores import draw_episodes_among


@pytest.fixture
def shards(shapes_shards: str, tmp_path: Path) -> Shards:
    """A copy that may be written to."""
    shutil.copytree(shapes_shards, tmp_path / "shards")
    return Shards(str(tmp_path / "shards"))


def test_a_list_is_a_function_of_its_seed(shards: Shards) -> None:
    given = {"fold": 1, "shots": 2, "episodes": 50}
    one, two = (draw_episodes(shards, seed=3, **given) for _ in range(2))
    assert one == two
    assert one.sha256 == two.sha256
    assert draw_episodes(shards, seed=4, **given).sha256 != one.sha256


def test_lists_show_only_test_photos_of_novel_classes(shards: Shards) -> None:
    listed = draw_episodes(shards, fold=0, shots=2, episodes=200, seed=0)
    assert {e.class_id for e in listed} <= set(shards.fold_classes(0))
    for episode in listed:
        photos = (episode.query, *episode.supports)
        assert len(set(photos)) == 3
        assert set(photos) <= set(shards.photos_of(episode.class_id, "test"))
        assert {shards.rows[i]["split"] for i in photos} == {"test"}


def test_no_episode_shows_what_a_train_photo_shows(shards: Shards) -> None:
    """Would catch lists that are refused only after the training, which opened one of their photos under another name;
    and an analysis that draws for ever, over a class of which no test photo is left.
    """
    given = {"fold": 0, "shots": 1, "episodes": 300, "seed": 0}
    class_id = draw_episodes(shards, **given).class_ids[0]
    name = shards.store.path("index.parquet")
    table = pq.read_table(name)
    rows, alike = table.to_pylist(), shards.photos_of(class_id, "test")
    train = [r["sha256"] for r in rows if r["split"] == "train"]
    for row in rows:
        if row["image_id"] in alike:
            row["sha256"] = train[alike.index(row["image_id"])]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), name)
    path = Path(shards.store.path("manifest.json"))
    manifest = json.loads(path.read_text())
    manifest["files"].pop("index.parquet", None)
    path.write_text(json.dumps(manifest))
    changed = Shards(shards.url)
    shown = {changed.rows[i]["sha256"] for e in draw_episodes(changed, **given) for i in (e.query, *e.supports)}
    assert not shown & set(train)
    assert shown
    with pytest.raises(FssError, match="2 test photos"):
        draw_episodes_among(changed, [class_id], EvalConfig(episodes=5))


def test_classes_are_drawn_evenly_whatever_their_size(shards: Shards) -> None:
    from scipy.stats import chisquare

    listed = draw_episodes(shards, fold=0, shots=1, episodes=2000, seed=0)
    counts = Counter(e.class_id for e in listed)
    assert chisquare(list(counts.values())).pvalue > 1e-3
    assert len(counts) + len(listed.dropped) == len(shards.fold_classes(0))


def test_a_kept_list_is_read_back(shards: Shards) -> None:
    given = {"fold": 2, "shots": 1, "episodes": 20, "seed": 0}
    first = episode_list(shards, **given)
    name = list_name(2, 1, 20, 0)
    assert read_episodes(shards, name) == first
    assert episode_list(shards, **given) == first
    metadata = pq.read_schema(shards.store.path(name)).metadata
    assert metadata[b"sha256"].decode() == first.sha256
    assert metadata[b"family"] == b"drawn"


def test_a_changed_list_is_refused(shards: Shards) -> None:
    name = list_name(2, 1, 20, 0)
    episode_list(shards, fold=2, shots=1, episodes=20, seed=0)
    table = pq.read_table(shards.store.path(name))
    changed = table.set_column(3, "query", [list(reversed(table["query"].to_pylist()))])
    pq.write_table(changed.cast(table.schema), shards.store.path(name))
    with pytest.raises(FssError, match="does not match its content hash"):
        read_episodes(shards, name)


def test_a_list_of_other_shards_is_refused(shards: Shards) -> None:
    episode_list(shards, fold=2, shots=1, episodes=20, seed=0)
    path = Path(shards.store.path("manifest.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"content_hash": "another"}))
    with pytest.raises(FssError, match="other shards"):
        episode_list(Shards(shards.url), fold=2, shots=1, episodes=20, seed=0)


def test_too_many_shots_say_so(shards: Shards) -> None:
    with pytest.raises(FssError, match=r"no class of fold 0 has the 201 test photos"):
        draw_episodes(shards, fold=0, shots=200, episodes=5, seed=0)


def test_episodes_decode(shards: Shards) -> None:
    for episode in list(draw_episodes(shards, fold=3, shots=2, episodes=10, seed=0)):
        sample = load_episode(shards, episode)
        assert [r.image_id for r in sample.references] == list(episode.supports)
        assert sample.targets[0].image_id == episode.query
        assert all(s.mask.any() and s.image.shape == (96, 96, 3) for s in (*sample.references, *sample.targets))


def test_the_cache_is_bounded(shapes_shards: str) -> None:
    """Would catch an evaluation whose memory grows with the test set."""
    shards = Shards(shapes_shards, cache_bytes=200_000)
    for row in shards.images("test"):
        shards.pixels(row["image_id"])
        assert shards._cache.size <= 200_000
    assert shards._cache.size > 100_000


def test_shards_travel_to_workers_without_their_cache(shapes_shards: str) -> None:
    shards = Shards(shapes_shards)
    shards.pixels(shards.images("test")[0]["image_id"])
    sent = pickle.dumps(shards)
    assert len(sent) < 1000
    assert np.array_equal(pickle.loads(sent).pixels(3), shards.pixels(3))


def test_folds_and_base_classes(shapes_shards: str) -> None:
    shards = Shards(shapes_shards)
    assert shards.folds == [0, 1, 2, 3]
    for fold in shards.folds:
        assert {c % 4 for c in shards.fold_classes(fold)} == {fold}
        assert set(shards.base_classes(fold)) | set(shards.fold_classes(fold)) == set(shards.classes)
    with pytest.raises(FssError, match="fold 9 has no class"):
        shards.fold_classes(9)


def test_missing_unfinished_and_newer_shards(shards: Shards, tmp_path: Path) -> None:
    with pytest.raises(FssError, match="no finished shards"):
        Shards(str(tmp_path / "nowhere"))
    path = Path(shards.store.path("manifest.json"))
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"schema_version": 99}))
    with pytest.raises(FssError, match="schema 99"):
        Shards(shards.url)
    path.unlink()
    with pytest.raises(FssError, match="begun but not finished"):
        Shards(shards.url)


def test_a_photo_that_is_not_there(shards: Shards) -> None:
    with pytest.raises(FssError, match="no photo 123456"):
        shards.photo(123456)
