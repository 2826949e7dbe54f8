"""A small server with those paths of Label Studio's API that the bridge uses, answering as version 1.23 does.

The real server is in `test_label_studio_real`; here what is quick is tested, and what the real one does rarely: photos
that are gone, and answers that are lost on their way.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from pipelines.serving.server import free_port
from tests.serving.helpers import encoded

TOKEN = "abcdefabcdef0123456789"
LOST = 599  # the status of an answer that does not arrive
TAGS = {"brush": "BrushLabels", "outline": "PolygonLabels", "box": "RectangleLabels", "point": "KeyPointLabels"}


@dataclass
class StandIn:
    """The server's content: one project, number 1, with the labels ball and cup."""

    tags: dict[str, str] = field(default_factory=lambda: dict(TAGS))
    image: str = "Image"
    tasks: dict[int, dict[str, Any]] = field(default_factory=dict)
    photos: dict[str, bytes] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    lost_answers: int = 0  # of requests that store predictions: they are stored, but the client is told of an outage
    url: str = ""

    def add(self, photo: np.ndarray, *results: dict[str, Any]) -> int:
        """A task with a photo, and an annotation if there are results. Returns its number."""
        number = len(self.tasks) + 1
        self.photos[f"{number}.png"] = encoded(photo, "PNG")
        self.tasks[number] = {"id": number, "data": {"picture": f"/data/upload/1/{number}.png"}, "annotations": [],
                              "updated_at": 0.0}
        if results:
            self.annotate(number, *results)
        return number

    def annotate(self, number: int, *results: dict[str, Any]) -> None:
        """A further annotation of a task."""
        self.tasks[number]["annotations"].append({"result": list(results), "was_cancelled": False})
        self.tasks[number]["updated_at"] = time.monotonic()

    def project(self) -> dict[str, Any]:
        """What the API says about the project."""
        source = [{"type": self.image, "valueType": None, "value": "picture"}]
        return {"id": 1, "parsed_label_config": {
            name: {"type": kind, "to_name": ["photo"], "inputs": source, "labels": ["ball", "cup"]}
            for name, kind in self.tags.items()}}

    def select(self, query: dict[str, Any]) -> list[dict[str, Any]]:
        """The tasks that a query's filters leave, in its order."""
        rows = list(self.tasks.values())
        for item in query["filters"]["items"]:
            column = item["filter"].rpartition(":")[2]
            rows = [r for r in rows if self._fits(r, column, item["operator"], item["value"])]
        (key,) = query["ordering"]
        return sorted(rows, key=lambda r: r[key.rpartition(":")[2]], reverse=key.startswith("-"))

    def _fits(self, task: dict[str, Any], column: str, operator: str, value: Any) -> bool:
        versions = {p["model_version"] for p in self.predictions if p["task"] == task["id"]}
        return {("total_annotations", "greater"): lambda: len(task["annotations"]) > value,
                ("id", "greater"): lambda: task["id"] > value, ("id", "less_or_equal"): lambda: task["id"] <= value,
                ("predictions_model_versions", "not_contains"): lambda: not versions & set(value)}[column, operator]()

    def store(self, rows: list[dict[str, Any]]) -> Response:
        """Predictions to import."""
        self.predictions += rows
        if self.lost_answers:
            self.lost_answers -= 1
            return Response(status_code=LOST)
        return JSONResponse({"created": len(rows)}, status_code=201)


def make_app(content: StandIn) -> FastAPI:
    """The server."""
    api = FastAPI()

    @api.middleware("http")
    async def signed(request: Request, follow: Any) -> Any:
        if request.headers.get("authorization") != f"Token {TOKEN}":
            return JSONResponse({"detail": "Invalid token."}, status_code=401)
        return await follow(request)

    @api.get("/api/projects")
    def projects() -> Any:
        return {"results": []}

    @api.get("/api/projects/{number}")
    def project(number: int) -> Any:
        return content.project() if number == 1 else JSONResponse({"detail": "Not found."}, status_code=404)

    @api.get("/api/tasks")
    def tasks(query: str, page: int, page_size: int) -> Any:
        rows = content.select(json.loads(query))
        return {"tasks": rows[(page - 1) * page_size:page * page_size], "total": len(rows)}

    @api.get("/data/upload/1/{name}")
    def photo(name: str) -> Any:
        return Response(content.photos[name]) if name in content.photos else Response(status_code=404)

    @api.post("/api/projects/1/import/predictions")
    async def store(request: Request) -> Any:
        return content.store(await request.json())

    return api


class Cut:
    """An application whose connection is cut instead of an answer with the status `LOST`."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sent(message: Any) -> None:
            if message.get("status") == LOST:
                send.__self__.transport.abort()
            await send(message)

        await self.app(scope, receive, sent)


@contextlib.contextmanager
def running(content: StandIn) -> Iterator[StandIn]:
    """The server on a free port, in a thread."""
    port = free_port("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(Cut(make_app(content)), host="127.0.0.1", port=port, log_level="critical"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    content.url = f"http://127.0.0.1:{port}"
    try:
        yield content
    finally:
        server.should_exit = True
        thread.join(10)
