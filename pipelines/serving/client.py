"""Talking to a running service over HTTP."""

from __future__ import annotations

import base64
import os
from typing import Any

import httpx

from fss_models.errors import FssError
from pipelines.serving.labeler import Failure, Label
from pipelines.serving.support_files import support_request
from pipelines.serving.supports import SupportSet
from pipelines.storage import Store


class ServiceError(FssError):
    """The service refused a request; `status` is the HTTP status."""

    def __init__(self, what: str, *, status: int, where: str = "") -> None:
        super().__init__(what, where=where)
        self.status = status


class Client:
    """One service. The token, if it wants one, is in FSS_TOKEN."""

    def __init__(self, url: str, *, timeout_s: float = 600) -> None:
        self.url = url.rstrip("/")
        token = os.environ.get("FSS_TOKEN", "")
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=httpx.Timeout(timeout_s, connect=5))

    def health(self) -> dict[str, Any]:
        """What is running. Raises `FssError` if nothing answers."""
        return self._ask("GET", "/v1/health")

    def add_support(self, supports: SupportSet) -> str:
        """Give the service a support set. Returns its id."""
        return str(self._ask("POST", "/v1/supports", support_request(supports))["support_id"])

    def segment(self, images: list[bytes], support_id: str, threshold: float,
                *, bulk: bool = False) -> list[Label | Failure]:
        """One result a photo, in order."""
        body = {"support_id": support_id, "threshold": threshold, "bulk": bulk,
                "images": [base64.b64encode(i).decode() for i in images]}
        return [_result(r) for r in self._ask("POST", "/v1/segment", body)["results"]]

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _ask(self, verb: str, path: str, body: Any = None) -> dict[str, Any]:
        answer = self._http.request(verb, path, json=body)
        if answer.is_success:
            found: dict[str, Any] = answer.json()
            return found
        raise ServiceError(_reason(answer), status=answer.status_code, where=self.url)


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"answers {answer.status_code}: {answer.text[:200]}"


def _result(row: dict[str, Any]) -> Label | Failure:
    if "error" in row:
        return Failure(reason=row["error"], stage=row.get("stage", "decode"))
    height, width = row["segmentation"]["size"]
    return Label(height=height, width=width, counts=row["segmentation"]["counts"],
                 bbox=tuple(row["bbox"]), area=row["area"], score=row["score"])


def result_json(result: Label | Failure) -> dict[str, Any]:
    """How a result is written in an answer of the service."""
    if isinstance(result, Failure):
        return {"error": result.reason, "stage": result.stage}
    rle = {"size": [result.height, result.width], "counts": result.counts}
    return {"segmentation": rle, "score": result.score, "bbox": list(result.bbox), "area": result.area}


def find_service(place: str) -> tuple[str, dict[str, Any]] | None:
    """The address in `place` (a workspace's serve.json) and its health, or None if nothing answers there."""
    folder, _, name = place.rpartition("/")
    store = Store(folder)
    if not store.exists(name):
        return None
    url = str(store.read_json(name)["url"])
    client = Client(url, timeout_s=5)
    try:
        return url, client.health()
    except (httpx.HTTPError, FssError, ValueError):
        return None
    finally:
        client.close()
