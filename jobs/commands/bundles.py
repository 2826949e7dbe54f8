"""`fss bundles list|fetch`: bundles that ship with the package, or that are below a folder or S3 prefix."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.options import JsonOption

if TYPE_CHECKING:
    from pipelines.bundles.shipped import NamedBundle

FromOption = Annotated[str, typer.Option("--from", help="Folder or s3://bucket/prefix that holds bundles (default: the "
                                         "bundles that ship with fss).")]


def register(app: typer.Typer) -> None:
    """Add the sub-commands."""
    bundles = typer.Typer(no_args_is_help=True, help="List and copy bundles: trained methods that can serve and label.")
    bundles.command("list")(list_)
    bundles.command("fetch")(fetch)
    app.add_typer(bundles, name="bundles")


def list_(place: FromOption = "", as_json: JsonOption = False) -> None:
    """List bundles with their name, method, size and training data."""
    from pipelines.bundles.shipped import list_bundles

    found = list_bundles(place)
    if as_json:
        print(json.dumps({"bundles": [_facts(b) for b in found]}))
        return
    for bundle in found:
        print(_line(bundle))
    if not found:
        print(f"no bundles at {place}" if place else "no bundles ship with this installation")


def fetch(
    name: Annotated[str, typer.Argument(help="Name of the bundle as `fss bundles list` shows it.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL where the copy is written.")],
    place: FromOption = "",
    half: Annotated[bool, typer.Option("--half", help="Store tensors in half precision, at half the size.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Copy a bundle to a folder or URL."""
    from pipelines.bundles.shipped import copy_bundle, find_bundle

    info = copy_bundle(find_bundle(name, place), out, half=half)
    print(f"{name} -> {out} ({info.method}/{info.preset}, bundle {info.bundle_id})",
          file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps({"bundle": out, "bundle_id": info.bundle_id}))


def _facts(bundle: NamedBundle) -> dict[str, object]:
    info = bundle.info
    return {"name": bundle.name, "url": bundle.url, "bundle_id": info.bundle_id, "method": info.method,
            "preset": info.preset, "dataset": info.dataset, "classes": len(info.classes), "bytes": bundle.size,
            "cross_validated_miou": (info.metrics.get("cross_validated") or {}).get("miou")}


def _line(bundle: NamedBundle) -> str:
    facts = _facts(bundle)
    quality = f", cross-validated mIoU {facts['cross_validated_miou'] * 100:.1f}" if isinstance(
        facts["cross_validated_miou"], float) else ""
    return (f"{facts['name']}: {facts['method']}/{facts['preset']}, bundle {facts['bundle_id']}, trained on "
            f"{facts['classes']} classes of {facts['dataset'] or 'no record'}{quality}, {bundle.size / 1e6:.1f} MB")
