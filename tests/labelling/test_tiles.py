"""Jobs with tiles: their parts are a function of the manifest, which names the tiles, and of nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from fss_models.errors import FssError
from fss_models.marks import rle_json
from pipelines.base.storage import Store
from pipelines.inference.labeler import Labeler
from pipelines.inference.supports import Support, SupportSet
from pipelines.labelling.manifest import MANIFEST
from tests.labelling.helpers import DirectEngine, make_job
from tests.serving.helpers import ball, encoded

PHOTOS = 5


def test_parts_are_a_function_of_the_manifest(bundle: str, tmp_path: Path) -> None:
    """Would catch tiles that depend on what a labeler did before, on the order of chunks, or on requests' sizes."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(PHOTOS):
        size = (500, 400) if number % 2 else (0, 0)
        (photos / f"{number}.png").write_bytes(encoded(ball(number, *size)[0], "PNG"))
    shown, mark = ball(1000)
    supports = SupportSet("ball", (Support(encoded(shown, "PNG"), {"mask": rle_json(mark)}),))
    written = []
    for name, order, limit in (("one", 1, 32_000_000), ("other", -1, 700_000)):
        labeler = Labeler(bundle)
        job = make_job(photos, tmp_path / name, labeler.add_support(supports), labeler, chunk=3, tile=240)
        job.run(DirectEngine(labeler, request_bytes=limit), job.chunks_left()[::order], 1)
        written.append({file: job.out.read_bytes(file) for file in sorted(job.out.list("parts"))})
    assert len(written[0]) == 2
    assert written[0] == written[1]
    manifest = Store(str(tmp_path / "one")).read_json(MANIFEST)
    assert manifest["tile"] == 240
    assert "tile_overlap" not in manifest
    with pytest.raises(FssError, match="its tile is 240, but this job's is 300"):
        make_job(photos, tmp_path / "one", supports.support_id, Labeler(bundle), chunk=3, tile=300)
