"""The datasets and weight files that a table needs and that are missing on this machine, all listed at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fss_models import registry
from fss_models.errors import FssError
from fss_models.presets import RANDOM
from fss_models.settings import weight_fields
from pipelines.base.storage import Store
from pipelines.base.workspace import Workspace
from pipelines.bundles.weights import fetch, is_fetched
from pipelines.config.data import BENCHMARKS, DataConfig
from pipelines.config.method import MethodConfig
from pipelines.config.recipe import Recipe
from pipelines.data.benchmarks.check import check_benchmark
from pipelines.papers.tables.cells import TableCell

# weight files without a public address, which recipes name by a local path -> where to get them
UNADDRESSED = {"resnet50_v2.pth": "PSPNet's ImageNet weights: the folder initmodel that the README of "
               "hszhao/semseg links (torchvision's do not fit)",
               "dinov3_vitl16_pretrain_lvd1689m-8aa4cbdd.pth": "Meta's page of DINOv3, which sends links to those who "
               "accept its licence"}


@dataclass(frozen=True, kw_only=True)
class MissingFile:
    """A dataset or a weight file that is missing: where it was expected, and what to put there."""

    kind: str  # data | weights
    name: str  # the name that the command line uses
    place: str
    instructions: tuple[str, ...]

    @property
    def option(self) -> str:
        """The option of `fss reproduce` that names another place for it."""
        return f"--root {self.name}=FOLDER" if self.kind == "data" else f"--weight {self.name}=FILE"


def check_cells(cells: Sequence[TableCell]) -> None:
    """Raise `FssError` for a method, a setting or a preset that does not exist."""
    for cell in cells:
        registry.make_config(cell.method.name, cell.method.config)
        registry.check_preset(cell.method.name, cell.method.preset)


def find_missing(cells: Sequence[TableCell]) -> list[MissingFile]:
    """Everything that is missing. If only files with a public address are missing, they are fetched now."""
    data: dict[str, MissingFile] = {}
    files: dict[str, str] = {}
    for cell in cells:
        for part in datasets(cell.recipe):
            if part.name not in data and (found := missing_data(part, cell.recipe.out)):
                data[part.name] = found
        files |= {place: sha for place, sha in weight_files(cell.method) if not is_fetched(place)}
    if data or any("://" not in place for place in files):
        return [*data.values(), *(_missing_file(place) for place in files)]
    return [missing for place, sha in files.items() if (missing := _try_fetch(place, sha))]


def datasets(recipe: Recipe) -> list[DataConfig]:
    """The datasets that a recipe reads: its own and those of its mixture."""
    return [recipe.data, *(m.data for m in recipe.mixture)]


def weight_files(method: MethodConfig) -> Iterator[tuple[str, str]]:
    """(place, sha256 or "") of every file of pretrained weights that a method names."""
    if method.weights not in ("", RANDOM):
        yield method.weights, method.sha256
    for name in weight_fields(registry.method_config(method.name)):
        if method.config.get(name):
            yield str(method.config[name]), ""


def file_name(place: str) -> str:
    """The last part of a place, which is the file's name for `--weight`."""
    return place.partition("#")[0].rsplit("/", 1)[-1]


def missing_data(part: DataConfig, out: str) -> MissingFile | None:
    """What a dataset lacks, None if it is complete or the workspace `out` has its shards."""
    if part.source.format == "shapes" or Store(Workspace(out).shards(part.name)).exists("manifest.json"):
        return None
    root = part.source.root
    if part.source.format in BENCHMARKS:
        report = check_benchmark(part.source.format, root, lists=part.source.lists)
        if report.complete:
            return None
        put = [f"{p.what}: {p.where}{_number(p.published)}; from {p.get}" for p in report.parts
               if p.state in ("missing", "incomplete")]
        return MissingFile(kind="data", name=part.name, place=report.root, instructions=tuple(put or report.problems))
    store = Store(root)
    if store.list():
        return None
    return MissingFile(kind="data", name=part.name, place=store.url,
                       instructions=(f"a dataset of format {part.source.format!r}",))


def _number(published: int | None) -> str:
    return "" if published is None else f", {published} file{'' if published == 1 else 's'}"


def _missing_file(place: str) -> MissingFile:
    where = place.partition("#")[0]
    hint = ("the file is fetched from there once nothing else is missing; without a network, get it and name its place"
            if "://" in place else UNADDRESSED.get(file_name(place), "put the file there"))
    return MissingFile(kind="weights", name=file_name(place), place=where, instructions=(hint,))


def _try_fetch(place: str, sha256: str) -> MissingFile | None:
    """Fetch a file. Returns None if that succeeded, else what is missing, with the error."""
    try:
        fetch(place, sha256)
    except FssError as error:
        return MissingFile(kind="weights", name=file_name(place), place=place.partition("#")[0],
                           instructions=(str(error), "get the file and name its place"))
    return None
