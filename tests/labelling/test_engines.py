"""`--engine actors` on a real cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pipelines.labelling.actors import run_with_actors
from pipelines.labelling.parts import part_name
from pipelines.serving.labeler import Labeler
from pipelines.serving.spec import ModelSpec
from pipelines.serving.support_files import read_support_file
from tests.labelling.helpers import DirectEngine, make_job
from tests.serving.helpers import photo_folder, supports_file


def test_actors_write_the_same_parts(ray_cluster: object, bundle: str, tmp_path: Path) -> None:
    """Byte by byte those of a job without a cluster: would catch other batches, and chunks left out or done twice."""
    photos = photo_folder(tmp_path / "photos", 20)
    supports = read_support_file(str(supports_file(tmp_path)))
    root = str(tmp_path / "supports")
    supports.save(root)
    labeler = Labeler(bundle, supports_url=root)
    plain = make_job(photos, tmp_path / "plain", supports.support_id, labeler, chunk=8)
    with one_thread():
        plain.run(DirectEngine(labeler), plain.left(), 1)
    job = make_job(photos, tmp_path / "out", supports.support_id, labeler, chunk=8)
    with one_thread():
        job.run(DirectEngine(labeler), [1], 1)
    before = Path(job.out.path(part_name(1))).stat().st_mtime_ns
    assert run_with_actors(job, job.left(), ModelSpec(bundle_url=bundle, supports_url=root, batch=4, threads=1)) == 12
    assert Path(job.out.path(part_name(1))).stat().st_mtime_ns == before
    assert job.left() == []
    for chunk in range(3):
        assert job.out.read_bytes(part_name(chunk)) == plain.out.read_bytes(part_name(chunk))


@contextmanager
def one_thread() -> Iterator[None]:
    """As in the actor: sums in another order would round otherwise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
