"""Photos of a red ball on noise, a bundle of `prior`, and a service in a process of its own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

FSS = [sys.executable, "-m", "jobs.cli"]


def ball(seed: int, height: int = 0, width: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A photo [H, W, 3] uint8 and the ball's mask [H, W] bool."""
    rng = np.random.default_rng(seed)
    height, width = height or int(rng.integers(120, 240)), width or int(rng.integers(120, 240))
    photo = rng.integers(40, 100, (height, width, 3), dtype=np.uint8)
    y, x, r = rng.integers(45, height - 45), rng.integers(45, width - 45), rng.integers(25, 42)
    rows, columns = np.mgrid[:height, :width]
    mask = (rows - y) ** 2 + (columns - x) ** 2 < r * r
    photo[mask] = [220, 30, 30]
    return photo, mask


def encoded(pixels: np.ndarray, kind: str = "JPEG", **options: Any) -> bytes:
    """The bytes of a picture file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **options)
    return out.getvalue()


def photo_folder(folder: Path, count: int) -> Path:
    """`count` photos, some in a sub-folder."""
    (folder / "more").mkdir(parents=True)
    for i in range(count):
        place = folder / ("more" if i % 3 == 0 else ".") / f"{i:04d}.jpg"
        place.write_bytes(encoded(ball(i)[0], quality=92))
    return folder


def supports_file(folder: Path) -> Path:
    """A supports file with one photo and its mask."""
    photo, mask = ball(1000)
    (folder / "ball.png").write_bytes(encoded(photo, "PNG"))
    (folder / "mask.png").write_bytes(encoded(mask.astype(np.uint8) * 255, "PNG"))
    file = folder / "supports.json"
    file.write_text(json.dumps({"class_name": "ball", "supports": [{"image": "ball.png", "mask": "mask.png"}]}))
    return file


def hiding_folder(place: Path) -> Path:
    """A folder with packages that are named like those of fss and cannot be imported."""
    for name in ("jobs", "pipelines", "infra"):
        (place / name).mkdir(parents=True)
        (place / name / "__init__.py").write_text("raise ImportError('the wrong package')\n")
    return place


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until the condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.1)


def clean_env(**more: str) -> dict[str, str]:
    """The environment without the variables that a cluster in this process has set."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k not in ("FSS_TOKEN",)}
    return {**kept, **more}


def run_fss(*arguments: str, timeout: float = 200, **env: str) -> subprocess.CompletedProcess[str]:
    """`fss ...` in a process of its own."""
    return subprocess.run([*FSS, *arguments], capture_output=True, text=True, timeout=timeout, env=clean_env(**env))


@dataclass(frozen=True)
class Running:
    """A running `fss serve`."""

    url: str
    workspace: Path
    process: subprocess.Popen[str]


@contextlib.contextmanager
def running_service(bundle: str, workspace: Path, *arguments: str, fss: Sequence[str] = FSS, cwd: Path | None = None,
                    **env: str) -> Iterator[Running]:
    """`fss serve` on a free port, stopped by SIGTERM at the end."""
    command = [*fss, "serve", "--bundle", bundle, "--out", str(workspace), "--port", "0", "--json", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean_env(**env),
                               cwd=cwd)
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield Running(json.loads(line)["url"], workspace, process)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()
            process.stdout.close()
            process.stderr.close()
