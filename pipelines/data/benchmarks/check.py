"""Checks whether a raw copy of a benchmark is complete: counts its files, opens its index, reports what is missing."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.config.data import SourceConfig
from pipelines.data.benchmarks import find_benchmark, open_benchmark
from pipelines.data.benchmarks.protocol import LayoutPart
from pipelines.data.sources.base import listing


@dataclass(frozen=True, kw_only=True)
class FoundLayoutPart:
    """One part of the layout in a raw copy: number of files found, number published (None: unknown), and its state."""

    what: str
    where: str
    found: int
    published: int | None
    state: str  # ok | missing | incomplete | absent (optional)
    get: str


@dataclass(frozen=True, kw_only=True)
class LayoutReport:
    """The result of `fss data check`."""

    dataset: str
    verified: bool
    note: str
    root: str
    parts: list[FoundLayoutPart]
    photos: dict[str, int] = field(default_factory=dict)  # split -> usable photos (or objects)
    classes: dict[str, int] = field(default_factory=dict)  # fold -> classes
    unusable: dict[str, int] = field(default_factory=dict)  # reason -> photos
    problems: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether no problem was found."""
        return not self.problems

    def as_json(self) -> dict[str, Any]:
        """The report as the JSON of `fss data check --json`."""
        return {**asdict(self), "complete": self.complete}


def check_benchmark(name: str, root: str, *, lists: str = "", subset: bool = False) -> LayoutReport:
    """Check a raw copy of a benchmark. With `subset`, fewer files than published are no problem.

    Raises `FssError` for an unknown benchmark or a root that cannot be read.
    """
    benchmark = find_benchmark(name)
    store = Store(benchmark.home(root))
    try:
        files = list(listing(store))
    except FssError as error:
        if error.__cause__ is not None:  # the root cannot be read; an empty one has no cause
            raise
        files = []
    parts = [_part(p, files, subset) for p in benchmark.parts]
    problems = [f"{p.what}: {p.found} of {p.published} files" if p.published else f"{p.what}: no files" for p in parts
                if p.state in ("missing", "incomplete")]
    report = LayoutReport(dataset=name, verified=benchmark.verified, note=benchmark.note, root=store.url, parts=parts,
                          problems=problems)
    if any(p.state == "missing" for p in parts):
        return report
    try:
        source = open_benchmark(SourceConfig(format=name, root=root, lists=lists))
    except FssError as error:
        report.problems.append(str(error))
        return report
    report.photos.update(Counter(i.split for i in source.items))
    report.classes.update(Counter("none" if f < 0 else str(f) for f in source.fold_table or []))
    report.unusable.update(Counter(f"{f.stage}: {f.reason}" for f in source.failures))
    lost = [f for f in source.failures if f.stage == "index"]
    if lost:
        report.problems.append(f"{len(lost)} photos, masks or classes do not fit together; the first is "
                               f"{lost[0].file_name}: {lost[0].reason}")
    if not source.items:
        report.problems.append("no usable photo")
    return report


def _part(part: LayoutPart, files: list[str], subset: bool) -> FoundLayoutPart:
    counts = {folder: sum(_below(f, folder) and f.lower().endswith(part.suffixes) for f in files)
              for folder in part.folders}
    folder, found = next(((k, v) for k, v in counts.items() if v), (part.folders[0], 0))
    if not found:
        state = "absent" if part.optional else "missing"
    elif part.count is not None and found < part.count and not subset:
        state = "absent" if part.optional else "incomplete"
    else:
        state = "ok"
    where = f"{folder}/*{'|'.join(part.suffixes)}".removeprefix("/")
    return FoundLayoutPart(what=part.what, where=where, found=found, published=part.count, state=state, get=part.get)


def _below(file: str, folder: str) -> bool:
    return not folder or f"/{folder}/" in f"/{file}"
