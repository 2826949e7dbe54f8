"""The service for Ray Serve's config files, which name it `import_path: pipelines.console.deployed:champion`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, ValidationError
from ray.serve import Application

from fss_models.errors import FssError
from fss_models.shipped.files import bundle_url
from pipelines.base.storage import Store
from pipelines.base.workspace import Workspace
from pipelines.bundles.bundle import full_url, read_bundle_info
from pipelines.bundles.shipped import champion_url
from pipelines.config.label import ServeConfig, ServiceSettings
from pipelines.config.recipe import Recipe
from pipelines.console.service import application
from pipelines.serving.client import service_token
from pipelines.serving.requests import token_hash
from pipelines.serving.spec import FOLLOW_S, ServiceSpec, best_device, model_spec, settle_spec


class ChampionArgs(ServiceSettings):
    """The `args` of the application in a Serve config file. Host and port are in the file's `http_options`.

    `device` auto takes a GPU if the cluster has one now; write cuda if GPU nodes start on demand. `open` serves
    without a token, for a cluster that nobody else can reach. Without `bundle` the service looks every `follow_s`
    seconds whether the workspace has a new champion, and takes it without a pause (0: never).
    """

    workspace: str
    bundle: str = ""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    follow_s: float = Field(FOLLOW_S, ge=0)
    open: bool = False


def champion(args: dict[str, Any]) -> Application:
    """The application that serves `bundle`, or the workspace's champion, or the shipped bundle.

    `args` are the fields of `ChampionArgs`. FSS_TOKEN is read on the cluster, where the application is built. Raises
    `FssError` for wrong fields, if FSS_TOKEN is not set and `open` is false, and if there is no bundle.
    """
    import ray

    chosen = _checked(args)
    token = service_token()
    if not token and not chosen.open:
        raise FssError("the service has no token", hint="set FSS_TOKEN on the nodes, or write open: true")
    workspace = Workspace(chosen.workspace)
    url = bundle_url(chosen.bundle) if chosen.bundle else champion_url(workspace)
    settings = chosen.model_dump(include=set(ServiceSettings.model_fields))
    recipe = Recipe(out=chosen.workspace, serve=ServeConfig(host="0.0.0.0", **settings))  # reached by any host name
    device = best_device(ray) if chosen.device == "auto" else chosen.device
    follow = "" if chosen.bundle or not chosen.follow_s else Store(workspace.champion).url
    info = read_bundle_info(url)
    model = model_spec(recipe, bundle_url=full_url(url), bundle_id=info.bundle_id, supports_url=workspace.supports,
                       device=device, batch=chosen.max_batch, follow=follow, follow_s=chosen.follow_s)
    model = settle_spec(ray, model)
    return application(ServiceSpec(model=model, bundle=info, max_request_bytes=chosen.max_request_bytes,
                                   token=token_hash(token), workspace=workspace.store.url, recipe=recipe,
                                   roots=tuple(chosen.roots)))


def _checked(args: dict[str, Any]) -> ChampionArgs:
    """Ray converts arguments only for a builder whose annotation is a class; here annotations are strings."""
    try:
        return ChampionArgs.model_validate(args)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in ("args", *first["loc"]))
        raise FssError(f"{place}: {first['msg'].removeprefix('Value error, ')}", where="Serve config file") from error
