"""The part of CVAT's REST API that cvat-sdk and cvat-cli use to annotate a task and to run an agent, for one task.

It is no CVAT: what it answers is made from the SDK's models, which check it when they read it, and what it is sent is
checked here as far as CVAT's documentation of shapes goes.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
from PIL import Image

TASK, FUNCTION, TOKEN, CHUNK = 5, 7, "a-token", 2
LABEL_IDS = 40  # ids of the task's labels begin here, unlike those of a function's spec
WHEN = "2026-01-01T00:00:00Z"


@dataclass
class CvatServer:
    """A server with one task: its photos in order, its labels, and what was sent to it."""

    photos: list[Path]
    labels: list[str]
    attributes: tuple[str, ...] = ()
    url: str = ""
    drawn: list[dict[str, Any]] = field(default_factory=list)  # shapes that the task has: type, points and so on
    uploads: list[list[dict[str, Any]]] = field(default_factory=list)  # shapes, upload by upload
    functions: list[dict[str, Any]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)  # of annotation, not taken by an agent yet
    completed: list[dict[str, Any]] = field(default_factory=list)
    failed: list[dict[str, Any]] = field(default_factory=list)

    def size(self, frame: int) -> tuple[int, int]:
        """(height, width) of a frame."""
        with Image.open(self.photos[frame]) as photo:
            return photo.height, photo.width

    def mask(self, shapes: list[dict[str, Any]], frame: int, label: str) -> np.ndarray:
        """The union [H, W] bool of a frame's mask shapes of a label."""
        number, found = LABEL_IDS + self.labels.index(label), np.zeros(self.size(frame), dtype=bool)
        for shape in shapes:
            if (shape["frame"], shape["label_id"]) == (frame, number):
                found |= self.checked(shape)
        return found

    def checked(self, shape: dict[str, Any]) -> np.ndarray:
        """The pixels of a mask shape, [H, W] bool. Its points are run lengths and left, top, right, bottom."""
        assert shape["type"] == "mask"
        assert shape["source"] == "auto"
        height, width = self.size(shape["frame"])
        assert all(float(v).is_integer() for v in shape["points"])
        *runs, left, top, right, bottom = (int(v) for v in shape["points"])
        assert 0 <= left <= right < width
        assert 0 <= top <= bottom < height
        inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        found = np.zeros((height, width), dtype=bool)
        found[top:bottom + 1, left:right + 1] = inside.reshape(bottom - top + 1, right - left + 1)
        return found

    def answer(self, verb: str, path: str, query: dict[str, str], body: Any) -> Any:
        """The JSON or bytes of an answer. Raises `KeyError` for what the server does not have."""
        parts = path.removeprefix("/api/").strip("/").split("/")
        if parts[0] == "functions":
            return self._functions(verb, parts[1:], body)
        return {
            ("GET", "server/about"): lambda: {"name": "a test", "description": "", "version": "2.80.0",
                                              "logo_url": "", "subtitle": ""},
            ("GET", f"tasks/{TASK}"): self._task,
            ("GET", "labels"): lambda: {"count": len(self.labels), "next": None, "previous": None,
                                        "results": self._labels()},
            ("GET", f"tasks/{TASK}/data/meta"): self._meta,
            ("GET", f"tasks/{TASK}/data"): lambda: self._data(query),
            ("GET", f"tasks/{TASK}/annotations"): self._annotations,
            ("PATCH", f"tasks/{TASK}/annotations"): lambda: self._annotate(body),
        }[verb, "/".join(parts)]()

    def _task(self) -> dict[str, Any]:
        return {"id": TASK, "name": "photos", "jobs": {"count": 1, "completed": 0, "validation": 0, "url": self.url},
                "labels": {"url": f"{self.url}/api/labels?task_id={TASK}"}, "url": f"{self.url}/api/tasks/{TASK}",
                "size": len(self.photos), "data_chunk_size": CHUNK, "data_original_chunk_type": "imageset",
                "data_compressed_chunk_type": "imageset", "created_date": WHEN, "updated_date": WHEN,
                "mode": "annotation", "dimension": "2d", "organization": None, "organization_id": None,
                "status": "annotation", "data": 1, "media_type": "image", "project_id": None}

    def _labels(self) -> list[dict[str, Any]]:
        own = [{"id": number, "name": name, "mutable": False, "input_type": "text", "default_value": "", "values": []}
               for number, name in enumerate(self.attributes, 90)]
        return [{"id": number, "name": name, "color": "#00aaff", "type": "any", "attributes": own, "sublabels": [],
                 "task_id": TASK, "parent_id": None, "has_parent": False}
                for number, name in enumerate(self.labels, LABEL_IDS)]

    def _meta(self) -> dict[str, Any]:
        sizes = [self.size(i) for i in range(len(self.photos))]
        return {"chunks_updated_date": WHEN, "deleted_frames": [], "chunk_size": CHUNK, "size": len(self.photos),
                "start_frame": 0, "stop_frame": len(self.photos) - 1, "frame_filter": "", "image_quality": 70,
                "included_frames": None, "chapters": None, "storage": "local", "cloud_storage_id": None,
                "frames": [{"name": p.name, "width": w, "height": h, "related_files": 0, "has_related_context": False}
                           for p, (h, w) in zip(self.photos, sizes, strict=True)]}

    def _data(self, query: dict[str, str]) -> bytes:
        number = int(query["number"])
        if query["type"] == "frame":
            return self.photos[number].read_bytes()
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as chunk:
            for place, photo in enumerate(self.photos[number * CHUNK:(number + 1) * CHUNK]):
                chunk.writestr(f"{place:06d}{photo.suffix}", photo.read_bytes())
        return file.getvalue()

    def _annotate(self, body: Any) -> dict[str, Any]:
        assert body["tags"] == []
        self.uploads.append(body["shapes"])
        return self._annotations()

    def _annotations(self) -> dict[str, Any]:
        usual = {"occluded": False, "z_order": 0, "rotation": 0.0, "group": 0, "outside": False, "attributes": [],
                 "elements": []}
        return {"version": 0, "tags": [], "tracks": [], "intervals": [],
                "shapes": [{"id": number, **usual, **shape} for number, shape in enumerate(self.drawn)]}

    def _functions(self, verb: str, parts: list[str], body: Any) -> Any:
        if verb == "POST" and not parts:
            self.functions.append(body)
            return {"id": FUNCTION, **body}
        if verb == "GET" and parts == [str(FUNCTION)]:
            return {"id": FUNCTION, **self.functions[0]}
        assert parts[:3] == ["queues", f"function:{FUNCTION}", "requests"]
        if parts[3:] == ["acquire"]:
            waiting = self.requests if body["request_category"] == "batch" else []
            return {"ar_assignment": {"ar_id": "one", "ar_params": waiting.pop(0)} if waiting else None}
        assert parts[3] == "one"
        {"complete": self.completed, "fail": self.failed, "update": []}[parts[4]].append(body)
        return {}


@contextmanager
def running_cvat(server: CvatServer) -> Iterator[CvatServer]:
    """The server at its `url` until the block ends. Requests without `TOKEN` are refused."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do(self) -> None:
            parts = urlsplit(self.path)
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            query = {k: v[0] for k, v in parse_qs(parts.query).items()}
            if self.headers.get("Authorization") != f"Bearer {TOKEN}" and parts.path != "/api/server/about":
                self.send_error(401)
                return
            try:
                found = server.answer(self.command, unquote(parts.path), query, body)
            except (KeyError, AssertionError) as error:
                self.send_error(404 if isinstance(error, KeyError) else 400)
                return
            data = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(200)
            kind = "application/octet-stream" if isinstance(found, bytes) else "application/vnd.cvat+json"
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_PUT = do  # noqa: N815

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_port}"
        Thread(target=http.serve_forever, daemon=True).start()
        yield server
        http.shutdown()
