"""CVAT's exports for video: tracks become the shapes of frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fss_models.errors import FssError
from pipelines.config.data import SourceConfig
from pipelines.data import rle
from pipelines.data.open import open_source
from pipelines.data.sources.base import Source
from tests.data.conftest import write
from tests.data.exports import HEIGHT, WIDTH, Object, cvat_document, objects, photo

SIZE = "<original_size><width>64</width><height>48</height></original_size><labels>"


def track(number: int, o: Object, frames: dict[int, int], more: str = "") -> str:
    """A track with a polygon in each frame; `frames`: frame -> 1 if the object is outside of it."""
    points = ";".join(f"{x:.2f},{y:.2f}" for x, y in o.outline)
    shapes = "".join(f'<polygon frame="{f}" keyframe="{1 - f % 2}" outside="{out}" occluded="0" points="{points}" '
                     'z_order="0"></polygon>' for f, out in frames.items())
    return f'<track id="{number}" label="{o.label}" source="manual"{more}>{shapes}</track>'


def video(root: Path, tracks: list[str], photos: int = 6) -> Source:
    for i in range(photos):
        write(root, f"images/frame_{i:06d}.PNG", photo(i))
    write(root, "annotations.xml", cvat_document(tracks).replace("<labels>", SIZE))
    return open_source(SourceConfig(format="cvat", root=str(root)))


def shown(source: Source) -> dict[str, list[str]]:
    """Photo -> classes of its masks."""
    found = {}
    for item in source.items:
        masks = source.rasterise(item, source.fetch(item), HEIGHT, WIDTH)
        assert not masks.problems
        found[item.file_name[-10:-4]] = [source.classes[m.class_id] for m in masks.instances]
    return found


def test_tracks_are_read_frame_by_frame(tmp_path: Path) -> None:
    bottle, car = objects(0)
    source = video(tmp_path, [track(0, bottle, {0: 0, 1: 0, 2: 1}), track(1, car, {1: 0, 2: 1, 4: 0, 5: 1})])
    assert shown(source) == {"000000": ["bottle"], "000001": ["bottle", "car"], "000002": [], "000003": [],
                             "000004": ["car"], "000005": []}
    assert not source.failures
    first = source.items[0]
    assert first.size == (HEIGHT, WIDTH)
    marks = source.rasterise(first, source.fetch(first), HEIGHT, WIDTH)
    rounded = rle.from_polygons([np.round(bottle.outline, 2).ravel()], HEIGHT, WIDTH)
    assert marks.instances[0].rle == rounded


def test_frames_that_a_visible_track_leaves_out_are_not_guessed(tmp_path: Path) -> None:
    """Files with key frames only, as other programs write them: the object is somewhere in between."""
    bottle, car = objects(0)
    source = video(tmp_path, [track(0, bottle, {0: 0, 3: 1}), track(1, car, {4: 0})])
    assert shown(source) == {"000000": ["bottle"], "000003": [], "000004": ["car"]}
    assert {f.file_name[-10:-4]: f.reason for f in source.failures} == {
        **{f"00000{i}": "track 0 is visible but has no shape in this frame" for i in (1, 2)},
        "000005": "track 1 is visible but has no shape in this frame"}


def test_frames_without_a_photo_are_told(tmp_path: Path) -> None:
    source = video(tmp_path, [track(0, objects(0)[0], {0: 0, 1: 0, 2: 1})], photos=1)
    assert list(shown(source)) == ["000000"]
    assert [f.file_name for f in source.failures] == ["frame_000001", "frame_000002"]


def test_several_videos_in_one_file_are_refused(tmp_path: Path) -> None:
    tracks = [track(i, objects(0)[0], {0: 0, 1: 1}, f' task_id="{i}"') for i in range(2)]
    with pytest.raises(FssError, match="several videos"):
        video(tmp_path, tracks)
