"""The training stream, compared with a plain DataLoader that opens its files for every episode, and with a bound.

Each way makes one pass over the pool, starting with empty caches, in a window as large as the dataset. All ways give
K+1 photos as 8-bit squares (Pillow's bilinear resize of `published` preprocessing) and K+1 masks of that side (nearest
neighbour).

plain   torch's Dataset and DataLoader: uniform class, uniform query and supports; K+1 JPEG files and K+1 PNG label
        maps are opened, decoded and resized for every episode, in `workers` processes.
bound   the CPU seconds to decode and resize each photo of the pool once, divided by the episodes that the pool yields
        in an epoch; masks, reading, drawing and hand-over are not included.
shown   a stricter bound: only the photos that the epoch's episodes show, which are fewer.

With `tensors`, all ways also turn each use of a photo into normalised floats (`Preprocessor`), which no loader can
share. Figures are episodes a CPU second over all threads and processes, which is the rate of one core; the figures of
`wall_` are beside them. Figures are medians over turns; a ratio is the median of the ratios within each turn. The slow
plain loader runs in the first `repeats` turns, all other ways in all `turns`. The stream decodes in `decoder_threads`
threads beside the calling thread. Two threads on the hyperthreads of one core cost more CPU seconds than one thread:
`share_of_bound_in_threads` compares with the bound measured in as many threads. In the first turn of a process, the
system still has to map the memory of the pool's pixels.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.datasets import coco_root
from benchmarks.timing import cpu_and_wall
from fss_models.preprocess import Preprocessor, resize_mask

CONFIG: dict[str, Any] = {"data": "auto", "images": 400, "side": 512, "shots": 1, "batch": 8, "workers": 1,
                          "pool_bytes": 1_000_000_000, "pixel_bytes": 4_000_000_000, "tensors": False, "repeats": 3,
                          "turns": 15, "threads": 1, "seed": 0}
Files = dict[int, list[tuple[str, str]]]  # class -> (photo, label map)


def run(config: dict[str, Any]) -> dict[str, Any]:
    """Episodes a CPU second of each way, the ratio to the plain loader, and the shares of the bounds."""
    from pipelines.data.stream import decoder_threads

    with tempfile.TemporaryDirectory() as place:
        url, what = build_dataset(config, Path(place))
        files, bytes_of = _raw_files(url, Path(place) / "files")
        ways: dict[str, Callable[[], int]] = {
            "bound": lambda: _once(list(bytes_of.values()), config),
            "shown": lambda: _once([bytes_of[i] for i in shown], config), "stream": lambda: stream_epoch(url, config),
            "bound_threads": lambda: _once(list(bytes_of.values()), config, decoder_threads()),
            "plain": lambda: _plain(files, config, episodes),
        }
        episodes, shown = _epoch(url, config)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in (*ways, "masks")}
        for turn in range(max(config["turns"], config["repeats"])):
            names = [name for name in ways if name != "plain" or turn < config["repeats"]]
            for name in names[:: -1 if turn % 2 else 1]:
                times[name].append(cpu_and_wall(ways[name]))
            times["masks"].append(_masks(url, config))
    cpu = {name: statistics.median(c for c, _ in found) for name, found in times.items()}
    wall = {name: statistics.median(w for _, w in found) for name, found in times.items()}
    return {"ratio": _share(times, "plain"), "share_of_bound": _share(times, "bound"),
            "share_of_shown": _share(times, "shown"), "share_of_shown_with_masks": _share(times, "shown", "masks"),
            "share_of_bound_in_threads": _share(times, "bound_threads"),
            "share_of_bound_with_masks": _share(times, "bound", "masks"), "data": what, "episodes": episodes,
            "decoders": decoder_threads(), "distinct_photos": len(bytes_of), "shown_photos": len(shown),
            "cpu_seconds": cpu, "wall_seconds": wall, "episodes_per_cpu_s": {n: episodes / s for n, s in cpu.items()},
            "wall_ratio": wall["plain"] / wall["stream"]}


def _share(times: dict[str, list[tuple[float, float]]], *names: str) -> float:
    """The CPU seconds of some ways together, divided by those of the stream: the median over turns."""
    turns = zip(times["stream"], *(times[n] for n in names), strict=False)
    return float(statistics.median(sum(cpu for cpu, _ in others) / stream[0] for stream, *others in turns))


def build_dataset(config: dict[str, Any], folder: Path) -> tuple[str, str]:
    """Build the shards. Returns their URL, and a description of their photos."""
    from pipelines.config.data import DataConfig, SourceConfig, SplitConfig
    from pipelines.data.shards import build_shards

    root, what = coco_root(config, folder)
    data = DataConfig(name="bench", source=SourceConfig(format="coco", root=root), min_images=1,
                      split=SplitConfig(test_fraction=0.02))
    build_shards(data, str(folder / "shards"))
    return str(folder / "shards"), what


def open_stream(url: str, config: dict[str, Any]) -> Any:
    """Open the training stream over all classes, with squares of the side `config["side"]`."""
    from pipelines.data.shardset import Shards
    from pipelines.data.stream import EpisodeStream

    return EpisodeStream(url, classes=list(Shards(url).classes), shots=config["shots"], batch=config["batch"],
                         seed=config["seed"], pool_bytes=config["pool_bytes"], side=config["side"],
                         pixel_bytes=config["pixel_bytes"])


def stream_epoch(url: str, config: dict[str, Any]) -> int:
    """Read one epoch from a new stream, including its start. Returns the number of episodes."""
    done, finish = 0, _finisher(config)
    with open_stream(url, config) as stream:
        total = sum(len(w) for w in stream.plan.windows(0))
        for batch in stream:
            for one in batch:
                for s in (*one.references, *one.targets):
                    finish(s.image, s.mask)
            done += len(batch)
            if done >= total:
                return done
    raise AssertionError("a stream has no end")


def _finisher(config: dict[str, Any]) -> Callable[[np.ndarray, np.ndarray], object]:
    """A function that turns the squares of a photo and a mask into floats if `config["tensors"]` is on."""
    prepare = Preprocessor(side=config["side"])

    def finish(image: np.ndarray, mask: np.ndarray) -> object:
        return (prepare([image]), torch.from_numpy(mask.astype(np.float32))) if config["tensors"] else (image, mask)

    return finish


def _epoch(url: str, config: dict[str, Any]) -> tuple[int, set[int]]:
    """(number of episodes of the first epoch, ids of the photos that they show)."""
    specs, tables = _pool(url, config)
    ids = {b: table.column("image_id").to_pylist() for b, table in tables.items()}
    return len(specs), {ids[b][row] for spec in specs for b, row in (*spec.references, *spec.targets)}


def _pool(url: str, config: dict[str, Any]) -> tuple[list[Any], dict[int, Any]]:
    """(the plan's specs of the first epoch's episodes, block -> table of the blocks of its windows)."""
    from pipelines.data.shardset import Shards
    from pipelines.data.stream import read_block

    with open_stream(url, config) as stream:
        plan = stream.plan
    shards, windows = Shards(url), plan.windows(0)
    specs = [plan.episode(0, w, i) for w, window in enumerate(windows) for i in range(len(window))]
    return specs, {b: read_block(shards, plan.blocks[b]) for b in {b for w in windows for b in w.blocks}}


# ---- the plain loader ---------------------------------------------------------------------------------------------

def _raw_files(url: str, folder: Path) -> tuple[Files, dict[int, bytes]]:
    """Write the training photos and their label maps as files, as the published loaders read them.

    Returns class -> (photo, label map), and image id -> the photo's bytes.
    """
    from pipelines.data import rle
    from pipelines.data.shardset import Shards

    shards, files, found = Shards(url), {}, {}  # type: ignore[var-annotated]
    folder.mkdir()
    pools = {c: shards.photos_of(c, "train") for c in shards.classes}
    for image_id in sorted({i for c, pool in pools.items() if len(pool) >= 2 for i in pool}):
        photo = shards.photo(image_id)
        labels = np.zeros((photo["height"], photo["width"]), dtype=np.uint8)
        for a in photo["annotations"]:
            labels[rle.union([i["rle"] for i in a["instances"]], *labels.shape)] = a["class_id"] + 1
        names = (folder / f"{image_id}.jpg", folder / f"{image_id}.png")
        names[0].write_bytes(photo["image"])
        Image.fromarray(labels).save(names[1])
        found[image_id] = photo["image"]
        for c, pool in pools.items():
            if len(pool) >= 2 and image_id in pool:
                files.setdefault(c, []).append((str(names[0]), str(names[1])))
    return files, found


class PlainEpisodes(Dataset):  # type: ignore[type-arg]
    """Draws an episode and opens its files as published few-shot loaders do."""

    def __init__(self, files: Files, config: dict[str, Any], length: int) -> None:
        self._files, self._config, self._length = files, config, length
        self._prepare = Preprocessor(side=config["side"])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng([self._config["seed"], number])
        class_id = int(rng.choice(list(self._files)))
        pool = self._files[class_id]
        query = int(rng.integers(len(pool)))
        others = [i for i in range(len(pool)) if i != query]
        supports = rng.choice(others, self._config["shots"], replace=self._config["shots"] > len(others))
        read = [self._read(pool[i], class_id) for i in (query, *supports)]
        return torch.stack([i for i, _ in read]), torch.stack([m for _, m in read])

    def _read(self, files: tuple[str, str], class_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        side = self._config["side"]
        image = Image.open(files[0]).convert("RGB")
        mask = np.asarray(Image.open(files[1])) == class_id + 1
        if self._config["tensors"]:
            return self._prepare([np.asarray(image)]).pixels[0], resize_mask(mask, side)
        square = image.resize((side, side), Image.Resampling.BILINEAR)
        small = Image.fromarray(mask.view(np.uint8)).resize((side, side), Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(square)), torch.from_numpy(np.array(small))


def _plain(files: Files, config: dict[str, Any], episodes: int) -> int:
    loader = DataLoader(PlainEpisodes(files, config, episodes), batch_size=config["batch"],
                        num_workers=config["workers"])
    return sum(len(images) for images, _ in loader)


# ---- the bound ----------------------------------------------------------------------------------------------------

def _once(photos: list[bytes], config: dict[str, Any], threads: int = 1) -> int:
    from fss_models.photo_files import decode_square, image_size

    with ThreadPoolExecutor(threads) as pool:
        return sum(1 for _ in pool.map(lambda data: decode_square(data, *image_size(data), config["side"]), photos))


def _masks(url: str, config: dict[str, Any]) -> tuple[float, float]:
    """(CPU seconds, wall seconds) to make the square of each mask that the epoch shows, once."""
    from pipelines.data.pixels import SampleReader

    specs, tables = _pool(url, config)
    reader = SampleReader(config["pixel_bytes"], config["side"])

    def work() -> int:
        return sum(1 for s in specs for place in (*s.references, *s.targets) if reader.masks(tables, place))

    return cpu_and_wall(work)
