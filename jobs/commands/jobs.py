"""`fss jobs`: what runs on a Ray cluster."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

from jobs.commands.submit import AddressOption, follow_job
from jobs.options import JsonOption

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="As `fss submit` said it and `fss jobs list` shows it.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="Jobs of a Ray cluster.")
    group.command("list", help="All jobs, the newest first.")(show_list)
    group.command("logs", help="What a job has written; with --follow until it ends, then with its status.")(logs)
    group.command("stop", help="End a job; its command can be submitted again and goes on.")(stop)
    app.add_typer(group, name="jobs")


def show_list(address: AddressOption = "", as_json: JsonOption = False) -> None:
    """All jobs, the newest first."""
    from pipelines.submission.client import Submissions

    rows = [_row(job) for job in Submissions(address).all()]
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        code = "" if row["exit_code"] is None else f" ({row['exit_code']})"
        ended = f"{row['id']:<28} {row['status'] + code:<15}"
        print(f"{ended} {row['seconds']:>7.0f} s  {row['user']:<12} {row['command']}")
    if not rows:
        print("no jobs")


def logs(
    submission_id: IdArgument,
    address: AddressOption = "",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends; exit with its status.")] = False,
) -> None:
    """What a job has written."""
    from pipelines.submission.client import Submissions

    jobs = Submissions(address)
    if follow:
        raise typer.Exit(follow_job(jobs, submission_id))
    print(jobs.logs(submission_id), end="")


def stop(submission_id: IdArgument, address: AddressOption = "") -> None:
    """End a job."""
    from pipelines.submission.client import Submissions

    print(Submissions(address).stop(submission_id))


def _row(job: Any) -> dict[str, Any]:
    from pipelines.submission.client import status_of

    about = job.metadata or {}
    began = (job.start_time or 0) / 1000
    ended = job.end_time / 1000 if job.end_time else time.time()
    return {"id": job.submission_id, "status": status_of(job), "exit_code": job.driver_exit_code,
            "seconds": round(max(0.0, ended - began), 1) if began else 0.0, "user": about.get("fss.user", ""),
            "command": about.get("fss.command", job.entrypoint)}
