"""What the labelling benchmarks share: a folder of photos, supports of it, real commands, and a job's rate."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.datasets import coco_root
from benchmarks.resident import cpu_now
from pipelines.labelling.images import list_images

FSS = [sys.executable, "-m", "jobs.cli"]


def fill_photos(config: dict[str, Any], folder: Path) -> str:
    """`config["count"]` photos below folder/photos, the ones at hand again and again. Returns what they are.

    config["data"] "auto": real ones where they are beside the checkout, else generated; or a folder of photos.
    """
    own = config["data"] not in ("auto", "generated")
    root, what = (config["data"], "a folder of photos") if own else coco_root(config, folder)
    found = list_images(root)
    (folder / "photos").mkdir()
    for i in range(config["count"]):
        source = Path(root, found.names[i % len(found)])
        (folder / "photos" / f"{i:07d}{source.suffix}").symlink_to(source.resolve())
    return f"{config['count']} files, from {what}"


def bundle_of(config: dict[str, Any], folder: Path) -> str:
    """`config["bundle"]`, or where config["method"] names one, a bundle of its random values at config["preset"]."""
    if not config["method"]:
        return str(config["bundle"])
    from fss_models import registry
    from pipelines.bundles.bundle import save_bundle

    url = str(folder / "bundle")
    save_bundle(url, registry.build(config["method"], config["preset"], seed=config["seed"]))
    return url


def write_supports(folder: Path, shots: int, classes: int = 1) -> Path:
    """A label set of `classes` classes, the first photos with a disc marked in each. Returns its file."""
    photos = [folder / "photos" / n for n in list_images(str(folder / "photos"), shots * classes).names]
    given = []
    for c in range(classes):
        names = [_marked(photo, folder / f"mask-{c}-{photo.stem}.png", c)
                 for photo in photos[c * shots:(c + 1) * shots]]
        given.append({"class_name": f"disc {c}", "supports": names})
    place = folder / "supports.json"
    place.write_text(json.dumps(given[0] if classes == 1 else {"classes": given}))
    return place


def _marked(photo: Path, mask: Path, number: int) -> dict[str, str]:
    with Image.open(photo) as opened:
        width, height = opened.size
    y, x = np.mgrid[:height, :width]
    radius = min(height, width) / (4 + number % 3)
    Image.fromarray(((y - height / 2) ** 2 + (x - width / 2) ** 2 < radius**2).astype(np.uint8) * 255).save(mask)
    return {"image": str(photo.resolve()), "mask": str(mask)}


def fss(*args: str, folder: Path, watch: Callable[[int], None] | None = None) -> float:
    """Run a command to its end; its seconds. Raises `SystemExit` with its last line if it fails.

    `watch` is called with its process id again and again.
    """
    began = time.monotonic()
    with (folder / "log").open("w") as log:
        running = subprocess.Popen([*FSS, *args], stdout=log, stderr=log, cwd=Path(__file__).parents[1])
        while watch and running.poll() is None:
            watch(running.pid)
        running.wait()
    if running.returncode:
        last = (folder / "log").read_text().strip().splitlines() or ["no message"]
        raise SystemExit(f"error: fss {args[0]}: {last[-1]}")
    return time.monotonic() - began


@contextmanager
def service(*args: str, folder: Path) -> Iterator[tuple[str, int]]:
    """`fss serve` while the block runs: its address and process id. Raises `SystemExit` if it does not start."""
    command = [*FSS, "serve", "--port", "0", "--json", "--out", str(folder / "served"), *args]
    with (folder / "serve.log").open("w") as log:
        running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True,
                                   cwd=Path(__file__).parents[1])
    try:
        line = running.stdout.readline() if running.stdout else ""
        if not line:
            raise SystemExit(f"error: no service: {(folder / 'serve.log').read_text()[-1000:]}")
        yield json.loads(line)["url"], running.pid
    finally:
        running.send_signal(signal.SIGINT)
        running.wait(60)


class CpuAccount:
    """CPU time of a job, by role of process, between its first and its third quarter: what a photo takes of what."""

    def __init__(self, out: Path, parts: int, more: Sequence[int] = ()) -> None:
        self._out, self._parts, self._more = out, parts, more
        self._seen: dict[int, dict[int, tuple[str, float]]] = {}

    def look(self, pid: int) -> None:
        """To be called again and again. `pid`: the command's; its children and those of `more` count too."""
        done = len(list((self._out / "parts").glob("chunk-*.parquet")))
        if done >= self._parts // 4 and (not self._seen or done <= self._parts * 3 // 4):
            self._seen[done] = cpu_now((pid, *self._more))
        time.sleep(0.25)

    def ms_a_photo(self, chunk: int) -> dict[str, float]:
        """Milliseconds of CPU by role; none where the job was over before it could be looked at twice."""
        if len(self._seen) < 2:
            return {}
        first, last = min(self._seen), max(self._seen)
        before, found = self._seen[first], dict[str, float]()
        for pid, (role, seconds) in self._seen[last].items():
            found[role] = found.get(role, 0.0) + seconds - before.get(pid, ("", 0.0))[1]
        return {role: 1000 * seconds / ((last - first) * chunk) for role, seconds in found.items()}


def images_per_s(out: Path, chunk: int) -> float:
    """A finished job's rate, from the times of its parts: start-up and the first and last quarter are left out."""
    times = np.sort([p.stat().st_mtime for p in (out / "parts").glob("chunk-*.parquet")])
    middle = slice(len(times) // 4, len(times) - len(times) // 4)
    done = np.arange(1, len(times) + 1) * chunk
    return float(np.polyfit(times[middle] - times[0], done[middle], 1)[0])
