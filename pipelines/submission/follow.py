"""Follows a job: shows its log as it is written, reconnects after a lost connection, and returns its exit status."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from fss_models.errors import FssError
from pipelines.base.progress import say
from pipelines.submission.client import ENDED, Submissions, exit_code, status_of

QUIET_S = 120.0  # seconds without a line after which the cluster is checked
PATIENCE_S = 120.0  # seconds that a cluster may not answer before an error is raised
PAUSE_S = 2.0  # seconds between two attempts


def follow(jobs: Submissions, submission_id: str, write: Callable[[str], Any]) -> int:
    """Pass the job's log to `write` from its beginning until the job ends. Returns the job's exit status.

    After a lost connection the log continues where it stopped. Raises `FssError` if the cluster does not answer for
    `PATIENCE_S` seconds, or no longer knows the job.
    """
    shown = 0
    while status_of(details := _wait_for_details(jobs, submission_id)) not in ENDED:
        shown = asyncio.run(_tail(jobs, submission_id, write, shown))
    write(jobs.logs(submission_id)[shown:])  # the text between the last line read and the end
    if status_of(details) == "FAILED" and details.driver_exit_code is None:
        say(f"job {submission_id} failed before its command ended: {_first_line(details.message)}")
    return exit_code(details)


async def _tail(jobs: Submissions, submission_id: str, write: Callable[[str], Any], shown: int) -> int:
    """Write the log after its first `shown` characters. Returns the new number of characters shown when the connection
    ends."""
    import aiohttp

    seen = 0
    lines = jobs.tail(submission_id)
    try:
        while True:
            text = await asyncio.wait_for(anext(lines), QUIET_S)
            new = text[max(0, shown - seen):]
            seen += len(text)
            if new:
                write(new)
                shown = seen
    except (StopAsyncIteration, TimeoutError):
        pass
    except (RuntimeError, OSError, aiohttp.ClientError):
        await asyncio.sleep(PAUSE_S)
    return shown


def _wait_for_details(jobs: Submissions, submission_id: str) -> Any:
    """The job's details. Tries again while the cluster does not answer, for at most `PATIENCE_S` seconds."""
    deadline = time.monotonic() + PATIENCE_S
    warned = False
    while True:
        try:
            jobs.check()
            return jobs.get(submission_id)
        except FssError as error:
            if "no job" in error.what or time.monotonic() > deadline:
                raise FssError(error.what, where=error.where,
                               hint="the job may still be running: see `fss jobs list`, or follow it again with "
                               f"`fss jobs logs {submission_id} --follow`") from error
            if not warned:
                say(f"{error.where}: {error.what}; trying again for {PATIENCE_S:.0f} s")
            warned = True
            time.sleep(PAUSE_S)


def _first_line(text: str | None) -> str:
    return next((line for line in (text or "").splitlines() if line.strip()), "no reason given")
