"""Expected lengths of runs: their steps and episodes at the rates measured in earlier runs of the same kind."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from statistics import fmean
from typing import Any

from fss_models.errors import FssError
from pipelines.base.storage import Store
from pipelines.config.evaluate import EvalConfig
from pipelines.config.run import RunSpec
from pipelines.config.section import Section
from pipelines.evaluation.results import RunResult

FILE = "sweep/timings.json"
WEIGHT = 0.3  # weight of the newest measurement in the running mean
UNKNOWN = {"step_s": 1.0, "episode_s": 0.1, "start_s": 10.0}  # before any measurement; only their ratios matter


class RunWork(Section):
    """Amount of work of each stage of a run, in steps or episodes."""

    selecting: int = 0  # steps
    choosing: int = 0  # episodes
    training: int = 0  # steps
    scoring: int = 0  # episodes

    @staticmethod
    def of(spec: RunSpec, config: EvalConfig) -> RunWork:
        """The work of a run. Its last training counts with all steps, because their number is not chosen yet."""
        train, steps = spec.train, spec.steps
        policy = train.selection if spec.trains else "none"
        points = min(train.select.points, steps)
        whole = config.episodes * config.draws
        each = train.select.episodes if policy == "base-holdout" else whole
        return RunWork(selecting=steps if policy == "base-holdout" else 0, training=steps, scoring=whole,
                       choosing=0 if policy == "none" else points * each)


def kind_of(spec: RunSpec) -> str:
    """The kind of a run, as a string. Runs of one kind take the same time for a step."""
    t, config = spec.train, json.dumps(spec.method.config, sort_keys=True)
    way = "-" + hashlib.sha256(config.encode()).hexdigest()[:4] if spec.method.config else ""
    return f"{spec.method.name}-{spec.method.preset}-b{t.batch}-k{t.shots}-j{t.targets}-w{t.workers}-{t.features}{way}"


class RunLengths:
    """Rates by kind of run, stored in the workspace from sweep to sweep."""

    def __init__(self, workspace: str) -> None:
        self._store = Store(workspace)
        self._rates: dict[str, dict[str, float]] = self._store.read_json(FILE) if self._store.exists(FILE) else {}

    def rates(self, spec: RunSpec) -> dict[str, float]:
        """Seconds of a step, an episode and a start: as measured for its kind, else its method, else all."""
        method = f"{spec.method.name}-{spec.method.preset}-"
        levels: tuple[Callable[[str], bool], ...] = (lambda k: k == kind_of(spec), lambda k: k.startswith(method),
                                                     lambda k: True)
        for level in levels:
            if found := [r for k, r in self._rates.items() if level(k)]:
                return {name: fmean(r[name] for r in found) for name in UNKNOWN}
        return UNKNOWN

    def stages(self, spec: RunSpec, work: RunWork) -> dict[str, float]:
        """Stage -> expected seconds."""
        rates = self.rates(spec)
        step, episode = rates["step_s"], rates["episode_s"]
        return {"selecting": work.selecting * step, "choosing": work.choosing * episode,
                "training": work.training * step, "scoring": work.scoring * episode + rates["start_s"]}

    def expect(self, spec: RunSpec, work: RunWork) -> float:
        """Expected seconds of the whole run."""
        return sum(self.stages(spec, work).values())

    def learn(self, result: RunResult, wall_s: float = 0.0) -> None:
        """Update the rates by a finished run. `wall_s` are the seconds from its start to its end, 0 if not measured."""
        scoring = float(result.details.get("seconds", 0.0))
        if not result.episodes or not scoring:
            return
        new: dict[str, Any] = {"episode_s": scoring / result.episodes}
        if result.steps:
            new["step_s"] = result.train_s / result.steps
        if wall_s:
            known = self._rates.get(kind_of(result.spec), UNKNOWN)
            chosen = result.details.get("selection", {})
            extra = (result.spec.steps if chosen.get("policy") == "base-holdout" else 0) * new.get("step_s", 0.0)
            extra += len(chosen.get("grid", {})) * chosen.get("episodes", 0) * new["episode_s"]
            new["start_s"] = max(wall_s - result.train_s - scoring - extra, 0.0) or known["start_s"]
        old = self._rates.get(kind_of(result.spec), {**UNKNOWN, **new})
        self._rates[kind_of(result.spec)] = {
            k: (1 - WEIGHT) * old[k] + WEIGHT * float(new[k] if k in new else old[k]) for k in UNKNOWN}

    def save(self) -> None:
        """Store the rates for the next sweep; a failure to write is ignored."""
        with suppress(FssError):
            self._store.write_json(FILE, self._rates)
