"""`fss plan`: measured figures are those of their files, sizes follow the code, nothing unknown is guessed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fss_models.errors import FssError
from jobs.cli import make_app
from jobs.recipes import load_recipe
from pipelines.sizing import figures
from pipelines.sizing.figures import Figure
from pipelines.sizing.plan import SizingPlan, SizingRequest, make_plan

ROOT = Path(__file__).resolve().parents[2]


def all_figures() -> list[Figure]:
    single = [v for v in vars(figures).values() if isinstance(v, Figure)]
    tables = [f for v in vars(figures).values() if isinstance(v, dict) for f in v.values() if isinstance(f, Figure)]
    return [*single, *tables]


def plan(images: int = 1_000_000, method: str = "sansa", preset: str = "nano", gpus: int = 0,
         **more: Any) -> SizingPlan:
    recipe = load_recipe(more.pop("recipe", "demo"), more.pop("sets", None))
    return make_plan(SizingRequest(images=images, method=method, preset=preset, gpus=gpus, cores=more.pop("cores", 16),
                                   recipe=recipe, **more))


@pytest.mark.parametrize("figure", [f for f in all_figures() if f.kind == "measured"], ids=lambda f: f.what)
def test_measured_figures_are_those_of_their_files(figure: Figure) -> None:
    found = json.loads((ROOT / figure.source.partition(": ")[0]).read_text())
    for key in figure.key.split("."):
        found = found[key]
    scale = 1e6 if figure.unit == "MB" and found > 1e6 else 1.0
    assert figure.value == pytest.approx(found / scale, rel=1e-9)


def test_every_figure_has_a_source() -> None:
    kinds = {f.kind for f in all_figures()}
    assert kinds == {"measured", "published", "assumed"}
    assert all(f.source for f in all_figures())


def test_shards_follow_the_schema() -> None:
    """The image table stores a photo once, the blocks once for each of its classes."""
    stage = plan(images=10_000, photo_kb=100, classes_per_photo=2).stages[0]
    assert stage.s3_gb == pytest.approx(10_000 * 100e3 * 3 / 1e9)
    assert stage.hours == pytest.approx(10_000 / figures.BUILD_RATE.value / 16 / 3600)


def test_a_sweep_follows_the_recipe() -> None:
    sets = ["train.steps=100", "train.batch=8", "sweep.folds=[0,1,2]", "sweep.seeds=[0,1]", "eval.episodes=50"]
    assert "6 runs of 800 clips and 50 test episodes" in plan(sets=sets).stages[1].work
    assert "3 runs of 0 clips" in plan(method="prior", sets=sets).stages[1].work  # it trains nothing: one seed
    by_epochs = plan(images=1000, sets=["train.epochs=2", "train.batch=10", "data.split.test_fraction=0.4"])
    assert "4 runs of 1,200 clips" in by_epochs.stages[1].work


def test_base_learners_come_before_the_sweep_of_methods_that_build_on_them() -> None:
    sets = ["base_learner.steps=50", "base_learner.batch=4", "sweep.folds=[0,1,2]", "sweep.seeds=[0,1]"]
    stages = plan(method="bam", gpus=2, sets=sets).stages
    assert [s.name for s in stages] == ["build shards", "base learners", "sweep", "label"]
    assert "6 runs of 200 photos" in stages[1].work
    held_out = plan(method="hdmnet", gpus=2, sets=[*sets, "train.selection=base-holdout"]).stages[1]
    assert "12 runs of 200 photos" in held_out.work
    assert held_out.hours == pytest.approx(2 * stages[1].hours)
    by_epochs = plan(images=1000, method="bam", gpus=1, sets=[*sets, "base_learner.epochs=2"]).stages[1]
    assert "6 runs of 1,400 photos" in by_epochs.work
    assert "base learners" not in [s.name for s in plan(sets=sets).stages]


def test_a_search_is_planned_by_its_brackets() -> None:
    sets = ["search.space={train.lr: {log: [0.001, 0.1]}}", "search.trials=9", "train.steps=90", "train.batch=4",
            "sweep.folds=[0,1,2]", "search.folds=[0,1]", "train.select.episodes=50", "train.selection=base-holdout"]
    stages = plan(sets=sets, cores=2).stages
    assert [s.name for s in stages] == ["build shards", "search", "sweep", "label"]
    steps = (9 * 10 + 3 * 20 + 1 * 60) * 2
    assert f"9 trials on 2 folds, {steps * 4:,} clips, 26 times 50 held-out episodes" in stages[1].work
    assert plan(sets=[*sets, "search.trials=17"], cores=2).stages[1].hours > stages[1].hours
    assert "search" not in [s.name for s in plan(method="prior", sets=sets).stages], "it trains nothing"
    assert "search" not in [s.name for s in plan(sets=sets[1:-2]).stages], "the recipe has no space"
    learners = plan(method="bam", gpus=2, sets=[*sets[:-2], "base_learner.steps=50"])
    assert "5 runs of" in learners.stages[1].work, "of the sweep's three folds, and of the search's two"
    with pytest.raises(FssError, match="too few for search"):
        plan(sets=[*sets, "train.steps=3"])


@pytest.mark.parametrize("images", [10**4, 10**5, 10**6, 10**7, 10**8])
def test_more_hardware_takes_less_time_and_more_photos_more(images: int) -> None:
    small, large = plan(images, preset="large", gpus=1), plan(images, preset="large", gpus=8)
    assert large.stages[2].hours == pytest.approx(small.stages[2].hours / 8)
    assert plan(images * 10, preset="large", gpus=8).stages[2].hours == pytest.approx(large.stages[2].hours * 10)
    assert f"{images:,} photos" in large.stages[2].work
    assert large.stages[2].gpus == 8
    assert any(f.kind == "published" for f in large.figures)
    assert any("no speed on a GPU was measured" in n for n in large.notes)


def test_what_no_machine_has_is_said() -> None:
    assert not any("mix them" in n for n in plan(10**6, cores=64).notes)
    assert any("mix them" in n for n in plan(10**9, cores=64).notes)


@pytest.mark.parametrize(("method", "preset", "gpus", "line"), [
    ("sansa", "large", 0, "no speed of sansa/large on a CPU was measured"),
    ("nobody", "nano", 0, "nobody"),
    ("sansa", "debug", 1, "no speed of preset 'debug' on a GPU"),
    ("fcp", "gigantic", 1, "gigantic"),
])
def test_what_is_unknown_is_not_guessed(method: str, preset: str, gpus: int, line: str) -> None:
    with pytest.raises(FssError, match=line):
        plan(method=method, preset=preset, gpus=gpus)


def test_a_method_that_encodes_pairs_costs_more_with_every_class() -> None:
    reduced = "label.precision=bfloat16"
    canvas = plan(1000, "sam3", "sam3", gpus=1, classes=10, sets=[reduced])
    token = plan(1000, "sam3", "sam3", gpus=1, classes=10, sets=[
        reduced, "methods=[{name: sam3, preset: sam3, config: {mode: token}}]"])
    assert "10 classes, 10,000 image encodings" in canvas.stages[2].work
    assert "1,010 image encodings" in token.stages[2].work
    assert any("canvas 10,000, token 1,010" in note for note in canvas.notes)
    assert canvas.stages[2].hours == pytest.approx(10_000 * (0.0717 + 0.0403) / 0.5 / 3600)
    assert token.stages[2].hours == pytest.approx((1_010 * 0.0717 + 10_000 * 0.0403) / 0.5 / 3600)
    assert "1,001 image encodings" in plan(1000).stages[2].work
    with pytest.raises(FssError, match="no speed of sam3/sam3 on a CPU"):
        plan(method="sam3", preset="sam3")


def test_a_plan_knows_the_precision() -> None:
    """On GPUs the known speeds are those of bfloat16; on CPUs a reduced precision has to be asked for."""
    def hours(stage: int, gpus: int, *sets: str) -> float:
        return plan(preset="large" if gpus else "nano", gpus=gpus, sets=list(sets)).stages[stage].hours

    reduced, compiled = figures.GPU_REDUCED.value, figures.GPU_COMPILED.value
    assert hours(2, 1) == pytest.approx(reduced * hours(2, 1, "label.precision=auto"))
    assert hours(2, 1, "label.precision=float16") == pytest.approx(
        compiled * hours(2, 1, "label.precision=auto", "label.compile=true"))
    assert hours(1, 1) > hours(1, 1, "train.precision=bfloat16") > hours(
        1, 1, "train.precision=bfloat16", "eval.precision=auto")
    assert hours(2, 0) == hours(2, 0, "label.precision=auto") > hours(2, 0, "label.precision=bfloat16")
    assert any("GPUs are slow" in note for note in plan(preset="large", gpus=1).notes)


def test_a_plan_knows_the_size_of_photos() -> None:
    """Beside the model's time, a photo costs what was measured at its size; on GPUs that takes cores."""
    def cost(megapixels: float, *sets: str) -> float:
        made = plan(photo_size=(1, round(megapixels * 1e6)), sets=list(sets), cores=1).stages[2].hours * 3600 / 1e6
        return made - 1 / figures.CPU_RATES["sansa"].value

    for size, known in figures.PHOTOS.items():
        for mode in ("published", "fast"):
            measured = 1 / known[mode].value - known["model"].value / 1e3
            assert cost(size, f"label.preprocessing={mode}") == pytest.approx(measured)
    assert cost(24.386) == pytest.approx(2 * cost(12.193))
    assert cost(0.1535) == pytest.approx(cost(0.307) / 2)
    assert cost(2.074) < cost(6.0) < cost(12.193)
    small, large = (plan(preset="tiny", gpus=1, photo_size=size, sets=["label.precision=auto"])
                    for size in ((480, 640), (3000, 4000)))
    assert small.stages[2].hours == large.stages[2].hours
    assert small.stages[2].cores < large.stages[2].cores
    assert small.stages[0].hours < large.stages[0].hours


def test_the_command() -> None:
    answer = CliRunner().invoke(make_app(), ["plan", "--images", "10000", "--method", "fcp"])
    assert answer.exit_code == 0, answer.output
    assert re.search(r"^label +[\d.e-]+ +0 +16", answer.output, re.M)
    assert "measured  clips that a core trains with fcp/nano: 9.6 clips/s" in answer.output
    answer = CliRunner().invoke(make_app(), ["plan", "--images", "10000", "--json"])
    assert [s["name"] for s in json.loads(answer.output)["stages"]] == ["build shards", "sweep", "label"]
