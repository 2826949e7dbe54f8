"""Labelling as this project does it, compared with the loop of official repositories, in photos a second.

official  one episode a query: supports and query are encoded anew, one at a time, in float32; the first `official` of
          the queries, since each takes as long
ours      supports are memorised once; queries in batches, in the precision of the config, compiled if it says so

Both start from prepared photos of noise and end with logits. `ratio` is that of the first number of shots, in wall
time; `cpu_ratio` in CPU time, for a CPU that other work shares. `mean_iou` is between the masks of both ways.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.timing import wall_and_cpu
from fss_models import registry
from fss_models.clip import Images
from fss_models.execution import Execution
from fss_models.prompts import mask_prompt
from fss_models.segmenter import Segmenter

CONFIG: dict[str, Any] = {"method": "sansa", "preset": "tiny", "shots": [1, 5], "images": 48, "official": 4,
                          "batch": 1,
                          "precision": "float32", "compile": False, "repeats": 2, "threads": 2, "device": "cpu",
                          "seed": 0}


def run(config: dict[str, Any]) -> dict[str, Any]:
    """The figures of each number of shots."""
    model = registry.build(config["method"], config["preset"], seed=config["seed"]).to(config["device"]).eval()
    execution = Execution(model, config["precision"], compiled=config["compile"])
    found = {f"{shots}-shot": _measure(model, execution, shots, config) for shots in config["shots"]}
    first = found[f"{config['shots'][0]}-shot"]
    return {"ratio": first["ratio"], "precision": execution.precision, **found}


@torch.inference_mode()
def _measure(model: Segmenter, execution: Execution, shots: int, config: dict[str, Any]) -> dict[str, Any]:
    supports, queries = (_noise(model, n, config["seed"]) for n in (shots, config["images"]))
    disc = mask_prompt(_disc(model.side))
    marks = model.collate([[disc] * shots], supports.sizes).to(model.device)

    few = min(config["official"], config["images"])

    def ours() -> torch.Tensor:
        with execution.autocast():
            memory = model.memorise(execution.encode(execution.upload(supports)), marks)
        found = []
        for first in range(0, config["images"], config["batch"]):
            some = _part(queries, first, config["batch"])
            pairs = torch.stack([torch.zeros(len(some), dtype=torch.int64), torch.arange(len(some))], dim=1)
            features = execution.encode(execution.upload(some))
            found.append(execution.download([execution.segment(memory, features, execution.indices(pairs)).logits]))
        return torch.cat([f.wait()[0] for f in found])

    def official() -> torch.Tensor:
        found, pair = [], torch.tensor([[0, shots]], device=model.device)
        for row in range(few):
            one = _part(queries, row, 1)
            frames = Images(pixels=torch.cat([supports.pixels, one.pixels]),
                            sizes=torch.cat([supports.sizes, one.sizes]))
            features = model.encode(frames.to(model.device))
            found.append(model.segment(model.memorise(features, marks), features, pair).logits.float().cpu())
        return torch.cat(found)

    a, b = ours()[:few] > 0, official() > 0
    iou = ((a & b).flatten(1).sum(1) / (a | b).flatten(1).sum(1).clamp(min=1)).where((a | b).flatten(1).any(1),
                                                                                     torch.ones(len(a)))
    wall, cpu = wall_and_cpu({"ours": ours, "official": official}, config["repeats"])
    counts = {"ours": config["images"], "official": few}
    wall, cpu = ({k: seconds[k] / counts[k] for k in counts} for seconds in (wall, cpu))
    return {"ratio": wall["official"] / wall["ours"], "cpu_ratio": cpu["official"] / cpu["ours"],
            "images_per_s": {k: 1 / v for k, v in wall.items()}, "mean_iou": float(iou.mean()),
            "bound_by_encoding": 1 / (1 / (1 + shots) + shots / (1 + shots) / config["images"])}


def _noise(model: Segmenter, count: int, seed: int) -> Images:
    rng = np.random.default_rng([seed, count])
    return model.prepare([rng.integers(0, 256, (model.side, model.side, 3), dtype=np.uint8) for _ in range(count)])


def _part(images: Images, first: int, count: int) -> Images:
    return Images(pixels=images.pixels[first:first + count], sizes=images.sizes[first:first + count])


def _disc(side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    return np.asarray((y - side / 2) ** 2 + (x - side / 2) ** 2 < (side / 4) ** 2)
