"""What a deployment needs to know, as one value that travels to its replicas."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from pipelines.bundles.bundle import BundleInfo
from pipelines.config.label import ServeConfig
from pipelines.config.recipe import Recipe


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model to serve: which bundle, where support sets are, how much at a time."""

    bundle_url: str
    supports_url: str
    bundle_id: str = ""  # of the bundle that has to lie there; empty: whichever does
    device: str = "cpu"
    batch: int = 8
    wait_s: float = 0.02
    threads: int = 0
    replicas: int = 1
    max_replicas: int = 0  # of those that people's requests go to; 0: as many as `replicas`
    max_pixels: int = 50_000_000
    max_bytes: int = 64_000_000

    @property
    def torch_threads(self) -> int:
        """Threads of the model; 0 in the recipe means the machine's cores."""
        return self.threads or os.cpu_count() or 1

    @property
    def actor_options(self) -> dict[str, Any]:
        """Fractions, so that interactive and bulk replicas share a machine and a GPU."""
        return {"num_cpus": 0.5, **({"num_gpus": 0.5} if self.device != "cpu" else {})}


@dataclass(frozen=True, kw_only=True)
class ServiceSpec:
    """The model and what clients may send it. `token` is a hash; empty lets everybody in (loopback only).

    workspace, recipe  where jobs are kept that people start in the console, and their settings
    roots  where these jobs' photos may be; None: wherever the service can read
    """

    model: ModelSpec
    bundle: BundleInfo
    max_request_bytes: int
    workspace: str
    recipe: Recipe
    token: str = ""
    roots: tuple[str, ...] | None = ()


def model_spec(recipe: Recipe, *, bundle_url: str, bundle_id: str, supports_url: str, device: str,
               batch: int) -> ModelSpec:
    """A recipe's serving section as a `ModelSpec`."""
    serve: ServeConfig = recipe.serve
    return ModelSpec(
        bundle_url=bundle_url, bundle_id=bundle_id, supports_url=supports_url, device=device, batch=batch,
        wait_s=serve.wait_s, threads=serve.threads, replicas=serve.replicas, max_replicas=serve.max_replicas,
        max_pixels=recipe.data.max_pixels, max_bytes=recipe.data.max_bytes,
    )


def best_device(ray: Any) -> str:
    """`cuda` where the cluster has a GPU, else `cpu`."""
    return "cuda" if ray.cluster_resources().get("GPU", 0) else "cpu"
