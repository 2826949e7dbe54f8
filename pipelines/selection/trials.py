"""What a search found: its trials, what was spent on each method, and the best settings as recipe files."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import ConfigDict, Field

from pipelines.base.storage import Store, join
from pipelines.base.text_table import text_table
from pipelines.config.recipe import Recipe
from pipelines.config.section import Section
from pipelines.config.sweep import RangeConfig
from pipelines.pages.parallel import choice_axis, number_axis, parallel_coordinates

FOLDER = "search"  # of a workspace


class TrialScore(Section):
    """The score of a trial at a rung: mIoU on the held-out classes, a fraction, the mean over folds."""

    steps: int  # of the first fold
    miou: float
    interval: tuple[float, float]  # 95 % interval
    folds: dict[int, float]  # fold -> mIoU


class Trial(Section):
    """One choice of settings with its scores, one for each rung that it reached. It is filled while a search runs."""

    model_config = ConfigDict(extra="forbid", frozen=False)
    number: int
    values: dict[str, Any]
    scores: list[TrialScore] = Field(default_factory=list)
    ended: str = ""  # why it ended, in words
    error: str = ""
    steps: int = 0  # optimiser steps over all folds
    clips: int = 0  # training clips over all folds
    seconds: float = 0.0  # spent on training and scoring, over all folds
    train_s: float = 0.0  # of these, on training
    runs: list[str] = Field(default_factory=list)  # one for each fold

    @property
    def rank(self) -> tuple[bool, int, float, int]:
        """Sorts trials, the best first: those without an error, by the rung that they reached, by their score there."""
        return bool(self.error), -len(self.scores), -(self.scores[-1].miou if self.scores else 0.0), self.number


class MethodSearch(Section):
    """The search of one method: its trials, the best first."""

    label: str
    method: str
    space: dict[str, RangeConfig]  # the settings that were tried
    rungs: int  # number of rungs
    trials: list[Trial]
    importance: dict[str, float]  # setting -> share; empty where scores did not differ
    importance_steps: int  # the rung at which importance was computed
    recipe: str = ""  # URL of the recipe with the best settings; empty if no trial was trained to its end

    @property
    def best(self) -> Trial | None:
        """The best trial of those that were trained to their end; None if there is none."""
        first = self.trials[0] if self.trials else None
        return first if first and not first.error and len(first.scores) == self.rungs else None

    @property
    def spent(self) -> tuple[int, int, float]:
        """(optimiser steps, clips, seconds of training and scoring) of all trials together."""
        return (sum(t.steps for t in self.trials), sum(t.clips for t in self.trials),
                sum(t.seconds for t in self.trials))


class SearchResult(Section):
    """The content of `search/<recipe>.json`: methods, the best first."""

    recipe: str
    folds: list[int]
    rungs: list[int]  # steps at which trials were compared, on the first fold
    held_out: dict[int, list[str]]  # fold -> names of the classes that trials were scored on
    list_hashes: dict[int, str]  # fold -> content hash of its list of episodes
    episodes: int  # of a fold
    methods: list[MethodSearch]
    code: str

    @property
    def settings(self) -> str:
        """The best trial's settings as options of a command (`--set KEY=VALUE ...`)."""
        best = self.methods[0].best if self.methods else None
        return " ".join(f"--set {k}={json.dumps(v)}" for k, v in best.values.items()) if best else ""


def read_search(recipe: Recipe) -> SearchResult | None:
    """The result of the last finished search of a recipe in its workspace, None where there is none."""
    store, name = Store(join(recipe.out, FOLDER)), f"{recipe.name}.json"
    return SearchResult.model_validate(store.read_json(name)) if store.exists(name) else None


def draw_search(found: MethodSearch) -> str:
    """Parallel coordinates of a method's trials as inline SVG, with their scores where importance was computed.

    Empty with fewer than two such trials.
    """
    scored = [(t, score.miou) for t in found.trials for score in t.scores if score.steps == found.importance_steps]
    if len(scored) < 2:
        return ""
    trials, scores = zip(*scored, strict=True)
    axes = [choice_axis(key, [str(t.values[key]) for t in trials], list(map(str, values.choice))) if values.choice else
            number_axis(key, [t.values[key] for t in trials], log=values.log is not None)
            for key, values in found.space.items()]
    axes.append(number_axis("mIoU (%)", [100 * s for s in scores]))
    return parallel_coordinates(axes, scores, f"{found.label}: {len(trials)} trials at {found.importance_steps} steps")


def write_recipe(recipe: Recipe, url: str) -> str:
    """Write a recipe as YAML, without what is as by default; returns `url`."""
    content = recipe.model_dump(mode="json", exclude_defaults=True)
    Store(url).write_bytes("", yaml.safe_dump(content, sort_keys=False, allow_unicode=True).encode())
    return url


def format_search(found: SearchResult) -> str:
    """The methods, and the trials of each, as tables for people, the best first; mIoU in percent."""
    held = "; ".join(f"fold {fold}: {', '.join(names)}" for fold, names in found.held_out.items())
    about = (f"Means over folds {', '.join(map(str, found.folds))}, {found.episodes} episodes each, of train photos of "
             f"held-out base classes ({held}). No novel class was seen.")
    parts = [_methods(found.methods), *(_trials(m) for m in found.methods), about]
    if found.methods and found.methods[0].recipe:
        parts.append(f"best: {found.settings}\nas a recipe: {found.methods[0].recipe}")
    return "\n\n".join(parts)


def _methods(methods: Sequence[MethodSearch]) -> str:
    rows = []
    for m in methods:
        steps, clips, seconds = m.spent
        score = m.best.scores[-1] if m.best else None
        rows.append([m.label, *_score(score), str(len(m.trials)), f"{steps:,}", f"{clips:,}", f"{seconds / 3600:.3g}"])
    return text_table(rows, head=["method", "mIoU", "95 % interval", "trials", "steps", "clips", "hours"])


def _trials(method: MethodSearch) -> str:
    head = [method.label, *method.space, "steps", "mIoU", "95 % interval", "ended"]
    rows = []
    for t in method.trials:
        last = t.scores[-1] if t.scores else None
        values = [f"{t.values[k]:.3g}" if isinstance(t.values[k], float) else str(t.values[k]) for k in method.space]
        rows.append([str(t.number), *values, str(last.steps) if last else "-", *_score(last), t.error or t.ended])
    shares = ", ".join(f"{key} {share:.0%}" for key, share in method.importance.items())
    note = f"\nimportance at {method.importance_steps} steps: {shares}" if shares else ""
    return text_table(rows, head=head, left=(len(head) - 1,)) + note


def _score(score: TrialScore | None) -> list[str]:
    if score is None:
        return ["-", "-"]
    return [f"{score.miou * 100:.1f}", f"{score.interval[0] * 100:.1f}-{score.interval[1] * 100:.1f}"]
