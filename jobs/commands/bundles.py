"""`fss bundles list|fetch|push`: bundles that ship with the package, below a folder or S3 prefix, or on the hub."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.options import BundleOption, JsonOption, WorkspaceOption

if TYPE_CHECKING:
    from pipelines.bundles.shipped import NamedBundle

FromOption = Annotated[str, typer.Option("--from", help="Folder or s3://bucket/prefix that holds bundles (default: the "
                                         "bundles that ship with fss).")]


def register(app: typer.Typer) -> None:
    """Add the sub-commands."""
    bundles = typer.Typer(no_args_is_help=True, help="List, copy and share bundles: trained methods that can serve and "
                          "label.")
    bundles.command("list")(list_)
    bundles.command("fetch")(fetch)
    bundles.command("push")(push)
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
    name: Annotated[str, typer.Argument(help="Name of the bundle as `fss bundles list` shows it, or "
                                        "hf://owner/repository of the hub, with @revision and /folder where needed.")],
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


def push(
    target: Annotated[str, typer.Argument(help="Repository: hf://owner/repository, with @branch and /folder where "
                                          "needed. It is made if there is none.")],
    bundle: BundleOption = "",
    workspace: WorkspaceOption = None,
    licence: Annotated[str, typer.Option("--licence", help="Licence of the bundle, by the hub's short name, such as "
                                         "apache-2.0.")] = "",
    data_licence: Annotated[str, typer.Option("--data-licence", help="Terms of the photos it was trained on, in "
                                              "words.")] = "",
    weights: Annotated[str, typer.Option("--weights", help="Public URL of the weight file that the bundle is built on, "
                                         "where it was trained with a local one.")] = "",
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public; without, it is private.")
                      ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the model card, send nothing.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Send a bundle to the hub with a model card made from it; wants HF_TOKEN. Sent again, it changes nothing."""
    from jobs.recipes import load_recipe
    from pipelines.base.workspace import Workspace
    from pipelines.bundles.push import for_hub, push_bundle

    source = bundle or Workspace(load_recipe("demo", [], out=workspace).out).champion
    made = for_hub(source, target, weights=weights, licence=licence, data_licence=data_licence)
    if dry_run:
        print(made.card, end="")
        return
    url, changed = push_bundle(made, private=not public)
    line = f"bundle {made.info.bundle_id} -> {url}" if changed else f"bundle {made.info.bundle_id} is there: {url}"
    print(line, file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps({"bundle": url, "bundle_id": made.info.bundle_id, "changed": changed}))


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
