"""`--engine actors` on a real cluster, and a service that changes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
import torch

from fss_models.errors import FssError
from pipelines.config.label import ServiceSettings
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.labeler import Labeler
from pipelines.inference.masks import PhotoFailure
from pipelines.inference.support_files import read_support_file
from pipelines.labelling import engines
from pipelines.labelling.actors import ChunkLabeler, _groups, run_with_actors
from pipelines.labelling.engines import ServiceEngine, WorkerLostError
from pipelines.labelling.parts import part_name
from pipelines.serving.client import Client
from pipelines.serving.spec import ModelSpec
from tests.labelling.helpers import DirectEngine, make_job
from tests.serving.helpers import photo_folder, supports_file


def test_actors_write_the_same_parts(ray_cluster: object, bundle: str, tmp_path: Path) -> None:
    """The parts equal those of a job without a cluster: would catch other batches, and missing or repeated chunks."""
    photos = photo_folder(tmp_path / "photos", 20)
    supports = read_support_file(str(supports_file(tmp_path)))
    root = str(tmp_path / "supports")
    supports.save(root)
    labeler = Labeler(bundle, supports_url=root)
    plain = make_job(photos, tmp_path / "plain", supports.support_id, labeler, chunk=8)
    with one_thread():
        plain.run(DirectEngine(labeler), plain.chunks_left(), 1)
    job = make_job(photos, tmp_path / "out", supports.support_id, labeler, chunk=8)
    with one_thread():
        job.run(DirectEngine(labeler), [1], 1)
    before = Path(job.out.path(part_name(1))).stat().st_mtime_ns
    spec = ModelSpec(bundle_url=bundle, supports_url=root, batch=4, serve=ServiceSettings(threads=1))
    assert run_with_actors(job, job.chunks_left(), spec) == 12
    assert Path(job.out.path(part_name(1))).stat().st_mtime_ns == before
    assert job.chunks_left() == []
    for chunk in range(3):
        assert job.out.read_bytes(part_name(chunk)) == plain.out.read_bytes(part_name(chunk))
    other = make_job(photos, tmp_path / "other", supports.support_id, labeler, chunk=8)
    with pytest.raises(FssError, match=r"^\S+: the bundle is \w+ now, no longer f{16} [^\n]*$"):
        run_with_actors(other, other.chunks_left(), ModelSpec(bundle_url=bundle, bundle_id="f" * 16, supports_url=root))
    assert len(other.chunks_left()) == 3


def test_chunks_of_a_group_are_those_of_a_plain_job(bundle: str, tmp_path: Path) -> None:
    """An actor labels several chunks at a time; a chunk with which an actor was lost is looked at photo by photo."""
    photos = photo_folder(tmp_path / "photos", 20)
    supports = read_support_file(str(supports_file(tmp_path)))
    root = str(tmp_path / "supports")
    supports.save(root)
    labeler = Labeler(bundle, supports_url=root)
    plain = make_job(photos, tmp_path / "plain", supports.support_id, labeler, chunk=8)
    job = make_job(photos, tmp_path / "out", supports.support_id, labeler, chunk=8)
    job.out.write_json("attempt-000001.json", {})
    with one_thread():
        plain.run(DirectEngine(labeler), plain.chunks_left(), 1)
        spec = ModelSpec(bundle_url=bundle, supports_url=root, batch=4, serve=ServiceSettings(threads=1))
        assert ChunkLabeler(job, spec)([0, 1, 2]) == 20
    for chunk in range(3):
        assert job.out.read_bytes(part_name(chunk)) == plain.out.read_bytes(part_name(chunk))
        assert not job.out.exists(f"attempt-{chunk:06d}.json")


@pytest.mark.parametrize(("chunks", "actors", "sizes"), [
    (3, 1, [1, 1, 1]), (40, 1, [8] * 5), (40, 5, [2] * 20), (1, 4, [1])])
def test_groups_leave_work_for_every_actor(chunks: int, actors: int, sizes: list[int]) -> None:
    groups = _groups(range(chunks), actors)
    assert [len(g) for g in groups] == sizes
    assert [c for g in groups for c in g] == list(range(chunks))


def test_a_service_that_has_another_bundle_meanwhile() -> None:
    client = Client("http://service")
    answer = {"support_id": "0" * 16, "bundle_id": "a" * 16, "results": [{"error": "no photo"}]}
    client._http = httpx.Client(base_url=client.url, transport=httpx.MockTransport(
        lambda _: httpx.Response(200, json=answer)))
    request = MaskRequest(support_ids=("0" * 16,))
    assert ServiceEngine(client, 10**6, "a" * 16).label([b""], request) == [PhotoFailure(reason="no photo")]
    engine = ServiceEngine(client, 64_000_000, "")
    assert (engine.request_bytes, engine.photo_bytes) == (32_000_000, 47_934_464)
    with pytest.raises(FssError, match=r"http://service: the service has bundle a{16} now, no longer b{16}"):
        ServiceEngine(client, 10**6, "b" * 16).label([b""], request)


def test_a_model_that_is_lost_again_and_again_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.exceptions import ActorDiedError
    from ray.serve.exceptions import BackPressureError

    monkeypatch.setattr(engines, "ATTEMPTS", 1)
    for error in (ActorDiedError(), BackPressureError(1, 1)):
        with pytest.raises(FssError, match=rf"the model .*{type(error).__name__}.*run the same command again") as told:
            engines._retrying(partial(raised, error))
        assert "\n" not in str(told.value)
    for other in (WorkerLostError(), KeyError("x")):
        with pytest.raises(type(other)):
            engines._retrying(partial(raised, other))


def raised(error: Exception) -> None:
    raise error


@contextmanager
def one_thread() -> Iterator[None]:
    """One torch thread, as in the actor: sums in another order would round differently."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
