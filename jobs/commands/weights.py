"""`fss weights`: import checkpoints of the methods' official code, and export them."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from jobs.options import JsonOption


def register(app: typer.Typer) -> None:
    """Add the sub-commands."""
    weights = typer.Typer(help="Import and export checkpoints of the methods' official code.", no_args_is_help=True)
    app.add_typer(weights, name="weights")

    @weights.command("import")
    def import_weights(
        file: Annotated[str, typer.Argument(help="Path or URL of the official file (.pth, .pt or .safetensors).")],
        method: Annotated[str, typer.Option("--method", "-m", help="Method that the file belongs to.")],
        out: Annotated[str, typer.Option("--out", "-o", help="Folder or URL of the bundle to write.")],
        preset: Annotated[str, typer.Option("--preset", "-p", help="Preset (size) that it was trained at.")] = "large",
        base: Annotated[str, typer.Option("--weights", help="Checkpoint that it was trained on, where the file does "
                                          "not hold it: a path or URL.")] = "",
        config: Annotated[list[str] | None, typer.Option(
            "--config", help="Setting of the method that the file does not tell, such as side=641. May be repeated.")
            ] = None,
        as_json: JsonOption = False,
    ) -> None:
        """Turn an official checkpoint into a bundle. Every key is checked; nothing in the file is executed."""
        from jobs.recipes import parse_settings
        from pipelines.bundles.bundle import import_bundle

        info, tensors = import_bundle(out, file=file, method=method, preset=preset, weights=base,
                                      settings=parse_settings(config or []))
        line = f"{tensors} tensors of {file} -> {out} (bundle {info.bundle_id}, config {json.dumps(info.config)})"
        print(line, file=sys.stderr if as_json else sys.stdout)
        if as_json:
            print(json.dumps({"bundle": out, "bundle_id": info.bundle_id, "tensors": tensors, "config": info.config}))

    @weights.command("export")
    def export_weights(
        bundle: Annotated[str, typer.Argument(help="Folder or URL of the bundle.")],
        out: Annotated[str, typer.Option("--out", "-o", help="Path or URL of the .safetensors file to write.")],
    ) -> None:
        """Write a bundle's trained tensors under the official code's names."""
        from pipelines.bundles.bundle import export_bundle

        print(f"{export_bundle(bundle, out)} tensors of {bundle} -> {out}")
