"""Makes the episode list of a benchmark and a family."""

from __future__ import annotations

from dataclasses import replace

from fss_models.errors import FssError
from pipelines.data.benchmarks import find_benchmark
from pipelines.data.benchmarks.protocol import EpisodeFamily, ListRequest
from pipelines.data.benchmarks.rules import photo_number
from pipelines.data.published import ListedEpisode, PublishedList
from pipelines.data.samplers.draws import NamedEpisode


def make_list(dataset: str, family: str, request: ListRequest) -> PublishedList:
    """Draw an episode list. The same request over the same files gives the same list.

    Raises `FssError` for an unknown benchmark, family or fold, for options that the family ignores, for missing lists,
    and for pools that are too small.
    """
    benchmark = find_benchmark(dataset)
    if family not in benchmark.families:
        raise FssError(f"{benchmark.title} has no family {family!r}", hint=f"known: {', '.join(benchmark.families)}")
    rule = benchmark.families[family]
    _check_options(rule, request, f"the {family} list of {benchmark.title}")
    seed = rule.seed if request.seed is None else request.seed
    if request.root:
        request = replace(request, root=benchmark.home(request.root))
    drawn = rule.draw(request, request.episodes or rule.episodes or 0, seed)
    status = "drawn" if family == "drawn" else "reproduced" if drawn.content in rule.checked else "unverified"
    known = {row["file_name"]: i for i, row in request.opened_shards.rows.items()} if request.shards else {}
    rows = tuple(_row(one, drawn.classes[one.class_id], known) for one in drawn.draws)
    return PublishedList(dataset=dataset, family=family, fold=request.fold, shots=request.shots, seed=seed,
                         status=status, origin=drawn.origin, episodes=rows)


def _check_options(rule: EpisodeFamily, request: ListRequest, what: str) -> None:
    origins = sorted(rule.uses & {"lists", "root", "shards"})
    if not request.given_options & set(origins):
        raise FssError(f"no origin is given for {what}", hint=f"give --{' or --'.join(origins)}")
    for option in sorted(request.given_options - rule.uses):
        raise FssError(f"{what} ignores --{option}", hint=f"leave out --{option}")
    if request.split not in ("test", "train") or (request.lists and request.split != "test"):
        raise FssError(f"--split {request.split} cannot be used with {'--lists' if request.lists else '--shards'}",
                       hint="give test or train with --shards; lists have test photos only")


def _row(one: NamedEpisode, class_name: str, known: dict[str, int]) -> ListedEpisode:
    """One row of the list. `known`: photo name -> id in the shards, whose source may number photos in its own way."""
    ids = [known[n] if n in known else photo_number(n) for n in (one.query, *one.supports)]
    return ListedEpisode(one.class_id, class_name, ids[0], tuple(ids[1:]), one.query, one.supports)
