"""What `fss eval` and `fss gallery` look at: a fold of a recipe's dataset, or a directory named on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from fss_models.errors import FssError
from jobs.recipes import load_recipe
from pipelines.base.progress import say
from pipelines.base.workspace import Workspace
from pipelines.config.evaluate import EvalConfig
from pipelines.config.recipe import Recipe
from pipelines.data.ensure import ensure_shards
from pipelines.data.shardset import Shards
from pipelines.data.testset import EvaluationSet, TestSetRequest, open_test_set

BundleOption = Annotated[str, typer.Option("--bundle", "-b", help="URL of the bundle; shipped[:NAME]: fss's own.")]
RecipeOption = Annotated[str | None, typer.Option("--recipe", "-r", help="A recipe's data; default demo.")]
FoldOption = Annotated[int, typer.Option("--fold", "-f", help="Which fold's classes; -1: all (recipes only).")]
DatasetOption = Annotated[str, typer.Option("--dataset", help="Instead of a recipe: pascal5i or coco20i, from --root.")]
RootOption = Annotated[str, typer.Option("--root", help="VOC2012 or COCO directory, or the parent of VOC2012.")]
AnnotationsOption = Annotated[str, typer.Option("--annotations", help="coco20i: the JSON below the root.")]
ListsOption = Annotated[str, typer.Option("--lists", help="Folder of HSNet's lists; else a list is drawn by rule.")]
SplitOption = Annotated[str, typer.Option("--split", help="JSON of held-out photos: only its test list is tested.")]
KeyOption = Annotated[str, typer.Option("--split-key", help="Its entry; default the last folder of --root.")]
ShotOption = Annotated[int | None, typer.Option("--shot", "-k", min=1, help="With --dataset; default 1.")]
EpisodesOption = Annotated[int | None, typer.Option("--episodes", "-n", min=1, help="With --dataset; default 1000.")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="With --dataset; default 0.")]

_FREE = ("choose.", "eval.batch", "eval.prompts", "eval.at", "sweep.gpus_per_run", "sweep.cpus_per_run")


@dataclass(frozen=True, kw_only=True)
class EvaluationTarget:
    """A recipe whose data are there, the fold (None: all classes), and the directory's test set where it is one."""

    recipe: Recipe
    shards: Shards
    fold: int | None
    test: EvaluationSet | None = None

    @property
    def name(self) -> str:
        """The dataset's."""
        return self.test.test_list.dataset if self.test else self.recipe.data.name

    @property
    def facts(self) -> dict[str, Any]:
        """What was tested, as JSON."""
        listed = self.test.test_list if self.test else None
        if self.test is None or listed is None:
            return {}
        return {"dataset": listed.dataset, "root": self.recipe.data.source.root, "fold": listed.fold,
                "shot": listed.shots, "seed": listed.seed, "list": {"family": listed.family, "status": listed.status,
                                                                    "origin": listed.origin, "url": self.test.url},
                "photos": self.test.photos, "photos_absent": self.test.absent, "dropped_classes": self.test.dropped}


def evaluation_target(
    *, recipe: str | None, sets: list[str] | None, out: str | None, dataset: str, fold: int, **direct: Any
) -> EvaluationTarget:
    """Build what is missing. `direct` are the fields of `TestSetRequest` as they were given ("" or None: not given).

    Raises `FssError` for options that exclude each other or would be ignored.
    """
    given = {k: v for k, v in direct.items() if v not in ("", None)}
    if not dataset:
        if given:
            option = "split-key" if "key" in given else "shot" if "shots" in given else next(iter(given))
            raise FssError(f"--{option} is of --dataset", mend="a recipe's: --set eval.shots=5 and the like")
        loaded = load_recipe(recipe or "demo", sets, out=out)
        return EvaluationTarget(recipe=loaded, shards=ensure_shards(loaded), fold=None if fold < 0 else fold)
    if recipe:
        raise FssError("--recipe and --dataset both say what is tested", mend="leave one out")
    if not direct.get("root"):
        raise FssError(f"where are the photos of --dataset {dataset}?", mend="give --root")
    for item in sets or []:
        if not item.startswith(_FREE):
            raise FssError(f"--set {item.partition('=')[0]} would be ignored with --dataset",
                           mend=f"of use there: {', '.join(_FREE)}")
    return _directory(TestSetRequest(dataset=dataset, fold=fold, **given), load_recipe("demo", sets, out=out))


def _directory(wish: TestSetRequest, base: Recipe) -> EvaluationTarget:
    test = open_test_set(wish, base.out)
    if test.absent:
        say(f"{test.absent} photos of the published list are not tested here: they are left out")
    for name, why in test.dropped.items():
        say(f"dropped {name}: {why}")
    scored = EvalConfig(list=test.url, **base.eval.model_dump(include={"batch", "prompts", "at"}))
    recipe = base.model_copy(update={"name": wish.dataset, "data": test.data, "eval": scored})
    return EvaluationTarget(recipe=recipe, shards=Shards(Workspace(base.out).shards(test.data.name)), fold=wish.fold,
                            test=test)
