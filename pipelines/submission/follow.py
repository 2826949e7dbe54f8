"""Following a job: its log as it is written, through lost connections, and its exit status."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from fss_models.errors import FssError
from pipelines.base.progress import say
from pipelines.submission.client import ENDED, Submissions, exit_code, status_of

QUIET_S = 120.0  # after so long without a line, ask whether the cluster is still there
PATIENCE_S = 120.0  # how long a cluster may be away
PAUSE_S = 2.0


def follow(jobs: Submissions, submission_id: str, write: Callable[[str], Any]) -> int:
    """Write the job's log from its beginning until it ends. Returns its exit status.

    A lost connection is taken up again where the log was. Raises `FssError` if the cluster stays away, or no longer
    knows the job.
    """
    shown = 0
    while status_of(details := _patient(jobs, submission_id)) not in ENDED:
        shown = asyncio.run(_tail(jobs, submission_id, write, shown))
    write(jobs.logs(submission_id)[shown:])  # what was written between the last line read and the end
    if status_of(details) == "FAILED" and details.driver_exit_code is None:
        say(f"the job did not run to its end: {_first_line(details.message)}")
    return exit_code(details)


async def _tail(jobs: Submissions, submission_id: str, write: Callable[[str], Any], shown: int) -> int:
    """Write what comes after the first `shown` characters; returns the new count when the connection ends."""
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


def _patient(jobs: Submissions, submission_id: str) -> Any:
    """The job's details, the cluster being away for at most `PATIENCE_S`."""
    deadline = time.monotonic() + PATIENCE_S
    told = False
    while True:
        try:
            jobs.check()
            return jobs.get(submission_id)
        except FssError as error:
            if "no job" in error.what or time.monotonic() > deadline:
                raise FssError(error.what, where=error.where,
                               mend=f"the job may go on: fss jobs logs {submission_id} --follow") from error
            if not told:
                say(f"{error.where}: {error.what}; trying again")
            told = True
            time.sleep(PAUSE_S)


def _first_line(text: str | None) -> str:
    return next((line for line in (text or "").splitlines() if line.strip()), "no reason given")
