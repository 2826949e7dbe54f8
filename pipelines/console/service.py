"""The service of `fss serve`: the HTTP service with the console's web page and its part of the API."""

from __future__ import annotations

import asyncio
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig
from starlette.responses import Response

from fss_models.bundle import BundleInfo
from pipelines.bundles.bundle import about_bundle
from pipelines.console.api import ConsoleApi
from pipelines.console.jobs import Jobs
from pipelines.console.page import page_html
from pipelines.serving.app import Service
from pipelines.serving.guards import MAX_WAITING, html_answer
from pipelines.serving.model import ROUTER_RETRY, bulk, interactive
from pipelines.serving.routes import OPEN, Route, build_api
from pipelines.serving.spec import ServiceSpec


class ConsoleService(Service):
    """The service with the console: a web page at `/`, and labelling jobs below `/v1/jobs`."""

    def __init__(self, spec: ServiceSpec, people: Any, jobs: Any) -> None:
        super().__init__(spec, people, jobs)
        self.console = ConsoleApi(Jobs(spec, about_bundle(spec.bundle), jobs))

    def take(self, info: BundleInfo) -> None:
        """A new champion has been promoted: new jobs begin with it."""
        super().take(info)
        self.console.jobs.take(self.spec, about_bundle(info))

    def routes(self) -> list[Route]:
        """The requests that the service answers, the console's included."""
        return [Route("GET", "/", self._page, OPEN), *super().routes(), *self.console.routes()]

    async def _page(self) -> Response:
        return html_answer(await asyncio.to_thread(page_html), scripts=True)


def api_document() -> dict[str, Any]:
    """The OpenAPI document of the service, without a cluster."""
    bare = ConsoleService.__new__(ConsoleService)
    bare.console = ConsoleApi(Jobs.__new__(Jobs))
    return build_api(bare, bare.routes()).openapi()


def application(spec: ServiceSpec) -> Application:
    """The application of the whole service, for Ray Serve."""
    ingress = serve.deployment(
        name="service", ray_actor_options={"num_cpus": 0.1}, max_ongoing_requests=4 * MAX_WAITING,
        # Serve's proxy refuses the requests that are too many even for the ingress to refuse.
        max_queued_requests=2 * MAX_WAITING, backpressure_config=BackpressureConfig(retry_after_s=1),
        request_router_config=ROUTER_RETRY)
    deployment: Any = ingress(serve.ingress()(ConsoleService))
    app: Application = deployment.bind(spec, interactive(spec.model), bulk(spec.model, on_demand=True))
    return app
