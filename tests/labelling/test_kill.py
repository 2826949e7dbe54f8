"""Whichever process dies during a job, every photo is labelled once, and all files equal those of an undisturbed job.

Would catch a ledger that counts half a part, chunks lost or done anew after a kill, photos written off as unreadable
while the store was away, labels that depend on which process made them, and a job that dies with one of its processes.
Slow: real processes.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.local.s3 import S3Server
from tests.data.conftest import scan_bomb
from tests.data.faulty_s3 import faulty_proxy
from tests.labelling.commands import CHUNK, PARTS, PHOTOS, QuietJob, kill_below, started, written
from tests.serving.helpers import photo_folder, run_fss, running_service, supports_file

pytestmark = pytest.mark.slow
AWAY_S = 60.0
ENGINES = ["serve", "actors"]


def _times(out: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in (out / "parts").glob("chunk-*.parquet")}


def _kill_twice(words: list[str], out: Path, log: Path) -> dict[str, int]:
    """Kill the job's command after some parts, twice. The finished parts and when they were written."""
    for count in (4, 12):
        with started(words, out, log) as command:
            command.wait_for_parts(count)
            command.kill()
    kept = _times(out)
    assert count <= len(kept) < PARTS
    assert not (out / "labels.json").exists()
    return kept


def _ends(words: list[str], out: Path, kept: dict[str, int]) -> None:
    """The next command labels the remaining photos, and nothing else."""
    ended = run_fss(*words, timeout=400)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["labelled_now"] == PHOTOS - CHUNK * len(kept)
    assert kept.items() <= _times(out).items(), "finished parts were written again"


@pytest.mark.parametrize("engine", ENGINES)
def test_the_command_is_killed_twice(engine: str, quiet_job: QuietJob, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = quiet_job.words(out, "--engine", engine, "--set", "label.in_flight=2", "--json")
    kept = _kill_twice(words, out, tmp_path / "log")
    (out / "parts" / f".tmp-chunk-{PARTS - 1:06d}.parquet-0a1b2c3d").write_bytes(b"PAR1 and no more")
    _ends(words, out, kept)
    quiet_job.assert_same(out)


@pytest.mark.parametrize(("images", "engine"), [("list.parquet", "serve"), ("photos.tar", "actors")])
def test_a_job_on_a_list_or_a_tar_file_is_killed_twice(images: str, engine: str, bundle: str, tmp_path: Path) -> None:
    given = tmp_path / "given"
    photos = sorted(photo_folder(given / "photos", PHOTOS).rglob("*.jpg"))
    supports_file(given)
    pq.write_table(pa.table({"url": [str(p) for p in photos], "id": [f"photo {i}" for i in range(PHOTOS)]}),
                   given / "list.parquet")
    with tarfile.open(given / "photos.tar", "w") as tar:
        for photo in photos:
            tar.add(photo, photo.name)
    job = QuietJob(str(given), bundle)

    def words(out: Path) -> list[str]:
        found = job.words(out, "--engine", engine, "--set", "label.in_flight=2", "--json")
        found[found.index("--images") + 1] = str(given / images)
        return found

    _ends(words(tmp_path / "plain"), tmp_path / "plain", {})
    out = tmp_path / "out"
    _ends(words(out), out, _kill_twice(words(out), out, tmp_path / "log"))
    replace(job, files=written(tmp_path / "plain")).assert_same(out)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_killed_job_with_instances(engine: str, bundle: str, tmp_path: Path) -> None:
    """The command dies, and the next one is robbed of its model: the instances equal those of an undisturbed job."""
    process, more = "ServeReplica" if engine == "serve" else "MapWorker", ("--engine", engine, "--instances", "pieces")
    photo_folder(tmp_path / "given" / "photos", PHOTOS)
    supports_file(tmp_path / "given")
    quiet = QuietJob(str(tmp_path / "given"), bundle)
    plain = run_fss(*quiet.words(tmp_path / "plain", *more), timeout=400)
    assert plain.returncode == 0, plain.stderr
    quiet = replace(quiet, files=written(tmp_path / "plain"))
    assert all(row["instances"] for row in pq.read_table(tmp_path / "plain" / "parts").to_pylist() if row["area"])
    out = tmp_path / "out"
    with started(quiet.words(out, *more), out, tmp_path / "log") as command:
        command.wait_for_parts(4)
        command.kill()
    with started(quiet.words(out, *more), out, tmp_path / "log") as command:
        command.wait_for_parts(12)
        command.kill_below(process)
        command.ends_well()
    quiet.assert_same(out)


@pytest.mark.parametrize(("engine", "process"), [("serve", "ServeReplica"), ("actors", "MapWorker")])
def test_a_process_with_the_model_is_killed(engine: str, process: str, quiet_job: QuietJob, tmp_path: Path) -> None:
    """A killed replica of the job's own deployment, or a killed actor, is replaced, and the command succeeds."""
    out = tmp_path / "out"
    with started(quiet_job.words(out, "--engine", engine), out, tmp_path / "log") as command:
        command.wait_for_parts(6)
        before = _times(out)
        command.kill_below(process)
        command.ends_well()
    assert (engine == "actors") or "a request failed" in command.text()
    assert before.items() <= _times(out).items(), "finished parts were written again"
    quiet_job.assert_same(out)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_photo_that_never_ends_fails_alone(engine: str, quiet_job: QuietJob, tmp_path: Path) -> None:
    """The workers that decode it end themselves; every other photo is labelled."""
    given = tmp_path / "given"
    shutil.copytree(Path(quiet_job.inputs) / "photos", given / "photos")
    name = min(p.name for p in (given / "photos").iterdir())
    (given / "photos" / name).write_bytes(scan_bomb(2000, 20_000))
    out = tmp_path / "out"
    words = quiet_job.words(out, "--engine", engine, "--set", "data.max_seconds=4", "--json")
    words[words.index("--images") + 1] = str(given / "photos")
    ended = run_fss(*words, timeout=400)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)["failed"] == 1
    (row,) = pq.read_table(out / "failures.parquet").to_pylist()
    assert row["file_name"] == name
    assert row["reason"] == "its decoder took longer than 4 s (data.max_seconds)"
    assert [p.name for p in out.iterdir() if p.name.startswith("attempt")] == []


