"""A submission: a command line for a Ray cluster, with its runtime environment and its working directory."""

from __future__ import annotations

import getpass
import shlex
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fss_models.errors import FssError
from pipelines.base.progress import say
from pipelines.submission.client import Submissions, status_of
from pipelines.submission.package import hiding, pack
from pipelines.submission.secrets import refuse_secrets

# -P: a folder in which the command runs is not searched for code. Ray puts the folder that is sent on the path itself.
RUN = ("python", "-P", "-m", "jobs.cli")


@dataclass(frozen=True, kw_only=True)
class SubmissionRequest:
    """An `fss` command for a cluster."""

    arguments: tuple[str, ...]  # the arguments of `fss`
    submission_id: str = ""  # "" draws an id
    working_dir: str = "."  # the folder that is sent; "" sends no files
    exclude: tuple[str, ...] = ()
    max_bytes: int = 50_000_000
    variables: Mapping[str, str] = field(default_factory=dict)
    runtime_env: str = ""  # a YAML file with Ray's runtime environment
    image: str = ""  # a container image for the job's processes
    cpus: float = 0.0  # CPUs reserved for the command itself
    gpus: float = 0.0  # GPUs reserved for the command itself

    @property
    def entrypoint(self) -> str:
        """The shell command that the cluster runs."""
        return shlex.join([*RUN, *self.arguments])


def send(jobs: Submissions, request: SubmissionRequest) -> str:
    """Submit the command and return its id, which is printed before anything is sent.

    If there is already a job of the same id and command that is running or has succeeded, nothing is sent, so that a
    client can follow it again after a lost connection. A job that failed or was stopped is sent again.
    Raises `FssError` for secrets, for files that are too large, and for an id that belongs to another command.
    """
    environment = _environment(request)
    refuse_secrets(request.arguments, environment.get("env_vars", {}))
    name = request.submission_id or f"fss-{'-'.join(request.arguments[:1])}-{uuid.uuid4().hex[:8]}"
    if known := jobs.find(name) if request.submission_id else None:
        if known.entrypoint != request.entrypoint:
            raise FssError(f"job {name!r} runs another command: {known.entrypoint}", where=jobs.address,
                           hint="choose another --id")
        if status_of(known) not in ("FAILED", "STOPPED"):
            say(f"job {name} was submitted before, with the same command: not sent again")
            return name
        say(f"job {name} had {status_of(known).lower()}: sending it again")
        jobs.delete(name)
    say(f"job {name} at {jobs.address}: fss {shlex.join(request.arguments)}")
    with tempfile.TemporaryDirectory(prefix="fss-submit-") as folder:
        if request.working_dir:
            environment["working_dir"] = _pack(request, Path(folder))
        metadata = {"fss.user": _user(), "fss.command": shlex.join(request.arguments)}
        jobs.submit(request.entrypoint, submission_id=name, runtime_env=environment, metadata=metadata,
                    cpus=request.cpus, gpus=request.gpus)
    return name


def _pack(request: SubmissionRequest, folder: Path) -> str:
    if ours := hiding(request.working_dir):
        say(f"not sent, because they would hide fss's own packages of these names: {', '.join(ours)}")
    package = pack(request.working_dir, folder / "work.zip", exclude=[*request.exclude, *(f"/{name}" for name in ours)],
                   max_bytes=request.max_bytes)
    left_out = f", without {', '.join(package.left_out)}" if package.left_out else ""
    say(f"sending {package.files} files, {package.bytes / 1e6:.1f} MB, from {request.working_dir}{left_out}")
    return str(package.path)


def _environment(request: SubmissionRequest) -> dict[str, Any]:
    """The runtime environment without its working directory. Raises `FssError` for settings that would be ignored."""
    environment = _read(request.runtime_env) if request.runtime_env else {}
    if "working_dir" in environment:
        raise FssError("working_dir would be ignored", where=request.runtime_env, hint="give --working-dir")
    if request.image:
        environment = {**environment, "image_uri": request.image}
    variables = {**environment.pop("env_vars", {}), **request.variables}
    return {**environment, **({"env_vars": variables} if variables else {})}


def _read(path: str) -> dict[str, Any]:
    try:
        found = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise FssError(f"cannot be read: {error.strerror}", where=path) from error
    except yaml.YAMLError as error:
        raise FssError(f"is not valid YAML: {error}", where=path) from error
    if not isinstance(found, dict) or not isinstance(found.get("env_vars", {}), dict):
        raise FssError("a runtime environment must be a mapping, and so must its env_vars", where=path)
    return found


def parse_variables(items: Sequence[str]) -> dict[str, str]:
    """`NAME=VALUE` items as a mapping. Raises `FssError` for an item without a name or without `=`."""
    found = {}
    for item in items:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise FssError(f"--env {item!r} is not of the form NAME=VALUE", hint="write --env NAME=VALUE")
        found[name] = value
    return found


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"
