"""The settings of a deployment, as one value that is sent to its replicas."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from fss_models.bundle import BundleInfo
from fss_models.execution import chosen_precision
from fss_models.limits import LIMITS, PhotoLimits
from pipelines.base.limits import usable_cores
from pipelines.base.ray_stage import run_task
from pipelines.config.computing import Computing
from pipelines.config.label import ServiceSettings
from pipelines.config.recipe import Recipe

FOLLOW_S = 10.0  # seconds between two looks for a new champion


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model to serve: its bundle, where support sets are stored, batch and limits."""

    bundle_url: str
    supports_url: str
    bundle_id: str = ""  # the bundle that has to be at bundle_url; empty: any
    gpu_share: float = 0.5  # of a GPU, for each replica: people's and jobs' replicas share one
    job_replicas: int = 1  # for jobs, where `serve.replicas` is 0
    features_url: str = ""  # where features of jobs' photos are kept; empty: nowhere
    follow: str = ""  # URL whose bundle is taken whenever another one is promoted there; empty: never
    follow_s: float = FOLLOW_S
    device: str = "cpu"
    batch: int = 8
    serve: ServiceSettings = field(default_factory=ServiceSettings)
    limits: PhotoLimits = LIMITS
    max_seconds: float = 0  # a replica ends itself when a photo takes longer to decode; 0: no limit

    @property
    def torch_threads(self) -> int:
        """Torch threads of a replica: `serve.threads`, or the number of CPU cores where that is 0."""
        return self.serve.threads or usable_cores()

    @property
    def labeler_options(self) -> dict[str, Any]:
        """The keywords of a replica's `Labeler`."""
        return {"decoders": self.torch_threads, "supports_url": self.supports_url, "limits": self.limits,
                "max_seconds": self.max_seconds, "features_url": self.features_url,
                **labeler_computing(self.serve)}

    @property
    def actor_options(self) -> dict[str, Any]:
        """A replica's resources: fractions, so that interactive and bulk replicas share a machine and a GPU."""
        return {"num_cpus": 0.5, **({"num_gpus": self.gpu_share} if self.device != "cpu" else {})}


@dataclass(frozen=True, kw_only=True)
class ServiceSpec:
    """The model of a service and what clients may do.

    token              hash of the token; empty: no token is needed (on loopback only)
    workspace, recipe  where the console's jobs are stored, and their settings
    roots              folders and buckets that these jobs may read; None: whatever the service can read
    """

    model: ModelSpec
    bundle: BundleInfo
    max_request_bytes: int
    workspace: str
    recipe: Recipe
    token: str = ""
    roots: tuple[str, ...] | None = ()


def model_spec(recipe: Recipe, *, bundle_url: str, bundle_id: str, supports_url: str, device: str,
               batch: int, follow: str = "", follow_s: float = FOLLOW_S,
               computing: dict[str, Any] | None = None) -> ModelSpec:
    """The `ModelSpec` for the `serve` and `data` sections of a recipe; a job's `computing` replaces the service's."""
    return ModelSpec(
        bundle_url=bundle_url, bundle_id=bundle_id, supports_url=supports_url, device=device, batch=batch,
        serve=recipe.serve.model_copy(update=computing), limits=recipe.data.limits, max_seconds=recipe.data.max_seconds,
        follow=follow, follow_s=follow_s,
    )


def labeler_computing(settings: Computing) -> dict[str, Any]:
    """The keywords of a `Labeler` for these settings; preprocessing `auto` is that of the bundle."""
    mode = None if settings.preprocessing in ("bundle", "auto") else settings.preprocessing
    return {"precision": settings.precision, "compiled": settings.compile, "preprocessing": mode}


def settle_spec(ray: Any, spec: ModelSpec) -> ModelSpec:
    """The spec with what `auto` means on this cluster: the precision of the replicas' device, and their number."""
    wanted, gpus = spec.serve.precision, 0.0 if spec.device == "cpu" else 0.1
    found = run_task(ray, chosen_precision, wanted, spec.device, cpus=0, gpus=gpus) if wanted == "auto" else wanted
    return replace(spec, serve=spec.serve.model_copy(update={"precision": found}),
                   job_replicas=count_models(ray, spec.device))


def count_models(ray: Any, device: str) -> int:
    """The number of models that a cluster has room for: one a GPU, or one a machine without GPUs."""
    if device != "cpu":
        return max(1, int(ray.cluster_resources().get("GPU", 1)))
    return max(1, sum(1 for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU", 0) >= 1))


def free_models(ray: Any, device: str) -> tuple[int, float]:
    """The number of models that a cluster has room for beside what runs there, and the share of a GPU of each.

    What runs is taken to have half a GPU each, on GPUs of its own. Without a whole GPU left it is one model with half.
    """
    count = count_models(ray, device)
    if device == "cpu":
        return count, 1.0
    left = count - math.ceil(2 * (count - ray.available_resources().get("GPU", 0.0)))
    return (left, 1.0) if left >= 1 else (1, 0.5)


def waits_for_gpu(ray: Any, device: str, share: float) -> str:
    """A line about a model that has to wait for its `share` of a GPU; "" where the cluster has as much left.

    Of several GPUs each may be used in part: then it waits although their parts are enough together.
    """
    left = ray.available_resources().get("GPU", 0.0)
    if device == "cpu" or left >= share:
        return ""
    return (f"the cluster's GPUs are in use ({left:g} of {count_models(ray, device)} left): this job waits for "
            f"{'a whole one' if share == 1 else f'{share:g} of one'}; `ray status` shows what holds them")


def with_bundle(spec: ServiceSpec, info: BundleInfo) -> ServiceSpec:
    """The spec of a service that has taken the bundle `info` from the URL that it follows."""
    model = replace(spec.model, bundle_url=spec.model.follow, bundle_id=info.bundle_id)
    return replace(spec, bundle=info, model=model)


def best_device(ray: Any) -> str:
    """`cuda` if the cluster has a GPU, else `cpu`."""
    return "cuda" if ray.cluster_resources().get("GPU", 0) else "cpu"
