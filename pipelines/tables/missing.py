"""What a table needs and this machine has not: datasets and weight files, all at once, each with its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fss_models import registry
from fss_models.errors import FssError
from fss_models.presets import RANDOM
from fss_models.settings import weight_fields
from pipelines.config import BENCHMARKS, DataConfig, MethodConfig, Recipe
from pipelines.data.benchmarks.check import check_benchmark
from pipelines.storage import Store
from pipelines.tables.cells import Cell
from pipelines.weights import fetch, is_here
from pipelines.workspace import Workspace

# files that recipes name by a local path, having no public address: where they are from
UNADDRESSED = {"resnet50_v2.pth": "PSPNet's ImageNet weights: the folder initmodel that the README of "
                                  "hszhao/semseg links (torchvision's do not fit)"}


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A dataset or a weight file: its name for the command line, where it is looked for, and what to put there."""

    kind: str  # data | weights
    name: str
    place: str
    put: tuple[str, ...]

    @property
    def option(self) -> str:
        """How another place is named."""
        return f"--root {self.name}=FOLDER" if self.kind == "data" else f"--weight {self.name}=FILE"


def check_cells(cells: Sequence[Cell]) -> None:
    """Raise `FssError` for a method, a setting or a preset that does not exist, before anything is looked for."""
    for cell in cells:
        registry.make_config(cell.method.name, cell.method.config)
        registry.check_preset(cell.method.name, cell.method.preset)


def find_missing(cells: Sequence[Cell]) -> list[Missing]:
    """Everything that is not there. Where only files with an address are missing they are fetched now."""
    data: dict[str, Missing] = {}
    files: dict[str, str] = {}
    for cell in cells:
        for part in datasets(cell.recipe):
            if part.name not in data and (found := _missing_data(part, cell.recipe.out)):
                data[part.name] = found
        files |= {place: sha for place, sha in weight_files(cell.method) if not is_here(place)}
    if data or any("://" not in place for place in files):
        return [*data.values(), *(_missing_file(place) for place in files)]
    return [missing for place, sha in files.items() if (missing := _fetched(place, sha))]


def datasets(recipe: Recipe) -> list[DataConfig]:
    """The datasets a recipe reads."""
    return [recipe.data, *(m.data for m in recipe.mixture)]


def weight_files(method: MethodConfig) -> Iterator[tuple[str, str]]:
    """(place, sha256 or "") of every file of pretrained weights that a method names."""
    if method.weights not in ("", RANDOM):
        yield method.weights, method.sha256
    for name in weight_fields(registry.method_config(method.name)):
        if method.config.get(name):
            yield str(method.config[name]), ""


def file_name(place: str) -> str:
    """The last part of a place, by which `--weight` names it."""
    return place.partition("#")[0].rsplit("/", 1)[-1]


def _missing_data(part: DataConfig, out: str) -> Missing | None:
    if part.source.format == "shapes" or Store(Workspace(out).shards(part.name)).exists("manifest.json"):
        return None
    root = part.source.root
    if part.source.format in BENCHMARKS:
        report = check_benchmark(part.source.format, root, lists=part.source.lists)
        if report.complete:
            return None
        put = [f"{p.what}: {p.where}{_number(p.published)}; from {p.get}" for p in report.parts
               if p.state in ("missing", "incomplete")]
        return Missing(kind="data", name=part.name, place=report.root, put=tuple(put or report.problems))
    store = Store(root)
    if store.list():
        return None
    return Missing(kind="data", name=part.name, place=store.url, put=(f"a dataset of format {part.source.format!r}",))


def _number(published: int | None) -> str:
    return "" if published is None else f", {published} file{'' if published == 1 else 's'}"


def _missing_file(place: str) -> Missing:
    where = place.partition("#")[0]
    said = ("is fetched from there once nothing else is missing; without a network: get it and name its place"
            if "://" in place else UNADDRESSED.get(file_name(place), "put the file there"))
    return Missing(kind="weights", name=file_name(place), place=where, put=(said,))


def _fetched(place: str, sha256: str) -> Missing | None:
    """Fetch a file; None if that went well."""
    try:
        fetch(place, sha256)
    except FssError as error:
        return Missing(kind="weights", name=file_name(place), place=place.partition("#")[0],
                       put=(str(error), "get it and name its place"))
    return None