def test_the_service_loses_one_process_after_another(quiet_job: QuietJob, tmp_path: Path) -> None:
    """The model's replica, the ingress replica and the proxy of a service are killed in turn."""
    out = tmp_path / "out"
    with running_service(quiet_job.bundle, tmp_path / "ws", "--set", "serve.threads=1") as service:
        words = quiet_job.words(out, "--service", service.url)
        with started(words, out, tmp_path / "log") as command:
            for number, name in enumerate((":bulk", ":service", "ProxyActor"), 1):
                command.wait_for_parts(8 * number)
                kill_below(service.process.pid, name)
            command.ends_well()
    assert command.log.read_text().count("a request failed") >= 3
    quiet_job.assert_same(out)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_store_is_away_for_a_minute(engine: str, quiet_job: QuietJob, s3_server: S3Server, tmp_path: Path) -> None:
    """Photos and parts are in a store that is down for a while: it serves no reads, no writes and no connections."""
    far = quiet_job.copied_to(f"{s3_server.url}/away-{engine}")
    out = f"{s3_server.url}/away-{engine}/out"
    words = far.words(out, "--engine", engine)
    with faulty_proxy(s3_server.env["AWS_ENDPOINT_URL"], every=10**9) as proxy, \
            started(words, out, tmp_path / "log", AWS_ENDPOINT_URL=proxy.endpoint) as command:
        command.wait_for_parts(6)
        proxy.away = True
        time.sleep(AWAY_S)
        assert command.process.poll() is None, command.text()
        assert len(command.out.list("parts")) < PARTS
        proxy.away = False
        command.ends_well()
    assert proxy.failed["refused"] > 0
    quiet_job.assert_same(out)
