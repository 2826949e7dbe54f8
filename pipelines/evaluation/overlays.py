"""Some test episodes of a run as one picture, from the best to the worst."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from PIL import Image

from fss_models.segmenter import Segmenter
from pipelines.config.evaluate import EvalConfig
from pipelines.data.episodes import Episode, EpisodeList, load_episode
from pipelines.data.shardset import Shards

EPISODES, SIDE, GAP = 6, 240, 6


def overlay_sheet(model: Segmenter, shards: Shards, episodes: EpisodeList, config: EvalConfig,
                  table: pa.Table) -> bytes:
    """A PNG file with one column an episode: its first support, and below it the query with the predicted mask.

    The true mask is drawn as an outline. `table` holds the `EPISODE_SCORES` of the list; the columns are evenly spaced
    over the episodes ordered by IoU, the best first.
    """
    from pipelines.pages.pictures import png_bytes

    ordered = table.sort_by([("iou", "descending"), ("episode_id", "ascending")])["episode_id"].to_pylist()
    count = min(EPISODES, len(ordered))
    chosen = [ordered[round(i * (len(ordered) - 1) / max(count - 1, 1))] for i in range(count)]
    by_id = {e.episode_id: e for e in episodes}
    columns = [_column(model, shards, by_id[i], config) for i in chosen]
    width, height = count * (SIDE + GAP) - GAP, 2 * SIDE + GAP
    sheet = Image.new("RGB", (width, height), "white")
    for number, pictures in enumerate(columns):
        for row, one in enumerate(pictures):
            sheet.paste(one, (number * (SIDE + GAP), row * (SIDE + GAP)))
    return png_bytes(sheet)


def _column(model: Segmenter, shards: Shards, episode: Episode, config: EvalConfig) -> list[Any]:
    from pipelines.evaluation.evaluate import draw_prompt
    from pipelines.evaluation.predict import predict
    from pipelines.pages.pictures import PREDICTION, SUPPORT, picture

    sample = load_episode(shards, episode)
    prompts = [draw_prompt(model, r, config, episode.episode_id, k) for k, r in enumerate(sample.references)]
    mask, _ = predict(model, sample, prompts)
    first, target = sample.references[0], sample.targets[0]
    return [picture(first.image, first.mask, SUPPORT, side=SIDE),
            picture(target.image, mask, PREDICTION, outline=target.mask, side=SIDE)]
