"""`fss shards build` as a real process: on S3, killed half-way, and with a person's mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.base.storage import Store
from pipelines.base.workspace import Workspace
from pipelines.data.shardset import Shards
from tests.fixtures.command import Fss
from tests.jobs.test_cli import assert_one_line

SMALL = ["data.source.images=24", "data.source.side=64", "data.split.test_fraction=0.4", "data.min_images=1"]


def _command(out: str | Path, *settings: str) -> list[str]:
    sets = [part for s in settings for part in ("--set", s)]
    return [sys.executable, "-m", "jobs.cli", "shards", "build", "--out", str(out), "--json", *sets]


def _run(out: str | Path, *settings: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(out, *settings), capture_output=True, text=True, timeout=300,
                          env={**os.environ, **env}, check=False)


def _built(out: str | Path, *settings: str) -> dict[str, Any]:
    """What a process of its own prints: JSON on standard output, words for people on standard error."""
    done = _run(out, *settings)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)
    assert "Traceback" not in done.stderr
    assert "ray.data" not in done.stderr
    return facts


def test_json_on_standard_output_and_words_on_standard_error(fss: Fss, ray_cluster: object, tmp_path: Path) -> None:
    done = fss(*_command(tmp_path, *SMALL)[3:])
    facts = json.loads(done.stdout)
    assert facts["images"]["train"] + facts["images"]["test"] == 24
    assert facts["content_hash"] == Shards(facts["shards"]).manifest.content_hash
    assert "class left out" in done.stderr or not facts["dropped_classes"]
    again = json.loads(fss(*_command(tmp_path, *SMALL)[3:]).stdout)
    assert again["content_hash"] == facts["content_hash"]
    assert again["seconds"] < 1


@pytest.mark.parametrize(("settings", "message"), [
    (["data.source.format=coco", "data.source.root=/no/such/place"], "no such folder"),
    (["data.source.format=coco"], "needs a root"),
    (["data.min_image=1"], "did you mean 'data.min_images'"),
    (["data.split.file=/no/such/file.json"], "does not exist"),
    (["data.source.format=voc", "data.source.root=ftp://host/x"], "unsupported URL"),
])
def test_a_persons_mistake_is_one_line_and_exit_2(settings: list[str], message: str, fss: Fss,
                                                         tmp_path: Path) -> None:
    assert_one_line(fss(*_command(tmp_path / "out", *settings)[3:]), message)
    assert not (tmp_path / "out").exists()


def test_a_process_of_its_own_shows_nothing_else(tmp_path: Path) -> None:
    settings = ["data.source.format=coco", "data.source.root=/no/such/place"]
    assert_one_line(_run(tmp_path / "out", *settings), "no such folder")


def test_source_and_shards_on_s3(ray_cluster: object, s3_server: Any, coco_root: Path, fss: Fss,
                                 tmp_path: Path) -> None:
    """Would catch local paths in a worker, and parts that S3 does not hold when the manifest says so."""
    source = f"{s3_server.url}/data-room/tiny_coco"
    for file in (p for p in coco_root.rglob("*") if p.is_file()):
        Store(source).write_bytes(str(file.relative_to(coco_root)), file.read_bytes())
    base = ["data.name=tiny", "data.source.format=coco", "data.min_images=1", "data.split.test_fraction=0.4"]
    remote = _built(f"{s3_server.url}/data-room/ws", *base, f"data.source.root={source}")
    local = json.loads(fss(*_command(tmp_path, *base, f"data.source.root={coco_root}")[3:]).stdout)
    assert remote["content_hash"] == local["content_hash"]
    assert remote["failures"] == local["failures"] == 6
    shards = Shards(remote["shards"])
    assert shards.sample(100, 1).mask.sum() == 400
    names = shards.store.list()
    assert all(name in names for name in shards.manifest.files)
    assert not [n for n in names if n.startswith("build/")]


@pytest.mark.slow
def test_a_build_killed_half_way_goes_on(tmp_path: Path) -> None:
    """kill -9 with some parts written: they are kept as they are, and the end is that of an undisturbed build."""
    settings = ["data.source.images=400", "data.images_per_part=10", "data.source.side=192"]
    whole = _built(tmp_path / "whole", *settings)
    out = tmp_path / "killed"
    images = Path(Workspace(str(out)).shards("shapes")) / "images"
    process = subprocess.Popen(_command(out, *settings), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    family = _kill_after(process, images, parts=6)
    _wait_gone(family)
    kept = {p: p.stat().st_mtime_ns for p in images.glob("part-*.parquet")}
    assert 6 <= len(kept) < 40
    assert not (images.parent / "manifest.json").exists()
    assert _built(out, *settings)["content_hash"] == whole["content_hash"]
    assert {p: p.stat().st_mtime_ns for p in kept} == kept
    assert not list(out.rglob(".tmp-*"))


def _kill_after(process: subprocess.Popen[bytes], images: Path, parts: int) -> list[psutil.Process]:
    """Kill the command once that many parts are there; its descendants, to see that they end by themselves."""
    limit = time.monotonic() + 120
    while len(list(images.glob("part-*.parquet"))) < parts:
        assert process.poll() is None, "the build ended before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    return family


def _wait_gone(family: list[psutil.Process]) -> None:
    """Wait until nothing is left that could still write. Ray's own agents may linger: they hold no task."""
    _, alive = psutil.wait_procs(family, timeout=30)
    writing = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE and not _is_agent(p)]
    for one in alive:
        one.kill()
    assert not writing, f"still running after the command was killed: {writing}"


def _is_agent(process: psutil.Process) -> bool:
    return process.name().startswith(("ray::Dashboard", "ray::RuntimeEnv"))


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_build_goes_on_when_there_is_room(full_disk: Path, tmp_path: Path) -> None:
    """Photos are written by Ray's workers: their mistakes must not come out as a traceback of Ray's."""
    large = ["data.source.images=160", "data.source.side=160"]
    failed = _run(full_disk / "out", *large)
    assert failed.returncode == 2, failed.stderr
    last = failed.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "no space left on the device" in last
    assert "Traceback" not in failed.stderr
    subprocess.run(["mount", "-o", "remount,size=40m", str(full_disk)], check=True)
    assert _built(full_disk / "out", *large)["content_hash"] == _built(tmp_path / "roomy", *large)["content_hash"]
