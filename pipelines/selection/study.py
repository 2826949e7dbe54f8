"""Optuna's part of a search: it chooses the settings of a method's next trials, and says which settings matter.

The study lives in memory and is made anew by every command. It is asked for whole brackets and told their scores in the
order of the trials, not in that in which they ended: equal scores give equal trials.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fss_models.errors import FssError
from pipelines.config.sweep import RangeConfig, SearchConfig
from pipelines.selection.trials import Trial

LEAST = 8  # scores from which importance is computed


class SearchStudy:
    """The choice of settings for the trials of one method, from the scores of its earlier trials."""

    def __init__(self, config: SearchConfig, space: Mapping[str, RangeConfig], first: int) -> None:
        """`first`: number of trials of the first bracket, which are chosen without scores."""
        self.space = dict(sorted(space.items()))
        with _quiet_optuna() as optuna:
            sampler = (optuna.samplers.TPESampler(seed=config.seed, n_startup_trials=first, multivariate=True)
                       if config.sampler == "tpe" else optuna.samplers.RandomSampler(seed=config.seed))
            self._study = optuna.create_study(direction="maximize", sampler=sampler)
            self._ranges = {key: _distribution(values, optuna) for key, values in self.space.items()}
        self._asked: list[Any] = []

    def ask(self, count: int) -> list[dict[str, Any]]:
        """The settings of the next `count` trials, spread over what is promising."""
        with _quiet_optuna():
            new = [self._study.ask(self._ranges) for _ in range(count)]
        self._asked += new
        return [{key: _value(self.space[key], trial.params[key]) for key in self.space} for trial in new]

    def tell(self, trials: Sequence[Trial], rungs: Sequence[int]) -> None:
        """Give the scores of the oldest asked trials at `rungs`, in the order in which they were asked for."""
        with _quiet_optuna() as optuna:
            state = optuna.trial.TrialState
            for asked, trial in zip(self._asked, trials, strict=True):
                for steps, score in zip(rungs, trial.scores, strict=False):
                    asked.report(score.miou, steps)
                whole = len(trial.scores) == len(rungs)
                how = state.FAIL if trial.error else state.COMPLETE if whole else state.PRUNED
                self._study.tell(asked, trial.scores[-1].miou if whole and not trial.error else None, state=how)
        self._asked = []

    def importance(self, trials: Sequence[Trial], rung: int) -> dict[str, float]:
        """Setting -> its share in the differences between the scores at a rung.

        Empty for fewer than 8 such scores, which say nothing, and for equal ones. By PED-ANOVA (Watanabe et al.,
        IJCAI 2023), Optuna's default.
        """
        scored = [t for t in trials if len(t.scores) > rung and not t.error]
        if len(scored) < LEAST or len({t.scores[rung].miou for t in scored}) < 2:
            return {}
        with _quiet_optuna() as optuna:
            study = optuna.create_study(direction="maximize")
            for trial in scored:
                params = {k: _number(self.space[k], trial.values[k]) for k in self.space}
                study.add_trial(optuna.trial.create_trial(
                    params=params, distributions=self._ranges, value=trial.scores[rung].miou))
            found = optuna.importance.get_param_importances(study)
        return {key: float(share) for key, share in sorted(found.items(), key=lambda item: -item[1])}


def _distribution(values: RangeConfig, optuna: Any) -> Any:
    """Optuna's form of a range. A choice is its index, because Optuna stores no lists."""
    if values.choice:
        return optuna.distributions.CategoricalDistribution(range(len(values.choice)))
    low, high = values.uniform or values.log or (0.0, 1.0)
    return optuna.distributions.FloatDistribution(low, high, log=values.log is not None)


def _value(values: RangeConfig, found: Any) -> Any:
    return values.choice[found] if values.choice else found


def _number(values: RangeConfig, value: Any) -> Any:
    return values.choice.index(value) if values.choice else value


@contextmanager
def _quiet_optuna() -> Iterator[Any]:
    """Optuna, with messages of errors alone. Raises `FssError` if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise FssError("the search needs Optuna, which is not installed", hint="pip install 'fss[train]'") from error
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield optuna
    finally:
        optuna.logging.set_verbosity(level)
