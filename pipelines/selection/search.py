"""`search`: find settings of methods by trials, scored on held-out base classes of folds, never on novel classes.

A trial is a run of the sweep on each fold, trained without the held-out classes: it is placed, resumed, watched and
tracked as every run. Hyperband (`pipelines/config/hyperband.py`) decides how far trials are trained, Optuna what they
try. Both depend on scores alone, not on the order in which trials end. A search that was killed is done again from the
start, with the scores that it had: it makes the same choices, and trains only what is missing.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

from pipelines.base.cluster import cluster
from pipelines.base.progress import say
from pipelines.base.storage import Store, join
from pipelines.base.version import code_version
from pipelines.base.workspace import Workspace
from pipelines.config.hyperband import Bracket, brackets_of, search_cost
from pipelines.config.recipe import Recipe
from pipelines.config.run import RunSpec
from pipelines.evaluation.results import RunResult
from pipelines.evaluation.trial import counts_of, drive_trial, read_score
from pipelines.features.build import ensure_features
from pipelines.selection.search_space import SearchedMethod, check_search
from pipelines.selection.study import LEAST
from pipelines.selection.trial_runs import TrialRuns
from pipelines.selection.trials import (
    FOLDER,
    MethodSearch,
    SearchResult,
    Trial,
    TrialScore,
    draw_search,
    write_recipe,
)
from pipelines.sweeps.base_learners import ensure_base_learners
from pipelines.sweeps.execute import PlannedRun, execute_below, tracked_parent, tracking
from pipelines.sweeps.lengths import RunWork
from pipelines.sweeps.machines import request_machines
from pipelines.sweeps.matrix import only_cell
from pipelines.sweeps.owner import own_workspace
from pipelines.sweeps.watch import RunState


def search(recipe: Recipe) -> SearchResult:
    """Try `search.trials` choices of settings of each method; returns them, the best first.

    Writes `search/<recipe>.json`, and a recipe and a picture for each method beside it. Meanwhile this process owns the
    workspace. A method without a trial that could be trained to its end has no best one. Raises `FssError` for a space
    that is empty or has settings that cannot be searched, for methods and folds that do not fit, and for a workspace in
    which a sweep is under way; `KeyboardInterrupt` when another process cancels the search.
    """
    recipe = only_cell(recipe)
    methods = check_search(recipe)
    with own_workspace(Workspace(recipe.out).url) as owner:
        try:
            with cluster() as ray:
                with request_machines(ray) as request:
                    request.ask([{"CPU": 1.0}])  # for Ray Data, which builds shards
                    runs = TrialRuns(recipe)
                return _search(recipe, methods, runs, ray)
        except KeyboardInterrupt:
            if owner.ended:
                say(f"the search stops: {owner.ended}")
            raise


def _search(recipe: Recipe, methods: Sequence[SearchedMethod], runs: TrialRuns, ray: Any) -> SearchResult:
    cost = search_cost(recipe.search, [rungs[-1] for rungs in runs.rungs.values()])
    say(f"search: {recipe.search.trials} trials of each of {len(methods)} methods on {len(runs.rungs)} folds; for each "
        f"method {cost.runs} runs, {cost.steps:,} steps and {cost.scorings} scorings of {runs.episodes} episodes")
    with tracking(recipe, ray) as tracker:
        driver = _Driver(recipe, methods, runs, tracker, ray)
        with tracked_parent(tracker, driver.parent, driver.params):
            for bracket in brackets_of(recipe.search):
                driver.run_bracket(bracket)
            return driver.finish()


class _Driver:
    """A search under way: its trials, and what is recorded of them."""

    def __init__(self, recipe: Recipe, methods: Sequence[SearchedMethod], runs: TrialRuns, tracker: Any,
                 ray: Any) -> None:
        self.recipe, self.methods, self.runs, self.tracker, self.ray = recipe, methods, runs, tracker, ray
        content = [m.recipe.model_dump_json(include={"methods", "train", "search"}) for m in methods]
        digest = hashlib.sha256("\n".join([runs.data_hash, *content]).encode()).hexdigest()[:8]
        self.parent = f"search-{recipe.name}-{digest}"
        self.rows: list[RunState] = []  # of runs that ended in earlier calls of the scheduler

    @property
    def params(self) -> dict[str, Any]:
        """MLflow parameters of the search."""
        return {"recipe": self.recipe.name, "search": self.recipe.search.model_dump(mode="json"),
                "folds": ",".join(map(str, self.runs.rungs))}

    def run_bracket(self, bracket: Bracket) -> None:
        """Choose a bracket's trials for every method, train them from rung to rung, and tell the scores."""
        going = {}
        for method in self.methods:
            going[method.label] = new = method.ask(bracket.sizes[0])
            for trial in new:
                self.tracker.run.remote(self._key(method, trial), parent=self.parent, params=trial.values,
                                        tags={"fss.method": method.label, "fss.trial": trial.number})
        started = {label: list(trials) for label, trials in going.items()}
        for rung, further in enumerate((*bracket.sizes[1:], 0), start=bracket.first):
            self._run_rung(going, rung)
            for method in self.methods:
                going[method.label] = self._halve(method, going[method.label], further)
        for method in self.methods:
            method.study.tell(started[method.label], self.runs.reference)

    def _halve(self, method: SearchedMethod, trials: Sequence[Trial], further: int) -> list[Trial]:
        """The best trials, which go on. The others end: their checkpoints are deleted."""
        ranked = sorted(trials, key=lambda t: t.rank)
        on = [t for t in ranked[:further] if not t.error]
        used = {name for t in on for name in t.runs}
        for place, trial in enumerate(ranked, start=1):
            if trial in on:
                continue
            steps = trial.scores[-1].steps if trial.scores else 0
            trial.ended = ("failed" if trial.error else "trained to its end" if not further else
                           f"stopped at {steps} steps: {place} of {len(ranked)}, {further} went on")
            for name in set(trial.runs) - used:
                Store(join(self.runs.folder, name)).delete()
            key = self._key(method, trial)
            self.tracker.tags.remote(key, {"fss.ended": trial.error or trial.ended})
            self.tracker.end.remote(key, *(["FAILED"] if trial.error else []))
        return on

    def _run_rung(self, going: dict[str, list[Trial]], rung: int) -> None:
        """Train all trials that go on to a rung, on every fold, and score them there."""
        plans: dict[str, PlannedRun] = {}
        for method in self.methods:
            new: list[RunSpec] = []
            for trial in going[method.label]:
                specs = self.runs.specs(method, trial.values)
                trial.runs = [s.name for s in specs]
                for spec in specs:
                    steps = self.runs.rungs[spec.fold or 0][rung]
                    if read_score(spec, self.runs.scoring, steps) is None:
                        context = self.runs.context(spec, rung)
                        plans[spec.name] = PlannedRun(
                            context, self.runs.scoring, cell=f"trial {trial.number}", parent=self._key(method, trial),
                            drive=drive_trial, amount=RunWork(training=steps, scoring=self.runs.episodes))
                        new.append(spec)
            self._prepare(method, new)
        failed = self._execute(list(plans.values()))
        for method in self.methods:
            for trial in going[method.label]:
                self._record(method, trial, rung, failed)

    def _prepare(self, method: SearchedMethod, specs: Sequence[RunSpec]) -> None:
        """Make what runs build on: base learners and kept features."""
        ensure_base_learners(method.recipe, specs, self.ray)
        if specs and self.recipe.train.features != "off":
            ensure_features(method.recipe, specs, self.ray)

    def _execute(self, plans: list[PlannedRun]) -> dict[str, RunResult]:
        """Run the plans; the results of those that failed."""
        if not plans:
            return {}
        now = {p.name for p in plans}
        threads = max(1, math.floor(self.recipe.sweep.cpus_per_run / self.recipe.train.workers))
        found = execute_below(self.parent, self.recipe, plans, self.ray, self.tracker, save=True, threads=threads,
                              before=[r for r in self.rows if r.run not in now], search=True)
        self.rows = [r for r in self.rows if r.run not in now]
        self.rows += [RunState(run=n, status="failed" if r.error else "done", error=r.error,
                               miou=None if r.error else r.miou) for n, r in found.items()]
        return {name: result for name, result in found.items() if result.error}

    def _record(self, method: SearchedMethod, trial: Trial, rung: int, failed: dict[str, RunResult]) -> None:
        """Write the scores of a trial up to a rung, and what they took, into the trial and into MLflow."""
        specs = self.runs.specs(method, trial.values)
        errors = [f"fold {s.fold}: {failed[s.name].error}" for s in specs if s.name in failed]
        if errors:
            trial.error = errors[0]
            return
        for at in range(len(trial.scores), rung + 1):
            results = [self.runs.result(s, at) for s in specs]
            counts = [(r.spec.fold or 0, [counts_of(s, self.runs.scoring, r)])
                      for s, r in zip(specs, results, strict=True)]
            score = TrialScore(steps=self.runs.reference[at], miou=sum(r.miou for r in results) / len(results),
                               interval=self.runs.interval(counts), folds={r.spec.fold or 0: r.miou for r in results})
            trial.scores.append(score)
            trial.seconds += sum(float(r.details["seconds"]) for r in results)
            self.tracker.metrics.remote(self._key(method, trial), {
                "select/miou": score.miou, "select/miou_low": score.interval[0], "select/miou_high": score.interval[1],
                **{f"select/miou_fold{f}": v for f, v in score.folds.items()}}, score.steps)
        last = [self.runs.result(s, rung) for s in specs]
        trial.steps = sum(r.steps for r in last)
        trial.clips = sum(r.steps * s.train.batch for s, r in zip(specs, last, strict=True))
        trial.seconds += sum(r.train_s for r in last) - trial.train_s
        trial.train_s = sum(r.train_s for r in last)

    def _key(self, method: SearchedMethod, trial: Trial) -> str:
        return f"{self.parent}-{method.label}-t{trial.number:03d}"

    def finish(self) -> SearchResult:
        """Write the results, the best recipes and the pictures."""
        found = SearchResult(
            recipe=self.recipe.name, folds=list(self.runs.rungs), rungs=list(self.runs.reference),
            held_out=self.runs.held_out_names, list_hashes=self.runs.list_hashes, episodes=self.runs.episodes,
            methods=sorted((self._finish_method(m) for m in self.methods),
                           key=lambda m: -(m.best.scores[-1].miou if m.best else -1.0)), code=code_version())
        Store(join(self.recipe.out, FOLDER)).write_json(f"{self.recipe.name}.json", found.model_dump(mode="json"))
        if found.settings:
            self.tracker.tags.remote(self.parent, {"fss.best": f"{found.methods[0].label} {found.settings}"})
        return found

    def _finish_method(self, method: SearchedMethod) -> MethodSearch:
        url, rungs = join(self.recipe.out, FOLDER, f"{self.recipe.name}-{method.label}"), self.runs.reference
        trials = sorted(method.trials, key=lambda t: t.rank)
        reached = [sum(len(t.scores) > rung for t in trials) for rung in range(len(rungs))]
        rung = max(r for r in range(len(rungs)) if reached[r] >= max(LEAST, len(trials) / 2) or r == 0)
        found = MethodSearch(label=method.label, method=method.recipe.methods[0].name, space=method.study.space,
                             rungs=len(rungs), trials=trials, importance=method.study.importance(trials, rung),
                             importance_steps=rungs[rung])
        if found.best:
            found = found.model_copy(update={
                "recipe": write_recipe(method.best_recipe(found.best.values), f"{url}.yaml")})
            self.tracker.artifact.remote(self.parent, found.recipe)
        if picture := draw_search(found):
            Store(f"{url}.svg").write_bytes("", picture.encode())
            self.tracker.artifact.remote(self.parent, f"{url}.svg")
        return found
