"""The Jobs API of a Ray cluster; errors that a user can correct are one clear line.

The token is sent in the header of the requests and nowhere else. It is read from where Ray reads it: RAY_AUTH_TOKEN,
the file that RAY_AUTH_TOKEN_PATH names, `~/.ray/auth_token`.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from fss_models.errors import FssError
from pipelines.base.cluster import PRIVATE_TOKEN

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
TIMEOUT_S = 10.0
STOPPED = 130  # exit status of a job that was stopped: that of a command stopped by Ctrl-C
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_ADDRESS = "RAY_API_SERVER_ADDRESS"


def resolve_address(address: str = "") -> str:
    """The URL of the cluster's dashboard.

    It is the first one that is set: `address`, RAY_API_SERVER_ADDRESS, RAY_ADDRESS if that is a URL, else the dashboard
    of this machine. Raises `FssError` if it is not an http(s) URL, or contains a password.
    """
    from_ray = os.environ.get("RAY_ADDRESS", "")
    address = address or os.environ.get(_ADDRESS) or (from_ray if "://" in from_ray else "") or DEFAULT_ADDRESS
    if "://" not in address:
        address = f"http://{address}"
    try:
        url = httpx.URL(address)
    except httpx.InvalidURL as error:
        raise _bad_address(address) from error
    if url.scheme not in ("http", "https") or not url.host:
        raise _bad_address(address)
    if url.userinfo:
        raise FssError("the address of the dashboard contains a password", hint="put the token in RAY_AUTH_TOKEN")
    return address.rstrip("/")


def _bad_address(address: str) -> FssError:
    return FssError("is not the address of a Ray dashboard", where=address, hint="such as http://HEAD:8265")


def read_token() -> str:
    """The user's token, "" if there is none. Raises `FssError` for a token file that cannot be read."""
    token = os.environ.get("RAY_AUTH_TOKEN", "")
    if token and not token.startswith(PRIVATE_TOKEN):
        return token
    named = os.environ.get("RAY_AUTH_TOKEN_PATH", "")
    path = Path(named).expanduser() if named else Path.home() / ".ray" / "auth_token"
    if not named and not path.is_file():
        return ""
    try:
        return path.read_text().strip()
    except OSError as error:
        raise FssError(f"cannot read the token: {error.strerror}", where=str(path),
                       hint="set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH") from error


