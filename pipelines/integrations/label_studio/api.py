"""A client of Label Studio's HTTP API: projects, tasks, photos and predictions."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Iterator, Sequence
from typing import Any
from urllib.parse import urljoin

import httpx

from fss_models.errors import FssError
from fss_models.limits import LIMITS
from pipelines.base.filesystems import scheme_of
from pipelines.base.storage import Store
from pipelines.inference.masks import PhotoFailure
from pipelines.labelling.photo_reader import WEB, WebPhotos

TOKEN = "LABEL_STUDIO_API_KEY"
PAGE = 50  # tasks in one answer
Task = dict[str, Any]


class StudioToken(httpx.Auth):
    """Signs requests with a token of Label Studio, a personal access token or a legacy one, and no other server's.

    A personal access token is exchanged for access tokens, which last for minutes.
    """

    def __init__(self, token: str, url: str) -> None:
        self._token, self._url = token, httpx.URL(url)
        self._personal, self._access = token.count(".") == 2, ""

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """The request with its header; again with a new access token where the last one is refused."""
        if (request.url.scheme, request.url.host, request.url.port) != (
                self._url.scheme, self._url.host, self._url.port):
            yield request
            return
        if not self._personal:
            request.headers["Authorization"] = f"Token {self._token}"
            yield request
            return
        if self._access:
            request.headers["Authorization"] = f"Bearer {self._access}"
            answer = yield request
            if answer.status_code != 401:
                return
        answer = yield httpx.Request("POST", self._url.join("api/token/refresh/"), json={"refresh": self._token})
        answer.read()
        if not answer.is_success:
            return
        self._access = str(answer.json()["access"])
        request.headers["Authorization"] = f"Bearer {self._access}"
        yield request


class NoAnswerError(FssError):
    """A request was sent, and no answer came: it may have been carried out."""

    def __init__(self, reason: str, url: str) -> None:
        super().__init__(f"Label Studio does not answer: {reason}", where=url,
                         hint="run the same command again to continue")


class LabelStudio:
    """A Label Studio server at `url`. The token is that in LABEL_STUDIO_API_KEY.

    Methods raise `FssError` with one line for a server that does not answer, a token that is refused, and a project
    that does not exist.
    """

    def __init__(self, url: str, *, timeout_s: float = 120) -> None:
        self.url = url.rstrip("/") + "/"
        if not self.url.startswith(WEB):
            raise FssError("is no http:// or https:// address", where=url, hint="give the address of Label Studio")
        token = os.environ.get(TOKEN, "").strip()
        if not token:
            raise FssError(f"{TOKEN} is not set", hint="copy an access token from Account & Settings in Label Studio")
        self._http = httpx.Client(base_url=self.url, auth=StudioToken(token, self.url), follow_redirects=True,
                                  timeout=httpx.Timeout(timeout_s, connect=5))
        self._web = WebPhotos(LIMITS.max_bytes)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
        self._web.close()

    def check_token(self) -> None:
        """Raises `FssError` if the server does not answer or refuses the token."""
        self._get("api/projects", "projects", page_size=1)

    def project(self, project_id: int) -> dict[str, Any]:
        """The project, with its labelling interface in `parsed_label_config`."""
        found: dict[str, Any] = self._get(f"api/projects/{project_id}", f"project {project_id}")
        return found

    def annotated_tasks(self, project_id: int) -> Iterator[Task]:
        """The tasks with annotations, and these, the tasks that changed last first."""
        page = 1
        while True:
            found, total = self._tasks(project_id, [_filter("total_annotations", "greater", "Number", 0)],
                                       ["-tasks:updated_at"], page, fields="all")
            yield from found
            if page * PAGE >= total:
                return
            page += 1

    def tasks_without(self, project_id: int, version: str, *, after: int = 0, until: int = 0,
                      count: int = PAGE) -> tuple[list[Task], int]:
        """The first `count` tasks, by id, that have no prediction of the model `version`, and how many there are.

        Only tasks whose id is above `after` and, if that is given, not above `until`.
        """
        filters = [_filter("predictions_model_versions", "not_contains", "List", [version]),
                   _filter("id", "greater", "Number", after)]
        if until:
            filters.append(_filter("id", "less_or_equal", "Number", until))
        return self._tasks(project_id, filters, ["tasks:id"], 1, count, include="id,data")

    def import_predictions(self, project_id: int, predictions: Sequence[dict[str, Any]]) -> None:
        """Store predictions. Raises `FssError` if the server leaves any of them out.

        Raises `NoAnswerError` where it cannot be told whether they are stored.
        """
        try:
            answer = self._http.post(f"api/projects/{project_id}/import/predictions", json=list(predictions))
        except httpx.TransportError as error:
            raise NoAnswerError(str(error) or type(error).__name__, self.url) from error
        if answer.status_code >= 500:
            raise NoAnswerError(f"HTTP {answer.status_code}", self.url)
        found = self._checked(answer, f"project {project_id}")
        if found.get("created") != len(predictions):
            raise FssError(f"Label Studio stored {found.get('created')} of {len(predictions)} predictions",
                           where=self.url, hint="do the labels still fit the project's labelling interface?")

    def photo(self, reference: str) -> bytes | PhotoFailure:
        """The bytes of the photo that a task's data names, or why it cannot be read.

        A path is one of this server and needs the token; other URLs are read without it. Local files are not read.
        """
        if reference.startswith(WEB) and not reference.startswith(self.url):
            return self._web.read(reference)
        if "://" in reference and not reference.startswith(WEB):
            return _stored_photo(reference)
        url = urljoin(self.url, reference)
        return self._own_photo(url) if url.startswith(self.url) else _unread("is no address of a photo")

    def _own_photo(self, url: str) -> bytes | PhotoFailure:
        data = bytearray()
        try:
            with self._http.stream("GET", url) as answer:
                if answer.status_code != 200:
                    return _unread(f"Label Studio answers {answer.status_code}")
                for piece in answer.iter_bytes():
                    data += piece
                    if len(data) > LIMITS.max_bytes:
                        return _unread(f"more than {LIMITS.max_bytes} bytes")
        except httpx.TransportError as error:
            raise self._away(error) from error
        return bytes(data)

    def _tasks(self, project_id: int, filters: list[dict[str, Any]], ordering: list[str], page: int,
               size: int = PAGE, **which: str) -> tuple[list[Task], int]:
        query = {"filters": {"conjunction": "and", "items": filters}, "ordering": ordering}
        found = self._get("api/tasks", f"project {project_id}", project=project_id, page=page, page_size=size,
                          query=json.dumps(query), **which)
        return found["tasks"], int(found["total"])

    def _get(self, path: str, what: str, **parameters: Any) -> Any:
        try:
            answer = self._http.get(path, params=parameters)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise self._away(error) from error
        return self._checked(answer, what)

    def _checked(self, answer: httpx.Response, what: str) -> Any:
        if answer.status_code in (401, 403):
            raise FssError("Label Studio refuses the token", where=self.url,
                           hint=f"set {TOKEN} to an access token of a user who may change the {what}")
        if answer.status_code == 404:
            raise FssError(f"there is no {what}", where=self.url, hint="the number is in the address of its page")
        try:
            found = answer.json()
        except ValueError:
            found = None
        if not answer.is_success or not isinstance(found, dict):
            said = found.get("detail", "") if isinstance(found, dict) else "no JSON"
            raise FssError(f"Label Studio answers {answer.status_code} about {what}: {str(said)[:200]}", where=self.url)
        return found

    def _away(self, error: Exception) -> FssError:
        return FssError(f"Label Studio does not answer: {error}", where=self.url,
                        hint="start it, and check the address")


def _filter(column: str, operator: str, kind: str, value: Any) -> dict[str, Any]:
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


def _stored_photo(url: str) -> bytes | PhotoFailure:
    """A photo in a bucket, which is read with this machine's credentials."""
    try:
        if not scheme_of(url):
            return _unread("files of this machine are not read")
        store = Store(url)
        large = store.size("") > LIMITS.max_bytes
        return _unread(f"more than {LIMITS.max_bytes} bytes") if large else store.read_bytes()
    except FssError as error:
        return _unread(error.what)


def _unread(reason: str) -> PhotoFailure:
    return PhotoFailure(reason=reason, stage="read")
