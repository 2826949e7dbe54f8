"""`fss submit`: run an `fss` command on a Ray cluster."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from fss_models.errors import FssError

if TYPE_CHECKING:
    from pipelines.submission.client import Submissions

AddressOption = Annotated[str, typer.Option("--address", "-a", help="Address of the Ray head's dashboard (default: "
                                            "RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265).")]
LOCAL_COMMANDS = ("submit", "jobs", "local", "plan")  # these run on the person's own machine only


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("submit", context_settings={"allow_interspersed_args": False},
                help="Run an fss command on a Ray cluster and follow its log. Put the options of `submit` before the "
                "command.")(submit)


def submit(command: Annotated[list[str], typer.Argument(metavar="CMD...",
                                                        help="Command without `fss`, such as: sweep run "
                                                        "--out s3://b/p")], address: AddressOption = "",
           name: Annotated[str, typer.Option("--id", help="Id of the submission (default: a new one). If it exists "
                                             "already with the same command, it is followed.")] = "",
           working_dir: Annotated[str, typer.Option("--working-dir", help="Folder to send, without data, results, "
                                                    "environments and .git; '': send none.")] = ".",
           exclude: Annotated[list[str] | None, typer.Option("--exclude", help="Name or path that is not sent. May be "
                                                             "repeated.")] = None,
           max_mb: Annotated[int, typer.Option("--max-mb", min=1, help="Maximum size of what is sent, in MB.")] = 50,
           env: Annotated[list[str] | None, typer.Option("--env",
                                                         help="NAME=VALUE: environment variable of the command; no "
                                                         "secrets. May be repeated.")] = None,
           runtime_env: Annotated[str, typer.Option("--runtime-env",
                                                    help="YAML file with Ray's runtime environment.")] = "",
           image: Annotated[str, typer.Option("--image", help="Container image for the command's processes.")] = "",
           cpus: Annotated[float, typer.Option("--cpus", min=0, help="CPUs reserved for the command itself.")] = 0.0,
           gpus: Annotated[float, typer.Option("--gpus", min=0,
                                               help="GPUs reserved for the command itself, which then runs "
                                               "on a GPU node.")] = 0.0,
           follow: Annotated[bool, typer.Option("--follow/--no-follow",
                                                help="Show the log until the command ends and exit "
                                                "with its status, or return once it is sent.")] = True,) -> None:
    """Submit a command, follow its log, and exit with its exit status."""
    from jobs.parse import check_output, parse_command
    from pipelines.submission.client import Submissions
    from pipelines.submission.request import SubmissionRequest, parse_variables, send

    parsed = parse_command(command)
    if parsed.path.split()[0] in LOCAL_COMMANDS:
        raise FssError(f"`fss {parsed.path}` runs on this machine only; it cannot be submitted to a cluster")
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
    """Show a submission's log until it ends; returns its exit status. Ctrl-C stops the output only and returns 130."""
    from pipelines.base.progress import say
    from pipelines.submission.follow import follow

    try:
        return follow(jobs, submission_id, _show)
    except KeyboardInterrupt:
        say(f"the command goes on running; see its log with: fss jobs logs {submission_id} --follow")
        return 130


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