class Submissions:
    """The submissions of one cluster, which Ray calls jobs.

    The constructor checks the address and the token. Raises `FssError` as `check` does.
    """

    def __init__(self, address: str = "") -> None:
        self.address = resolve_address(address)
        token = read_token()
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.check()
        self._client = self._connect()

    def check(self) -> None:
        """Read the cluster's Ray version. Raises `FssError` if no cluster answers or if it refuses the token."""
        try:
            answer = httpx.get(f"{self.address}/api/version", headers=self.headers, timeout=TIMEOUT_S)
        except httpx.HTTPError as error:
            reason = str(error) or type(error).__name__
            raise FssError(f"cannot be reached: {reason}", where=self.address,
                           hint="--address is the head's dashboard, such as http://HEAD:8265") from error
        if answer.status_code in (401, 403):
            problem = "refuses the token" if self.headers else "requires a token"
            raise FssError(f"the cluster {problem}", where=self.address,
                           hint="set RAY_AUTH_TOKEN to the cluster's token, or RAY_AUTH_TOKEN_PATH to its file")
        try:
            answer.raise_for_status()
            self.version = str(answer.json()["ray_version"])
        except (httpx.HTTPStatusError, ValueError, KeyError, TypeError) as error:
            raise FssError(f"no Ray dashboard answers at this address (HTTP {answer.status_code})", where=self.address,
                           hint="--address is the head's dashboard, such as http://HEAD:8265") from error

    def _connect(self) -> Any:
        from ray.job_submission import JobSubmissionClient

        for name in ("dashboard_sdk", "job.sdk"):  # their lines about uploads repeat ours
            logging.getLogger(f"ray.dashboard.modules.{name}").setLevel(logging.WARNING)
        with _pin_address(self.address), self._one_line_errors():
            return JobSubmissionClient(self.address, headers=dict(self.headers))

    def submit(self, entrypoint: str, *, submission_id: str, runtime_env: Mapping[str, Any],
               metadata: Mapping[str, str], cpus: float = 0.0, gpus: float = 0.0) -> None:
        """Submit a command as a Ray job. Raises `FssError` if the cluster refuses it."""
        with self._one_line_errors():
            self._client.submit_job(
                entrypoint=entrypoint, submission_id=submission_id, runtime_env=dict(runtime_env),
                metadata=dict(metadata), entrypoint_num_cpus=cpus or None, entrypoint_num_gpus=gpus or None)

    def find(self, submission_id: str) -> Any | None:
        """The details of a job (`ray.job_submission.JobDetails`); None if there is no such job."""
        with self._one_line_errors():
            try:
                return self._client.get_job_info(submission_id)
            except RuntimeError as error:
                if "status code 404" in str(error):
                    return None
                raise

    def get(self, submission_id: str) -> Any:
        """The details of a job (`ray.job_submission.JobDetails`). Raises `FssError` if there is no such job."""
        found = self.find(submission_id)
        if found is None:
            raise FssError(f"there is no job {submission_id!r}", where=self.address, hint="see `fss jobs list`")
        return found

    def delete(self, submission_id: str) -> None:
        """Delete the record of a job that has ended, so that its id can be used again."""
        with self._one_line_errors():
            self._client.delete_job(submission_id)

    def all(self) -> list[Any]:
        """The details of all jobs that were submitted through the Jobs API, the newest first."""
        with self._one_line_errors():
            found = [j for j in self._client.list_jobs() if j.submission_id]
        return sorted(found, key=lambda j: j.start_time or 0, reverse=True)

    def logs(self, submission_id: str) -> str:
        """The text that a job has written so far."""
        self.get(submission_id)
        with self._one_line_errors():
            return str(self._client.get_job_logs(submission_id))

    def tail(self, submission_id: str) -> Any:
        """An asynchronous iterator over a job's log, from its beginning to its end."""
        return self._client.tail_job_logs(submission_id)

    def stop(self, submission_id: str, *, wait_s: float = 60.0) -> str:
        """Stop a job and wait until it has ended, for at most `wait_s` seconds. Returns its last status."""
        status = status_of(self.get(submission_id))
        if status in ENDED:
            return status
        with self._one_line_errors():
            self._client.stop_job(submission_id)
        deadline = time.monotonic() + wait_s
        while (status := status_of(self.get(submission_id))) not in ENDED and time.monotonic() < deadline:
            time.sleep(0.5)
        return status

    @contextmanager
    def _one_line_errors(self) -> Iterator[None]:
        """Turn an error of Ray's client into an `FssError` of one line."""
        import requests

        try:
            yield
        except (requests.RequestException, ConnectionError) as error:
            raise FssError("the cluster no longer answers", where=self.address) from error
        except (RuntimeError, ValueError) as error:
            raise FssError(_reason(error), where=self.address) from error


def exit_code(details: Any) -> int:
    """The exit status of a job: that of its command; 130 if the job was stopped, 1 if it failed without running it."""
    if details.driver_exit_code is not None:
        code = int(details.driver_exit_code)
        return code if code >= 0 else 128 - code
    return {"SUCCEEDED": 0, "STOPPED": STOPPED}.get(status_of(details), 1)


def status_of(details: Any) -> str:
    """The status of a job: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    return str(getattr(details.status, "value", details.status))


def _reason(error: Exception) -> str:
    """The line of an error's text that gives the reason, without the server's traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    candidates = [line for line in lines if "Error" in line] or lines or [type(error).__name__]
    return candidates[-1][:300]


@contextmanager
def _pin_address(address: str) -> Iterator[None]:
    """Set Ray's environment variable to `address` for the block: Ray's client prefers it to the address it is given."""
    before = os.environ.get(_ADDRESS)
    os.environ[_ADDRESS] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[_ADDRESS]
        else:
            os.environ[_ADDRESS] = before
