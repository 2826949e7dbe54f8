"""`fss serve` from end to end: check the settings, start, print the address, wait for a signal, clean up."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import suppress
from typing import Any

import httpx

from fss_models.errors import FssError
from fss_models.shipped.files import bundle_url
from pipelines.base.cluster import cluster
from pipelines.base.progress import say
from pipelines.base.storage import Store
from pipelines.base.webhook import read_secret
from pipelines.base.workspace import Workspace
from pipelines.bundles.bundle import full_url, read_bundle_info
from pipelines.bundles.shipped import champion_url, say_if_shipped
from pipelines.config.recipe import Recipe
from pipelines.serving.client import Client, service_token
from pipelines.serving.server import LOOPBACK, check_host, deploy, free_port, shut_down
from pipelines.serving.spec import ServiceSpec, best_device, model_spec, settle_spec


def serve_until_stopped(recipe: Recipe, *, bundle: str = "", as_json: bool = False) -> None:
    """Serve until SIGINT or SIGTERM. Raises `FssError` for a missing bundle, a taken port or a missing token."""
    workspace, config = Workspace(recipe.out), recipe.serve
    token = service_token()
    check_host(config.host, token)
    if recipe.label.notify:
        read_secret()
    url = bundle_url(bundle) if bundle else champion_url(workspace)
    info = read_bundle_info(url)
    port = free_port(config.host, config.port)
    stop = _stop_on_signals()
    with cluster() as ray:
        from pipelines.console.service import application
        from pipelines.serving.requests import token_hash

        spec = model_spec(recipe, bundle_url=full_url(url), bundle_id=info.bundle_id,
                          supports_url=workspace.supports, device=best_device(ray), batch=config.max_batch,
                          follow="" if bundle else Store(workspace.champion).url)
        spec = settle_spec(ray, spec)
        if not bundle:
            say_if_shipped(url, workspace)
        anywhere = config.host in LOOPBACK and not config.roots
        service = ServiceSpec(model=spec, bundle=info, max_request_bytes=config.max_request_bytes,
                              token=token_hash(token), workspace=workspace.store.url, recipe=recipe,
                              roots=None if anywhere else tuple(config.roots))
        say(f"starting {info.method}/{info.preset} on {spec.device} ...")
        began, name = time.monotonic(), f"fss-{port}"
        try:
            deploy(application(service), name=name, http=(config.host, port))
            _check_answer(_url(config.host, port), info.bundle_id)
            record = {"url": _url(config.host, port), "pid": os.getpid(), "bundle_id": info.bundle_id}
            Store(workspace.url).write_json("serve.json", record)
            _announce(record, time.monotonic() - began, as_json)
            stop.wait()
        finally:
            _remove_record(workspace)
            shut_down(name)


def _url(host: str, port: int) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(host, host)
    return f"http://{shown}:{port}"


def _check_answer(url: str, bundle_id: str) -> None:
    """Raises `FssError` if `url` does not serve our bundle: on a shared cluster Serve may use another port."""
    client = Client(url, timeout_s=30)
    try:
        found = client.health()["bundle_id"]
    except httpx.HTTPError as error:
        raise FssError(f"the service does not answer: {error}", where=url,
                       hint="if Serve already runs on this cluster with another --port, use that port") from error
    finally:
        client.close()
    if found != bundle_id:
        raise FssError(f"another service answers here, with bundle {found}", where=url, hint="choose another --port")


def _announce(record: dict[str, Any], seconds: float, as_json: bool) -> None:
    if as_json:
        print(json.dumps(record), flush=True)
    say(f"serving bundle {record['bundle_id']} at {record['url']} after {seconds:.1f} s; Ctrl-C stops it")


def _stop_on_signals() -> threading.Event:
    """An event that SIGINT and SIGTERM set. An exception instead could interrupt a write."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def _remove_record(workspace: Workspace) -> None:
    """Remove serve.json if this process wrote it."""
    store = Store(workspace.url)
    with suppress(FssError, KeyError, TypeError):
        if store.exists("serve.json") and store.read_json("serve.json")["pid"] == os.getpid():
            store.delete("serve.json")
