"""Labelling as this project does it, compared with the loop of official repositories, in photos a second.

official  one episode a query: supports and query are encoded anew, one at a time, in float32; the first `official` of
          the queries, since each takes as long
ours      supports are memorised once; queries in batches, in the precision of the config, compiled if it says so
query     the official way without its supports: what each query costs if they are shared at no cost

All start from prepared photos of noise and end with logits. `ratio` is that of the first number of shots, in wall
time; `cpu_ratio` in CPU time, for a CPU that other work shares. `bound_by_sharing` is official to query in CPU time:
what sharing supports can gain with the same arithmetic. `mean_iou` is between the masks of both ways.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.episodes import disc_marks, first_set_pairs, label_separately, noise_photos
from benchmarks.timing import wall_and_cpu
from fss_models import registry
from fss_models.execution import Execution
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
    supports, queries = (noise_photos(model, n, model.side, config["seed"]) for n in (shots, config["images"]))
    marks = disc_marks(model, supports, model.side)

    few = min(config["official"], config["images"])

    def ours() -> torch.Tensor:
        with execution.autocast():
            memory = model.memorise(execution.encode(execution.upload(supports)), marks)
        found = []
        for first in range(0, config["images"], config["batch"]):
            some = queries.rows(first, first + config["batch"])
            features, pairs = execution.encode(execution.upload(some)), first_set_pairs(len(some))
            found.append(execution.download([execution.segment(memory, features, execution.indices(pairs)).logits]))
        return torch.cat([f.wait()[0] for f in found])

    def official() -> torch.Tensor:
        return torch.cat([one.cpu() for one in label_separately(model, supports, marks, queries.rows(0, few))])

    shared, pair = model.memorise(model.encode(supports.to(model.device)), marks), first_set_pairs(1).to(model.device)

    def query() -> list[torch.Tensor]:
        photos = (queries.rows(i, i + 1).to(model.device) for i in range(few))
        return [model.segment(shared, model.encode(photo), pair).logits.cpu() for photo in photos]

    a, b = ours()[:few] > 0, official() > 0
    iou = ((a & b).flatten(1).sum(1) / (a | b).flatten(1).sum(1).clamp(min=1)).where((a | b).flatten(1).any(1),
                                                                                     torch.ones(len(a)))
    wall, cpu = wall_and_cpu({"ours": ours, "official": official, "query": query}, config["repeats"])
    counts = {"ours": config["images"], "official": few, "query": few}
    wall, cpu = ({k: seconds[k] / counts[k] for k in counts} for seconds in (wall, cpu))
    return {"ratio": wall["official"] / wall["ours"], "cpu_ratio": cpu["official"] / cpu["ours"],
            "images_per_s": {k: 1 / v for k, v in wall.items()}, "mean_iou": float(iou.mean()),
            "bound_by_sharing": cpu["official"] / cpu["query"]}
