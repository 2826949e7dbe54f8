"""Sending a bundle to the hub: its files and a model card, in one commit."""

from __future__ import annotations

from dataclasses import dataclass, replace

from fss_models import registry
from fss_models.bundle import CALIBRATOR, INFO, BundleInfo
from fss_models.errors import FssError
from fss_models.presets import RANDOM
from fss_models.settings import weight_fields
from pipelines.base.storage import json_bytes
from pipelines.bundles.bundle import read_bundle_files
from pipelines.bundles.card import CARD, model_card
from pipelines.bundles.hub import hub_place, push_files
from pipelines.bundles.shipped import without_places


@dataclass(frozen=True, kw_only=True)
class HubBundle:
    """A bundle as it is to be on the hub: `files` by name, the card among them."""

    url: str
    info: BundleInfo
    files: dict[str, bytes]

    @property
    def card(self) -> str:
        """The model card."""
        return self.files[CARD].decode()


def for_hub(source: str, target: str, *, weights: str = "", licence: str = "", data_licence: str = "") -> HubBundle:
    """The bundle at `source` as it is to be at `target`, `hf://owner/repository[@branch][/folder]`. Nothing is sent.

    `weights`: the public URL of the weight file it is built on; `licence`, `data_licence`: as in `model_card`. Its
    identity stays the same; local paths and those of buckets are cut to their last part.

    Raises `FssError` for a bundle that is not whole, for one on a weight file that others do not have, and for
    `weights` of a bundle that needs none.
    """
    place = hub_place(target)
    info, files = read_bundle_files(source)
    if weights and not info.weights:
        raise FssError("the bundle is built on no weight file", where=source, hint="leave --weights out")
    info = info.model_copy(update={"weights": weights or info.weights, "provenance": without_places(info.provenance)})
    fields = weight_fields(registry.method_config(info.method))
    for name, file in {"weights": info.weights, **{f: str(info.config.get(f) or "") for f in fields}}.items():
        if file not in ("", RANDOM) and "://" not in file:
            hint = "give its public URL with --weights" if name == "weights" else f"train with a URL in {name}"
            raise FssError(f"the bundle is built on {file}, a file that others do not have", where=source, hint=hint)
    files = {**files, INFO: json_bytes(info.model_dump())}
    card = model_card(info, files, replace(place, revision="").url, licence=licence, data_licence=data_licence)
    return HubBundle(url=place.url, info=info, files={**files, CARD: card.encode()})


def push_bundle(bundle: HubBundle, *, private: bool = True) -> tuple[str, bool]:
    """Send a bundle in one commit; returns its URL with the commit, and whether anything was changed.

    A new repository is `private`. Pushing a bundle again changes nothing. Raises `FssError` as `push_files` does.
    """
    place = hub_place(bundle.url)
    gone = () if CALIBRATOR in bundle.files else (CALIBRATOR,)
    commit, changed = push_files(place, bundle.files, gone=gone, private=private,
                                 message=f"Bundle {bundle.info.bundle_id}, {bundle.info.method}/{bundle.info.preset}")
    return replace(place, revision=commit).url, changed
