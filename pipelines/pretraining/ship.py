"""From a finished pretraining to weights that ship: the same tensors, and what they were made from, in one folder.

    python -m pipelines.pretraining.ship RUN --licence coco="..." --licence voc="..." --terms "..." [--quality A=1.5]

RUN is the `--out` of `fss pretrain`; every dataset of its recipe needs a licence. The files are written into the
package's folder of shipped weights, or into FSS_SHIPPED.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from fss_models.errors import FssError
from fss_models.sam2_core.build import build_sam2
from fss_models.sam2_core.presets import find_preset
from fss_models.shipped.files import HASH_DIGITS, Provenance, TrainingData, write_weights
from pipelines.data.shardset import Shards
from pipelines.pretraining.run import WEIGHTS
from pipelines.storage import join
from pipelines.weights import pretraining_photos


def ship_run(folder: str, *, licences: Mapping[str, str], terms: str, quality: Mapping[str, float] | None = None,
             to: Path | None = None) -> Provenance:
    """Write the weights of a finished pretraining as its preset's shipped ones, by default into the package.

    `licences` is dataset -> licence, `terms` says how the weights may be used, `quality` adds figures to those that
    the run measured on its held-out photos. Raises `FssError` for an unfinished run, a preset that ships nothing,
    weights that do not fit it, a photo of no dataset, and a dataset without a licence.
    """
    run = Path(folder)
    path, beside = run / WEIGHTS, (run / WEIGHTS).with_suffix(".json")
    if not path.is_file() or not beside.is_file():
        raise FssError("holds no finished pretraining", where=folder, mend="run `fss pretrain` again")
    about = json.loads(beside.read_text())
    name = find_preset(about["preset"]).shipped
    if not name:
        raise FssError(f"no weights ship for preset {about['preset']!r}", where=folder)
    photos = set(pretraining_photos(str(path)))
    build_sam2(about["preset"], weights=str(path), object_scores=True)  # strict: every key and shape
    recipe = about["recipe"]
    return write_weights(
        name, load_file(path), folder=to, data=_data(folder, recipe, photos, licences), recipe=recipe,
        commit=about["code"], seeds=(recipe["seed"],), steps=recipe["steps"], seconds=round(about["seconds"], 1),
        hardware=", ".join(f"{k} {v}" for k, v in about["hardware"].items()),
        quality={**about["held_out"], **(quality or {})}, licence=terms, created=about["created"])


def _data(folder: str, recipe: dict[str, Any], photos: set[str],
          licences: Mapping[str, str]) -> tuple[TrainingData, ...]:
    """Which dataset each photo is of."""
    found = []
    for name in (d["name"] for d in recipe["data"]):
        if name not in licences:
            raise FssError(f"dataset {name!r} has no licence", where=folder, mend=f'--licence {name}="..."')
        rows = Shards(join(folder, "shards", name)).rows.values()
        own = photos & {r["sha256"][:HASH_DIGITS] for r in rows}
        found.append(TrainingData(name=name, licence=licences[name], photos=tuple(sorted(own))))
    if missing := sorted(photos - {p for one in found for p in one.photos}):
        raise FssError(f"photo {missing[0]} is of none of the datasets", where=folder, mend="are its shards changed?")
    return tuple(found)


def _pairs(given: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (one.partition("=") for one in given)}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.pretraining.ship", description="Ship a pretraining.")
    parser.add_argument("run", help="the --out of `fss pretrain`")
    parser.add_argument("--licence", action="append", default=[], metavar="DATASET=TEXT")
    parser.add_argument("--terms", required=True, help="how the weights may be used")
    parser.add_argument("--quality", action="append", default=[], metavar="NAME=VALUE", help="a measured figure")
    args = parser.parse_args()
    try:
        made = ship_run(args.run, licences=_pairs(args.licence), terms=args.terms,
                        quality={k: float(v) for k, v in _pairs(args.quality).items()})
    except FssError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{made.file}: sha256 {made.sha256}, {len(made.photos)} photos")


if __name__ == "__main__":
    main()
