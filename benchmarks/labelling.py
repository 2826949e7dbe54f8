"""What the labelling benchmarks share: folders of photos, supports, running real commands, and the rate of a job."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.datasets import coco_root
from benchmarks.episodes import centred_disc
from benchmarks.photos import disc_supports, smooth_photo
from benchmarks.resident import cpu_now
from pipelines.labelling.images import list_images

FSS = [sys.executable, "-m", "jobs.cli"]


def fill_photos(config: dict[str, Any], folder: Path) -> str:
    """Link `config["count"]` photos below folder/photos, repeating the available ones. Returns a description of them.

    config["data"] is "auto" (real photos if they are available, else generated ones), "generated", or a folder.
    """
    own = config["data"] not in ("auto", "generated")
    root, what = (config["data"], "a folder of photos") if own else coco_root(config, folder)
    found = list_images(root)
    (folder / "photos").mkdir()
    for i in range(config["count"]):
        source = Path(root, found.names[i % len(found)])
        (folder / "photos" / f"{i:07d}{source.suffix}").symlink_to(source.resolve())
    return f"{config['count']} files, from {what}"


def prepare_bundle(config: dict[str, Any], folder: Path) -> str:
    """The bundle to measure: `config["bundle"]`, or a new untrained one if `config["method"]` names a method."""
    if not config["method"]:
        return str(config["bundle"])
    from fss_models import registry
    from pipelines.bundles.bundle import save_bundle

    url = str(folder / "bundle")
    save_bundle(url, registry.build(config["method"], config["preset"], seed=config["seed"]))
    return url


def write_supports(folder: Path, shots: int, classes: int = 1) -> Path:
    """Write a label set of `classes` classes; a disc is marked in each of the first photos. Returns its file."""
    photos = [folder / "photos" / n for n in list_images(str(folder / "photos"), shots * classes).names]
    sets = []
    for c in range(classes):
        names = [_marked(photo, folder / f"mask-{c}-{photo.stem}.png", c)
                 for photo in photos[c * shots:(c + 1) * shots]]
        sets.append({"class_name": f"disc {c}", "supports": names})
    place = folder / "supports.json"
    place.write_text(json.dumps(sets[0] if classes == 1 else {"classes": sets}))
    return place


def _marked(photo: Path, mask: Path, number: int) -> dict[str, str]:
    with Image.open(photo) as opened:
        width, height = opened.size
    Image.fromarray(centred_disc(height, width, 4 + number % 3).astype(np.uint8) * 255).save(mask)
    return {"image": str(photo.resolve()), "mask": str(mask)}


def set_words(settings: Mapping[str, object]) -> list[str]:
    """The words that give an `fss` command these settings of its recipe."""
    return [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]


def job_words(config: dict[str, Any]) -> list[str]:
    """The words that give an `fss` command the config's chunk, batch and threads."""
    return set_words({"label.chunk": config["chunk"], "label.batch": config["batch"],
                      "serve.threads": config["threads"]})


def label_words(folder: Path, supports: Path, out: Path) -> list[str]:
    """The words of `fss label` of folder/photos into `out`, without a workspace."""
    return ["label", "--images", str(folder / "photos"), "--supports", str(supports), "--out", str(out),
            "--workspace", str(folder / "none")]


def run_fss(*args: str, folder: Path, on_poll: Callable[[int], None] | None = None) -> float:
    """Run an `fss` command to its end and return its seconds. Raises `SystemExit` with its last line if it fails.

    `on_poll` is called with the process id over and over while the command runs; it sets the pace.
    """
    began = time.monotonic()
    with (folder / "log").open("w") as log:
        running = subprocess.Popen([*FSS, *args], stdout=log, stderr=log, cwd=Path(__file__).parents[1])
        while on_poll and running.poll() is None:
            on_poll(running.pid)
        running.wait()
    if running.returncode:
        last = (folder / "log").read_text().strip().splitlines() or ["no message"]
        raise SystemExit(f"error: fss {args[0]}: {last[-1]}")
    return time.monotonic() - began


def run_apart(module: str, *words: str) -> Any:
    """Run a benchmark's module in a process of its own, without Ray; the JSON that it prints.

    Raises `SystemExit` with its last line if it fails.
    """
    done = subprocess.run([sys.executable, "-m", f"benchmarks.suite.{module}", *words], capture_output=True, text=True,
                          check=False)
    if done.returncode:
        raise SystemExit(f"error: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


@contextmanager
def run_service(*args: str, folder: Path) -> Iterator[tuple[str, int]]:
    """Run `fss serve` for the block and yield its URL and process id. Raises `SystemExit` if it does not start."""
    command = [*FSS, "serve", "--port", "0", "--json", "--out", str(folder / "served"), *args]
    with (folder / "serve.log").open("w") as log:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True,
                                   cwd=Path(__file__).parents[1])
    try:
        line = running.stdout.readline() if running.stdout else ""
        if not line:
            raise SystemExit(f"error: fss serve did not start: {(folder / 'serve.log').read_text()[-1000:]}")
        yield json.loads(line)["url"], running.pid
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(60)


def segment_request(url: str, config: dict[str, Any]) -> dict[str, Any]:
    """Register a support set with the service, and return a request to segment one small photo with it."""
    from pipelines.serving.client import Client

    photo = smooth_photo(np.random.default_rng(config["seed"]), config["side"], config["side"], 8)
    client = Client(url)
    support = client.add_support(disc_supports([photo], 1))
    client.close()
    return {"support_id": support, "images": [base64.b64encode(photo).decode()]}


class CpuAccount:
    """The CPU time that a job spends on a photo, by role of process, between its first and its third quarter."""

    def __init__(self, out: Path, parts: int, more: Sequence[int] = ()) -> None:
        self._out, self._parts, self._more = out, parts, more
        self._seen: dict[int, dict[int, tuple[str, float]]] = {}

    def sample(self, pid: int) -> None:
        """Take a sample; to be called repeatedly. `pid` is the command's; child processes of it and `more` count."""
        done = len(list((self._out / "parts").glob("chunk-*.parquet")))
        if done >= self._parts // 4 and (not self._seen or done <= self._parts * 3 // 4):
            self._seen[done] = cpu_now((pid, *self._more))
        time.sleep(0.25)

    def ms_a_photo(self, chunk: int) -> dict[str, float]:
        """Milliseconds of CPU time a photo, by role; empty if the job ended before the second sample."""
        if len(self._seen) < 2:
            return {}
        first, last = min(self._seen), max(self._seen)
        before, found = self._seen[first], dict[str, float]()
        for pid, (role, seconds) in self._seen[last].items():
            found[role] = found.get(role, 0.0) + seconds - before.get(pid, ("", 0.0))[1]
        return {role: 1000 * seconds / ((last - first) * chunk) for role, seconds in found.items()}


def images_per_s(out: Path, chunk: int) -> float:
    """The rate of a finished job from the times of its parts, without start-up, the first and the last quarter."""
    times = np.sort([p.stat().st_mtime for p in (out / "parts").glob("chunk-*.parquet")])
    middle = slice(len(times) // 4, len(times) - len(times) // 4)
    done = np.arange(1, len(times) + 1) * chunk
    return float(np.polyfit(times[middle] - times[0], done[middle], 1)[0])
