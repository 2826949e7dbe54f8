"""Test episodes as pictures: some drawn at random and the worst of all, as PNG files and a page that shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from fss_models.segmenter import Segmenter
from pipelines.base.progress import Bar
from pipelines.base.storage import Store, join
from pipelines.config.evaluate import EvalConfig
from pipelines.data.episodes import Episode, EpisodeList, load_episode
from pipelines.data.schema import EpisodeSample
from pipelines.data.shardset import Shards
from pipelines.evaluation.evaluate import draw_prompt
from pipelines.evaluation.predict import predict
from pipelines.evaluation.results import RunResult
from pipelines.pages.pictures import PREDICTION, SUPPORT, picture, png_bytes
from pipelines.pages.template import page_template

RANDOM, WORST, SIDE_PX = 24, 8, 360
KINDS = ("random", "worst")


@dataclass(frozen=True, kw_only=True)
class GalleryEpisode:
    """One episode of the page: its IoU, and its pictures as (caption, file beside the page)."""

    kind: str
    episode_id: int
    class_name: str
    query: str
    iou: float
    pictures: list[tuple[str, str]]


def pick_rows(table: pa.Table, queries: Mapping[int, int] | None = None, *, seed: int = 0, count: int = RANDOM,
              worst: int = WORST) -> dict[str, list[int]]:
    """Pick episodes of a table of `EPISODE_SCORES`: kind -> episode ids.

    The kind "random" has `count` episodes, drawn with `seed` whatever their score, in the order of the draw. The kind
    "worst" has the `worst` episodes of the lowest IoU, the worst first, ties in the order of ids. An episode may be in
    both. With `queries` (episode -> photo), a query of a class is shown again only when there is no other one left.
    """
    ids, ious, classes = (table[k].to_numpy() for k in ("episode_id", "iou", "class_id"))
    order = np.argsort(ids)
    ids, ious, classes = ids[order], ious[order], classes[order]
    drawn = np.random.default_rng([seed, len(ids)]).permutation(ids)[:count]
    ranked = np.argsort(ious, kind="stable").tolist()
    first: dict[tuple[int, int], int] = {}
    for i in ranked:
        first.setdefault((queries[int(ids[i])] if queries else i, int(classes[i])), i)
    firsts = set(first.values())
    shown = set([*first.values(), *(i for i in ranked if i not in firsts)][:worst])
    return {"random": drawn.tolist(), "worst": [int(ids[i]) for i in ranked if i in shown]}


def write_gallery(
    model: Segmenter, shards: Shards, episodes: EpisodeList, config: EvalConfig, result: RunResult, table: pa.Table,
    *, name: str, out: str, seed: int = 0,
) -> dict[str, Any]:
    """Predict the picked episodes again and write `<out>/<name>-<fold, shot, bundle id>/index.html` and its PNG files.

    Returns the content of gallery.json, which is written beside the page: the scores and the episodes shown.
    """
    fold = "all" if result.spec.fold is None else result.spec.fold
    store = Store(join(out, f"{name}-fold{fold}-shot{episodes.shots}-{result.bundle_id}"))
    by_id = {e.episode_id: e for e in episodes}
    iou = dict(zip(table["episode_id"].to_pylist(), table["iou"].to_pylist(), strict=True))
    picked = pick_rows(table, {e.episode_id: e.query for e in episodes}, seed=seed)
    chosen = [(kind, n, by_id[i]) for kind, ids in picked.items() for n, i in enumerate(ids)]
    shown = []
    with Bar("drawing", len(chosen), unit="episodes") as bar:
        for kind, number, episode in chosen:
            found = _draw(model, shards, episode, config, store, f"{kind}-{number:02d}")
            shown.append(GalleryEpisode(kind=kind, episode_id=episode.episode_id, iou=iou[episode.episode_id],
                                        class_name=shards.classes[episode.class_id].name, pictures=found,
                                        query=shards.rows[episode.query]["file_name"]))
            bar.step()
    about = {"page": store.path("index.html"), "seed": seed, "zero": sum(v == 0 for v in iou.values()),
             **{k: getattr(result, k) for k in ("bundle", "bundle_id", "miou", "fb_iou", "episodes", "list_hash",
                                                "untrained", "code")},
             "method": result.spec.method.name, "preset": result.spec.method.preset, "fold": fold,
             "shot": episodes.shots, "dataset": name}
    store.write_bytes("index.html", _page(about, shown).encode())
    document = {**about, "shown": [asdict(s) for s in shown]}
    store.write_json("gallery.json", document)
    return document


def _draw(model: Segmenter, shards: Shards, episode: Episode, config: EvalConfig, store: Store,
          stem: str) -> list[tuple[str, str]]:
    """Write the pictures of an episode and return (caption, file) of each.

    They are the supports with their masks, and the query with the prediction and the outline of the truth.
    """
    sample: EpisodeSample = load_episode(shards, episode)
    prompts = [draw_prompt(model, r, config, episode.episode_id, k) for k, r in enumerate(sample.references)]
    mask, _ = predict(model, sample, prompts)
    target = sample.targets[0]
    drawn = [(f"support {k}" if len(sample.references) > 1 else "support", f"{stem}-support{k}.png",
              picture(r.image, r.mask, SUPPORT, side=SIDE_PX)) for k, r in enumerate(sample.references, start=1)]
    drawn.append(("query", f"{stem}-query.png",
                  picture(target.image, mask, PREDICTION, outline=target.mask, side=SIDE_PX)))
    for _, name, image in drawn:
        store.write_bytes(name, png_bytes(image))
    return [(caption, name) for caption, name, _ in drawn]


def _page(about: dict[str, Any], shown: Sequence[GalleryEpisode]) -> str:
    template = page_template("pipelines.report", "episodes.html")
    return template.render(a=about, kinds={k: [s for s in shown if s.kind == k] for k in KINDS})
