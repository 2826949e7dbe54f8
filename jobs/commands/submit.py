"""`fss submit`: any `fss` command on a Ray cluster."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from fss_models.errors import FssError

if TYPE_CHECKING:
    from pipelines.submission.client import Submissions

AddressOption = Annotated[str, typer.Option("--address", "-a", help="The head's dashboard; default: "
                                            "RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265.")]
NOT_THERE = ("submit", "jobs", "local", "plan")  # commands for the person's own machine


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("submit", context_settings={"allow_interspersed_args": False},
                help="Run any fss command on a Ray cluster and follow it. Options go before the command.")(submit)


def submit(
    command: Annotated[list[str], typer.Argument(metavar="CMD...", help="Such as: sweep run --out s3://b/p")],
    address: AddressOption = "",
    name: Annotated[str, typer.Option("--id", help="The job's id; with the id of a job of the same command, that "
                                      "one is followed.")] = "",
    working_dir: Annotated[str, typer.Option("--working-dir", help="Folder that is sent, without data, results, "
                                             "environments and .git; '' for none.")] = ".",
    exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Names or paths not to send.")] = None,
    max_mb: Annotated[int, typer.Option("--max-mb", min=1, help="The most that may be sent.")] = 50,
    env: Annotated[list[str] | None, typer.Option("--env", help="NAME=VALUE for the job; no secrets.")] = None,
    runtime_env: Annotated[str, typer.Option("--runtime-env", help="YAML file: Ray's runtime environment.")] = "",
    image: Annotated[str, typer.Option("--image", help="Container image for the job's processes.")] = "",
    cpus: Annotated[float, typer.Option("--cpus", min=0, help="Reserved for the command itself.")] = 0.0,
    gpus: Annotated[float, typer.Option("--gpus", min=0, help="The same; it then runs on a GPU node.")] = 0.0,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Show the log, end as the job ends.")] = True,
) -> None:
    """Submit, follow, and exit with the command's own status."""
    from jobs.parse import check_output, parse_command
    from pipelines.submission.client import Submissions
    from pipelines.submission.request import SubmissionRequest, parse_variables, send

    parsed = parse_command(command)
    if parsed.path.split()[0] in NOT_THERE:
        raise FssError(f"`fss {parsed.path}` is for this machine, not for a job")
    check_output(parsed)
    request = SubmissionRequest(
        arguments=tuple(command), submission_id=name, working_dir=working_dir, exclude=tuple(exclude or ()),
        max_bytes=max_mb * 1_000_000, variables=parse_variables(env or ()), runtime_env=runtime_env, image=image,
        cpus=cpus, gpus=gpus)
    jobs = Submissions(address)
    sent = send(jobs, request)
    if not follow:
        print(sent)
        return
    raise typer.Exit(follow_job(jobs, sent))


def follow_job(jobs: Submissions, submission_id: str) -> int:
    """Show a job's log; Ctrl-C ends the showing, not the job."""
    from pipelines.base.progress import say
    from pipelines.submission.follow import follow

    try:
        return follow(jobs, submission_id, _show)
    except KeyboardInterrupt:
        say(f"the job goes on; see it with: fss jobs logs {submission_id} --follow")
        return 130


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
