"""`fss label` as a process, its child processes to kill, and the files that it has to write."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from pipelines.base.storage import Store, join
from tests.serving.helpers import FSS, clean_env

PHOTOS, CHUNK = 160, 4
PARTS = PHOTOS // CHUNK


@dataclass(frozen=True)
class QuietJob:
    """An undisturbed job: the folder `inputs` of its photos and supports, its bundle, and the files that it wrote."""

    inputs: str
    bundle: str
    files: dict[str, bytes] = field(default_factory=dict, repr=False)

    def words(self, out: Path | str, *more: str) -> list[str]:
        """The command line of the same job with another --out, with small chunks and one thread for each model."""
        sets = (f"label.chunk={CHUNK}", "serve.threads=1")
        return ["label", "--images", join(self.inputs, "photos"), "--supports", join(self.inputs, "supports.json"),
                "--out", str(out), "--bundle", self.bundle, "--workspace", f"{out}-workspace",
                *(word for one in sets for word in ("--set", one)), *more]

    def copied_to(self, url: str) -> QuietJob:
        """The same job with its inputs and bundle copied to `url`."""
        for name, source in (("inputs", Store(self.inputs)), ("bundle", Store(self.bundle))):
            for file in source.list():
                Store(url).write_bytes(f"{name}/{file}", source.read_bytes(file))
        return replace(self, inputs=join(url, "inputs"), bundle=join(url, "bundle"))

    def assert_same(self, out: Path | str) -> None:
        """Check that every photo is labelled once, and that all files are equal byte for byte."""
        store = Store(str(out))
        rows = [row for name in store.list("parts") for row in store.read_table(name).to_pylist()]
        assert [row["image_id"] for row in rows] == list(range(1, PHOTOS + 1))
        found = written(out)
        assert found.keys() == self.files.keys()
        assert [name for name, data in found.items() if data != self.files[name]] == []


def written(out: Path | str) -> dict[str, bytes]:
    """The parts and outputs of a finished job."""
    store = Store(str(out))
    return {name: store.read_bytes(name) for name in (*store.list("parts"), "labels.json", "failures.parquet")}


@dataclass(frozen=True)
class Command:
    """A running `fss label`."""

    process: subprocess.Popen[bytes]
    log: Path
    out: Store

    def wait_for_parts(self, count: int, seconds: float = 240) -> None:
        """Wait until `count` parts are written, but not all."""
        end = time.monotonic() + seconds
        while (done := len(self.out.list("parts"))) < count:
            assert self.process.poll() is None, self.text()
            assert time.monotonic() < end, f"{done} parts\n{self.text()}"
            time.sleep(0.02)
        assert done < PARTS, "the job was done too early; raise PHOTOS"

    def kill(self) -> None:
        """Send SIGKILL to the command alone; the processes that it started end by themselves."""
        orphans = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        assert psutil.wait_procs(orphans, timeout=120)[1] == []

    def kill_below(self, name: str) -> None:
        """Send SIGKILL to the one child process with `name` in its title."""
        kill_below(self.process.pid, name)

    def ends_well(self, seconds: float = 400) -> None:
        """Wait for the end, and check that the exit status is 0."""
        assert self.process.wait(seconds) == 0, self.text()

    def text(self) -> str:
        """The last part of the command's output."""
        return self.log.read_text()[-3000:]


@contextmanager
def started(words: list[str], out: Path | str, log: Path, **env: str) -> Iterator[Command]:
    """Run the command during the block; it is killed at the end of the block."""
    with log.open("ab") as errors:
        process = subprocess.Popen([*FSS, *words], env=clean_env(**env), stdout=errors, stderr=errors,
                                   start_new_session=True)
    try:
        yield Command(process, log, Store(str(out)))
    finally:
        process.kill()
        process.wait()


def below(pid: int, name: str) -> list[psutil.Process]:
    """The descendants of `pid` that have `name` in their title."""
    found = psutil.Process(pid).children(recursive=True)
    return [p for p in found if p.is_running() and name in " ".join(p.cmdline())]


def kill_below(pid: int, name: str) -> None:
    """Send SIGKILL to the one descendant of `pid` with `name` in its title."""
    (process,) = below(pid, name)
    process.kill()
