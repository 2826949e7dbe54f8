"""What `fss eval` and `fss gallery` score on: a fold of a recipe's dataset, or a directory from the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fss_models.errors import FssError
from jobs.recipes import load_recipe
from pipelines.config.evaluate import EvalConfig
from pipelines.config.recipe import Recipe

if TYPE_CHECKING:
    from pipelines.data.shardset import Shards
    from pipelines.data.testset import EvaluationSet, TestSetRequest

BundleOption = Annotated[str, typer.Option("--bundle", "-b", help="Folder or URL of the bundle, or shipped[:NAME] for "
                                           "one that ships with fss.")]
RecipeOption = Annotated[str | None, typer.Option("--recipe", "-r", help="Recipe whose data are used: a name or a YAML "
                                                  "file (default: demo).")]
FoldOption = Annotated[int, typer.Option("--fold", "-f", help="Fold whose classes are tested; -1: all classes (only "
                                         "with a recipe).")]
DatasetOption = Annotated[str, typer.Option("--dataset", help="Score on --root instead of a recipe's data: pascal5i or "
                                            "coco20i.")]
RootOption = Annotated[str, typer.Option("--root", help="With --dataset: VOC2012 directory or its parent, or COCO "
                                         "directory.")]
AnnotationsOption = Annotated[str, typer.Option("--annotations", help="With --dataset coco20i: annotation JSON, "
                                                "relative to --root.")]
ListsOption = Annotated[str, typer.Option("--lists", help="With --dataset: folder of HSNet's lists. Without it the "
                                          "list is drawn by the published rule.")]
SplitOption = Annotated[str, typer.Option("--split", help="With --dataset: JSON that splits the photos; only its test "
                                          "photos are used.")]
KeyOption = Annotated[str, typer.Option("--split-key", help="Entry of the --split file (default: name of the --root "
                                        "folder).")]
ShotOption = Annotated[int | None, typer.Option("--shot", "-k", min=1, help="With --dataset: supports of an episode "
                                                "(default: 1).")]
EpisodesOption = Annotated[int | None, typer.Option("--episodes", "-n", min=1, help="With --dataset: number of "
                                                    "episodes (default: 1000).")]
SeedOption = Annotated[int | None, typer.Option("--seed", help="With --dataset: seed of the list (default: 0).")]

# keys that --set may change together with --dataset
_USABLE_KEYS = ("choose.", "eval.batch", "eval.prompts", "eval.at", "sweep.gpus_per_run", "sweep.cpus_per_run")


@dataclass(frozen=True, kw_only=True)
class EvaluationTarget:
    """A recipe, its shards, the fold (None: all classes), and the test set if --dataset is given."""

    recipe: Recipe
    shards: Shards
    fold: int | None
    test: EvaluationSet | None = None

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return self.test.test_list.dataset if self.test else self.recipe.data.name

    @property
    def facts(self) -> dict[str, Any]:
        """Description of the test set as a JSON object; empty for a recipe's data."""
        listed = self.test.test_list if self.test else None
        if self.test is None or listed is None:
            return {}
        return {"dataset": listed.dataset, "root": self.recipe.data.source.root, "fold": listed.fold,
                "shot": listed.shots, "seed": listed.seed, "list": {"family": listed.family, "status": listed.status,
                                                                    "origin": listed.origin, "url": self.test.url},
                "photos": self.test.photos, "photos_absent": self.test.absent, "dropped_classes": self.test.dropped}


def prepare_target(
    *, recipe: str | None, sets: list[str] | None, out: str | None, dataset: str, fold: int, **direct: Any
) -> EvaluationTarget:
    """Build missing shards and episode lists; returns what to score on.

    `direct`: fields of `TestSetRequest` from the command line ("" or None: option not used). Raises `FssError` for
    options that exclude each other or would be ignored.
    """
    given = {k: v for k, v in direct.items() if v not in ("", None)}
    if not dataset:
        if given:
            option = "split-key" if "key" in given else "shot" if "shots" in given else next(iter(given))
            raise FssError(f"--{option} works with --dataset only",
                           hint="for a recipe use --set, such as --set eval.shots=5")
        from pipelines.data.ensure import ensure_shards

        loaded = load_recipe(recipe or "demo", sets, out=out)
        return EvaluationTarget(recipe=loaded, shards=ensure_shards(loaded), fold=None if fold < 0 else fold)
    if recipe:
        raise FssError("--recipe and --dataset both say what is tested", hint="leave one out")
    if not direct.get("root"):
        raise FssError(f"--dataset {dataset} needs the folder of its photos", hint="give --root")
    for item in sets or []:
        if not item.startswith(_USABLE_KEYS):
            raise FssError(f"--set {item.partition('=')[0]} would be ignored with --dataset",
                           hint=f"usable keys: {', '.join(_USABLE_KEYS)}")
    from pipelines.data.testset import TestSetRequest

    return _directory_target(TestSetRequest(dataset=dataset, fold=fold, **given), load_recipe("demo", sets, out=out))


def _directory_target(request: TestSetRequest, base: Recipe) -> EvaluationTarget:
    from pipelines.base.progress import say
    from pipelines.base.workspace import Workspace
    from pipelines.data.shardset import Shards
    from pipelines.data.testset import open_test_set

    test = open_test_set(request, base.out)
    if test.absent:
        say(f"{test.absent} photos of the published list are left out: they are not in the test set")
    for name, why in test.dropped.items():
        say(f"class left out: {name} ({why})")
    scored = EvalConfig(list=test.url, **base.eval.model_dump(include={"batch", "prompts", "at"}))
    recipe = base.model_copy(update={"name": request.dataset, "data": test.data, "eval": scored})
    return EvaluationTarget(recipe=recipe, shards=Shards(Workspace(base.out).shards(test.data.name)), fold=request.fold,
                            test=test)
