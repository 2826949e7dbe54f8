"""Starting and stopping Ray Serve, for a job's own deployment (without a port) and for the HTTP service."""

from __future__ import annotations

import logging
import os
import socket
from contextlib import suppress
from typing import Any

from fss_models.errors import FssError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def deploy(application: Any, *, name: str, http: tuple[str, int] | None = None) -> Any:
    """Run an application and return its handle. Without `http` (host, port) no port is opened.

    Raises `FssError` if the model does not start.
    """
    from ray import serve
    from ray.serve.schema import LoggingConfig

    logs = LoggingConfig(log_level="WARNING", enable_access_log=False)
    _hush()
    if http:
        serve.start(proxy_location="HeadOnly", logging_config=logs,
                    http_options={"host": http[0], "port": http[1], "request_timeout_s": 600})
    else:
        serve.start(proxy_location="Disabled", logging_config=logs)
    _hush()
    try:
        return serve.run(application, name=name, route_prefix="/" if http else None, logging_config=logs)
    except RuntimeError as error:
        raise FssError(f"the model does not start: {_last_line(error)}",
                       hint="set FSS_RAY_LOGS=1 to see its log") from error


def _last_line(error: Exception) -> str:
    """The innermost reason in Serve's report of a failed start."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "Error" in line or line.startswith("fss_models")]
    return (named or lines or [type(error).__name__])[-1]


def _hush() -> None:
    """Show only Serve's errors on the screen. Serve resets the level when it starts, so call this again after that."""
    logging.getLogger("ray.serve").setLevel(logging.ERROR)


def free_port(host: str, port: int) -> int:
    """`port`, or any free port for 0. Raises `FssError` if the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise FssError(f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}",
                           hint="choose another --port (0 takes any free one)") from error
        return int(probe.getsockname()[1])


def check_host(host: str, token: str) -> None:
    """Raises `FssError` if other machines could reach the service and there is no token."""
    if host not in LOOPBACK and not token:
        raise FssError(f"with --host {host} other machines reach the service, but there is no token",
                       hint="set FSS_TOKEN to a long secret, or serve on 127.0.0.1")


def shut_down(name: str) -> None:
    """Stop Serve on a private cluster; on the cluster of RAY_ADDRESS stop only the application `name`."""
    from ray import serve

    with suppress(Exception):
        if os.environ.get("RAY_ADDRESS"):
            serve.delete(name)
        else:
            serve.shutdown()  # type: ignore[no-untyped-call]
