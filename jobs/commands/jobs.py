"""`fss jobs`: the commands that were submitted to a Ray cluster."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import typer

from jobs.commands.submit import AddressOption, follow_job
from jobs.options import JsonOption
from pipelines.base.text_table import text_table

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="Id that `fss submit` and `fss jobs list` print.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(no_args_is_help=True, help="List, follow and stop the commands submitted to a Ray cluster.")
    group.command("list", help="List all submissions, the newest first.")(show_list)
    group.command("logs", help="Print the log of a submission.")(logs)
    group.command("stop", help="Stop a submission. Submit the same command again to continue it.")(stop)
    app.add_typer(group, name="jobs")


def show_list(address: AddressOption = "", as_json: JsonOption = False) -> None:
    """List all submissions, the newest first."""
    from pipelines.submission.client import Submissions

    rows = [_row(job) for job in Submissions(address).all()]
    if as_json:
        print(json.dumps(rows))
        return
    if not rows:
        print("nothing was submitted to this cluster")
        return
    codes = ["" if row["exit_code"] is None else f" ({row['exit_code']})" for row in rows]
    print(text_table([[row["id"], row["status"] + code, f"{row['seconds']:.0f} s", row["user"], row["command"]]
                      for row, code in zip(rows, codes, strict=True)], head=("id", "status", "time", "user", "command"),
                     left=(0, 1, 3, 4)))


def logs(submission_id: IdArgument, address: AddressOption = "",
         follow: Annotated[bool, typer.Option("--follow", "-f",
                                              help="Show the log until the command ends, then exit with "
                                              "its exit status.")] = False,) -> None:
    """Print what a submission has written so far, or follow it until it ends."""
    from pipelines.submission.client import Submissions

    jobs = Submissions(address)
    if follow:
        raise typer.Exit(follow_job(jobs, submission_id))
    print(jobs.logs(submission_id), end="")


def stop(submission_id: IdArgument, address: AddressOption = "") -> None:
    """Stop a submission and print its status."""
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
