"""The machine-learning backend from end to end: check both servers, listen, and stop on a signal."""

from __future__ import annotations

import json
import socket
from contextlib import suppress
from dataclasses import dataclass

import uvicorn

from pipelines.base.progress import say
from pipelines.integrations.label_studio.api import LabelStudio
from pipelines.integrations.label_studio.app import make_app
from pipelines.integrations.label_studio.backend import Backend, BridgeOptions
from pipelines.serving.client import Client, reach_service, service_token
from pipelines.serving.server import check_host, free_port


@dataclass(frozen=True, kw_only=True)
class BackendRequest:
    """The options of `fss integrations label-studio`: the addresses of both servers and where to listen."""

    service: str
    studio: str
    host: str
    port: int
    options: BridgeOptions


def serve_backend(request: BackendRequest, *, as_json: bool = False) -> None:
    """Serve until SIGINT or SIGTERM. Raises `FssError` if a server does not answer or refuses its token."""
    token = service_token()
    check_host(request.host, token)
    health = reach_service(request.service)
    studio = LabelStudio(request.studio)
    studio.check_token()
    port = free_port(request.host, request.port)
    listening = socket.create_server((request.host, port), family=socket.AF_INET6 if ":" in request.host else
                                     socket.AF_INET)  # from now on clients can connect
    backend = Backend(studio, Client(request.service), request.options)
    config = uvicorn.Config(make_app(backend, token), log_level="warning", access_log=False)
    shown = f"[{request.host}]" if ":" in request.host else request.host
    url = f"http://{shown}:{port}"
    if as_json:
        print(json.dumps({"url": url, "bundle_id": health["bundle_id"]}), flush=True)
    say(f"Label Studio's backend for {health['method']}/{health['preset']} (bundle {health['bundle_id']}) at {url}; "
        "Ctrl-C stops it")
    try:
        with suppress(KeyboardInterrupt):  # uvicorn raises the signal that ended it once more
            uvicorn.Server(config).run(sockets=[listening])
    finally:
        backend.close()
