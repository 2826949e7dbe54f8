"""The real Label Studio from PyPI in an environment of its own, with SQLite, driven through its API."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from pipelines.data.sources.brush_rle import encode_brush
from pipelines.serving.server import free_port
from tests.serving.helpers import encoded

WANTED = "label-studio==1.23.2"
PLACE = Path(sys.prefix) / "consumers-label-studio"
USER, PASSWORD, TOKEN = "someone@example.com", "a-long-password", "0123456789abcdef0123"
INTERFACE = """
<View><Image name="photo" value="$picture"/>
  <BrushLabels name="brush" toName="photo"><Label value="ball"/></BrushLabels>
  <PolygonLabels name="outline" toName="photo"><Label value="ball"/></PolygonLabels>
  <RectangleLabels name="box" toName="photo"><Label value="ball"/></RectangleLabels>
  <KeyPointLabels name="point" toName="photo"><Label value="ball"/></KeyPointLabels></View>
"""


def label_studio_command() -> Path:
    """Label Studio's command, in an environment that is made once; skips where it cannot be installed."""
    stamp, command = PLACE / "installed", PLACE / "bin" / "label-studio"
    if not stamp.exists() or stamp.read_text() != WANTED:
        venv.create(PLACE, with_pip=True, clear=True)
        made = subprocess.run([PLACE / "bin" / "python", "-m", "pip", "install", "-q", WANTED], capture_output=True,
                              text=True, timeout=900, check=False)
        if made.returncode:
            pytest.skip(f"cannot install {WANTED}: {made.stderr.strip().splitlines()[-1]}")
        stamp.write_text(WANTED)
    return command


@dataclass(frozen=True)
class Studio:
    """A running Label Studio and a client that is signed in."""

    url: str
    api: httpx.Client

    def project(self, interface: str = INTERFACE, title: str = "balls") -> int:
        """A new project."""
        return int(self.call("POST", "/api/projects", json={"title": title, "label_config": interface})["id"])

    def upload(self, project: int, photos: list[np.ndarray]) -> list[int]:
        """Upload photos [H, W, 3]. Returns the numbers of their tasks, in order."""
        for start in range(0, len(photos), 50):  # a form takes a hundred
            files = {f"file{i}": (f"{i:03d}.png", io.BytesIO(encoded(photo, "PNG")))  # one file a name
                     for i, photo in enumerate(photos[start:start + 50], start)}
            self.call("POST", f"/api/projects/{project}/import", files=files)
        rows = self.tasks(project)
        return [row["id"] for row in sorted(rows, key=lambda row: row["data"]["picture"].rpartition("-")[2])]

    def tasks(self, project: int) -> list[dict[str, Any]]:
        """All tasks with their annotations and predictions."""
        found: list[dict[str, Any]] = self.call(
            "GET", "/api/tasks", params={"project": project, "fields": "all", "page_size": 500})["tasks"]
        return found

    def predictions(self, project: int) -> list[dict[str, Any]]:
        """All predictions."""
        return [one for task in self.tasks(project) for one in task["predictions"]]

    def annotate(self, task: int, *results: dict[str, Any]) -> int:
        """Submit an annotation. Returns its number."""
        return int(self.call("POST", f"/api/tasks/{task}/annotations", json={"result": list(results)})["id"])

    def call(self, verb: str, path: str, **options: Any) -> dict[str, Any]:
        """The answer to a request that succeeds."""
        answer = self.api.request(verb, path, **options)
        assert answer.is_success, answer.text[:600]
        found: dict[str, Any] = answer.json()
        return found


def drawn(kind: str, name: str, size: tuple[int, int], **value: Any) -> dict[str, Any]:
    """A region that a person drew; `size` is (height, width)."""
    return {"id": f"r-{name}", "type": kind, "from_name": name, "to_name": "photo", "original_height": size[0],
            "original_width": size[1], "image_rotation": 0, "origin": "manual", "value": {**value, kind: ["ball"]}}


def brushed(mask: np.ndarray) -> dict[str, Any]:
    """The region of a mask [H, W] that was drawn with the brush."""
    return drawn("brushlabels", "brush", mask.shape, format="rle", rle=list(encode_brush(mask)))


@contextlib.contextmanager
def running_studio(command: Path, folder: Path) -> Iterator[Studio]:
    """Label Studio on a free port, with an empty database."""
    port = free_port("127.0.0.1", 0)
    url = f"http://127.0.0.1:{port}"
    off = dict.fromkeys(("SSRF_PROTECTION_ENABLED", "ML_BLOCK_LOCAL_IP", "COLLECT_ANALYTICS", "LATEST_VERSION_CHECK"),
                        "false")  # the backend is on this machine; nothing is sent elsewhere
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | off | {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder / "data"), "LABEL_STUDIO_HOST": url}
    log = (folder / "log.txt").open("w")
    process = subprocess.Popen(
        [command, "start", "--no-browser", "--port", str(port), "--internal-host", "127.0.0.1", "--username", USER,
         "--password", PASSWORD, "--user-token", TOKEN, "--enable-legacy-api-token"], env=env, stdout=log,
        stderr=subprocess.STDOUT)
    api = httpx.Client(base_url=url, headers={"Authorization": f"Token {TOKEN}"}, timeout=60)
    try:
        end = time.monotonic() + 200
        while not _answers(api):
            assert process.poll() is None, (folder / "log.txt").read_text()[-2000:]
            assert time.monotonic() < end, "Label Studio does not start"
            time.sleep(0.5)
        yield Studio(url, api)
    finally:
        api.close()
        process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
            log.close()


def _answers(api: httpx.Client) -> bool:
    try:
        return api.get("/health", timeout=2).is_success
    except httpx.TransportError:
        return False
