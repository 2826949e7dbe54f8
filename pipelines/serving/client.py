"""A client of the HTTP service."""

from __future__ import annotations

import base64
import os
from typing import Any

import httpx

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.config.mask_request import MaskRequest
from pipelines.inference.masks import Instance, Label, Labels, PhotoFailure
from pipelines.inference.support_files import support_request
from pipelines.inference.supports import SupportSet


class ServiceError(FssError):
    """The service answered a request with an error; `status` is the HTTP status."""

    def __init__(self, what: str, *, status: int, where: str = "") -> None:
        super().__init__(what, where=where)
        self.status = status


def service_token() -> str:
    """The token of services, from FSS_TOKEN; "" if it is not set. Raises `FssError` for one that no header can hold."""
    token = os.environ.get("FSS_TOKEN", "").strip()
    if not (token.isascii() and token.isprintable()):
        raise FssError("FSS_TOKEN has other characters than letters, digits and signs of ASCII",
                       hint="choose another token")
    return token


class Client:
    """A client of the service at `url`. It sends the token in FSS_TOKEN, if that is set.

    Raises `FssError` for a URL or token that cannot be one.
    """

    def __init__(self, url: str, *, timeout_s: float = 600) -> None:
        self.url = url.rstrip("/")
        token = service_token()
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            self._http = httpx.Client(base_url=self.url, headers=headers, timeout=httpx.Timeout(timeout_s, connect=5))
        except httpx.InvalidURL as error:
            raise FssError(f"is not the address of a service: {error}", where=url,
                           hint="such as http://HOST:8000") from error

    def health(self) -> dict[str, Any]:
        """The answer of `/v1/health`. Raises `FssError` for another answer, `httpx.HTTPError` if nothing answers."""
        found = self._request("GET", "/v1/health")
        if not {"bundle_id", "method", "calibrator", "max_request_bytes"} <= found.keys():
            raise self._stranger()
        return found

    def add_support(self, supports: SupportSet) -> str:
        """Send a support set to the service. Returns its id."""
        return str(self._request("POST", "/v1/supports", support_request(supports))["support_id"])

    def segment(self, images: list[bytes], support_id: str, threshold: float,
                *, bulk: bool = False) -> list[Label | PhotoFailure]:
        """One result for each photo, in order. Pixels above the probability `threshold` belong to the object."""
        found = self.segment_classes(images, MaskRequest(support_ids=(support_id,), threshold=threshold), bulk=bulk)
        return [f if isinstance(f, PhotoFailure) else f[0] for f in found]

    def segment_classes(self, images: list[bytes], request: MaskRequest, *, bulk: bool = False,
                        bundle_id: str = "") -> list[Labels | PhotoFailure]:
        """For each photo the masks of all classes of `request`, in order.

        Raises `FssError` if the masks are not of the bundle `bundle_id`, where that is given.
        """
        body = {**request.body(), "bulk": bulk, "images": [base64.b64encode(i).decode() for i in images]}
        answer = self._request("POST", "/v1/segment", body)
        if bundle_id and (found := answer.get("bundle_id")) != bundle_id:
            raise FssError(f"the service has bundle {found} now, no longer {bundle_id}", where=self.url,
                           hint="start the service with that bundle, or start a new job with another --out")
        return [_results(r) for r in answer["results"]]

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _request(self, verb: str, path: str, body: Any = None) -> dict[str, Any]:
        answer = self._http.request(verb, path, json=body)
        if answer.is_success:
            return self._object(answer)
        raise ServiceError(_reason(answer), status=answer.status_code, where=self.url)

    def _object(self, answer: httpx.Response) -> dict[str, Any]:
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise self._stranger()
        return found

    def _stranger(self) -> FssError:
        return FssError("the server there is not `fss serve`", where=self.url, hint="check the address")


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return f"the service answers {answer.status_code}: {answer.text[:200]}"


def _results(row: dict[str, Any]) -> Labels | PhotoFailure:
    if "error" in row:
        return PhotoFailure(reason=row["error"], stage=row.get("stage", "decode"))
    return tuple(_label(one) for one in row.get("labels", [row]))


def _label(row: dict[str, Any]) -> Label:
    height, width = row["segmentation"]["size"]
    return Label(height=height, width=width, counts=row["segmentation"]["counts"],
                 bbox=tuple(row["bbox"]), area=row["area"], score=row["score"],
                 presence=row.get("presence"), quality=row.get("quality"), status=row.get("status", ""),
                 instances=_instances(row.get("instances")))


def _instances(rows: list[dict[str, Any]] | None) -> tuple[Instance, ...] | None:
    if rows is None:
        return None
    return tuple(Instance(counts=one["segmentation"]["counts"], bbox=tuple(one["bbox"]), area=one["area"],
                          score=one["score"]) for one in rows)


def results_json(result: Labels | PhotoFailure, *, many: bool) -> dict[str, Any]:
    """The JSON of a photo's result in an answer of the service; `many` if the request had `support_ids`."""
    if isinstance(result, PhotoFailure):
        return {"error": result.reason, "stage": result.stage}
    found = [_label_json(label) for label in result]
    return {"labels": found} if many else found[0]


def _label_json(label: Label) -> dict[str, Any]:
    rle = {"size": [label.height, label.width], "counts": label.counts}
    trust = {"presence": label.presence, "quality": label.quality, "status": label.status} if label.status else {}
    own = {} if label.instances is None else {"instances": [
        {"segmentation": {**rle, "counts": one.counts}, "score": one.score, "bbox": list(one.bbox), "area": one.area}
        for one in label.instances]}
    return {"segmentation": rle, "score": label.score, "bbox": list(label.bbox), "area": label.area, **trust, **own}


def find_service(place: str) -> tuple[str, dict[str, Any]] | None:
    """The URL that `place`, a workspace's serve.json, records, and its health; None if no service answers there."""
    file = Store(place)
    if not file.exists():
        return None
    url = str(file.read_json()["url"])
    client = Client(url, timeout_s=5)
    try:
        return url, client.health()
    except (httpx.HTTPError, FssError, ValueError):
        return None
    finally:
        client.close()


def reach_service(url: str) -> dict[str, Any]:
    """The health of the service at `url`. Raises `FssError` if none answers there."""
    client = Client(url, timeout_s=10)
    try:
        return client.health()
    except httpx.HTTPError as error:
        raise FssError(f"no service answers: {error}", where=url, hint="start one with `fss serve`") from error
    finally:
        client.close()
