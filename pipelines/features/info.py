"""Describes the folders of kept features below a URL."""

from __future__ import annotations

from typing import Any

from pipelines.base.storage import Store
from pipelines.features.folder import FeatureFolder


def describe_features(base: str, *, verify: bool = False) -> list[dict[str, Any]]:
    """The facts of every folder below `base`, as JSON. `finished` is false for unfinished folders.

    With `verify` every part is read and compared with its hash. Raises `FssError` with the name of the first damaged
    part.
    """
    store = Store(base)
    sizes = store.sizes() if store.exists() else {}
    found = []
    for name in sorted({n.split("/", 1)[0] for n in sizes if "/" in n}):
        parts = [size for n, size in sizes.items() if n.startswith(f"{name}/parts/")]
        facts: dict[str, Any] = {"features": store.path(name), "finished": f"{name}/about.json" in sizes,
                                 "parts": len(parts), "bytes": sum(parts)}
        if facts["finished"]:
            folder = FeatureFolder.open(base, name)
            about = folder.about
            facts |= {"id": about.id, "precision": about.precision, "encoder": about.encoder,
                      "maps": {k: list(v) for k, v in about.maps.items()}, "records": len(folder.locations),
                      "photos": len({p.sha256 for p in folder.locations}), "record_bytes": folder.layout.record_bytes}
            facts |= {"verified_parts": folder.verify()} if verify else {}
        found.append(facts)
    return found
