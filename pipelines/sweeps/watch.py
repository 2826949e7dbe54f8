"""The live table of a sweep: one row a run, on the terminal and in `sweep/state.json` for `fss sweep status`."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from fss_models.errors import FssError
from pipelines.base.progress import say
from pipelines.base.storage import Store
from pipelines.config.section import Section
from pipelines.evaluation.results import RunResult
from pipelines.sweeps.owner import is_alive

STATE = "sweep/state.json"
SHOWN = 30  # rows on a terminal; of the remaining runs only the number is shown
Status = Literal["waiting", "running", "done", "failed"]
ORDER: tuple[Status, ...] = ("running", "failed", "waiting", "done")


class RunState(Section):
    """A row of the table. `step` of `of` counts the stage's steps or episodes."""

    run: str
    cell: str = ""
    status: Status = "waiting"
    stage: str = ""
    step: int = 0
    of: int = 0
    loss: float | None = None
    miou: float | None = None
    episodes_per_s: float | None = None
    left_s: float = -1.0  # expected seconds until the run ends; -1: unknown
    tries: int = 0
    error: str = ""


class SweepState(Section):
    """The content of sweep/state.json."""

    sweep: str
    search: bool = False  # whether the runs are trials of `fss search`
    status: Literal["running", "finished", "stopped"] = "running"
    why: str = ""  # reason of a stop
    started: float  # seconds since 1970
    updated: float  # seconds since 1970
    left_s: float = -1.0  # expected seconds until all runs have ended; -1: unknown
    runs: list[RunState]

    def count(self, status: Status) -> int:
        """Number of runs with a status."""
        return sum(r.status == status for r in self.runs)

    @property
    def line(self) -> str:
        """Summary in one line, such as: 3 of 24 runs done, 1 failed, 2 under way, 18 waiting; about 12 min left."""
        rest = [f"{n} {what}" for what, n in (("failed", self.count("failed")), ("under way", self.count("running")),
                                              ("waiting", self.count("waiting"))) if n]
        said = ", ".join([f"{self.count('done')} of {len(self.runs)} runs done", *rest])
        left = self.left_s > 0 and self.status == "running"
        return said + (f"; about {format_seconds(self.left_s)} left" if left else "")


def read_state(workspace: str) -> SweepState:
    """The state of a workspace's last sweep; without a living owner it is `stopped`.

    Raises `FssError` if there was no sweep.
    """
    store = Store(workspace)
    if not store.exists(STATE):
        raise FssError("no sweep was run here", where=store.url, hint="start one with `fss sweep run`")
    state = SweepState.model_validate(store.read_json(STATE))
    if state.status != "running" or is_alive(store):
        return state
    runs = [r.model_copy(update={"status": "waiting"}) if r.status == "running" else r for r in state.runs]
    return state.model_copy(update={"status": "stopped", "why": "its process is gone", "runs": runs})


def format_seconds(seconds: float) -> str:
    """A duration for people, such as `45 s`, `12 min` or `1.6 h`; `-` if it is unknown (negative)."""
    if seconds < 0:
        return "-"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def table_of(state: SweepState, shown: int = SHOWN) -> Table:
    """The table of a sweep, with at most `shown` rows."""
    table = Table(title=f"{state.sweep}: {state.line}", title_justify="left", box=None, pad_edge=False)
    for name in ("run", "stage", "step", "loss", "mIoU", "episodes/s", "left"):
        table.add_column(name, justify="left" if name in ("run", "stage") else "right", no_wrap=True)
    rows = sorted(state.runs, key=lambda r: ORDER.index(r.status))
    for r in rows[:shown]:
        stage = escape(f"failed: {r.error[:60]}") if r.status == "failed" else (r.stage or r.status)
        running = r.status == "running"
        table.add_row(escape(r.run + (f" ({r.cell})" if r.cell else "")), stage if running or r.error else r.status,
                      f"{r.step}/{r.of}" if running and r.of else "", _number(r.loss, ".3f"),
                      _number(r.miou and r.miou * 100, ".1f"), _number(r.episodes_per_s if running else None, ".1f"),
                      format_seconds(r.left_s) if running else "")
    if len(rows) > shown:
        table.add_row(f"... and {len(rows) - shown} more")
    return table


def format_state(state: SweepState, shown: int = 10_000, width: int = 160) -> str:
    """The table of a sweep as text of `width` columns, with at most `shown` rows."""
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(table_of(state, shown))
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


class SweepWatch:
    """Shows the state of a sweep; with `save`, also writes it to the workspace. Use as a context manager."""

    def __init__(self, workspace: str, sweep: str, runs: Sequence[RunState], *, every_s: float = 15.0,
                 save: bool = True, search: bool = False) -> None:
        now = time.time()
        self.state = SweepState(sweep=sweep, search=search, started=now, updated=now, runs=list(runs))
        self._store, self._every, self._save = Store(workspace), every_s, save
        self._said, self._wrote = 0.0, 0.0
        self._live = Live(console=Console(stderr=True), refresh_per_second=2) if sys.stderr.isatty() else None

    def __enter__(self) -> SweepWatch:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._live:
            self._live.update(table_of(self.state))
            self._live.stop()

    def end_run(self, result: RunResult, tries: int = 0) -> None:
        """Record the result of a run that has ended."""
        self._change(result.run, {"status": "failed" if result.error else "done", "error": result.error, "stage": "",
                                  "miou": None if result.error else result.miou, "left_s": -1.0, "tries": tries})

    def update(self, running: Mapping[str, Mapping[str, Any]], left_s: float) -> None:
        """Set the rows of the runs under way and the expected seconds left.

        A terminal shows them at once, other outputs and the file every few seconds.
        """
        for run, row in running.items():
            self._change(run, {"status": "running", **row})
        for run in [r.run for r in self.state.runs if r.status == "running" and r.run not in running]:
            self._change(run, {"status": "waiting", "stage": ""})
        self.state = self.state.model_copy(update={"left_s": left_s, "updated": time.time()})
        self._show()

    def end(self, status: str, why: str = "") -> None:
        """Record that the sweep has ended, with `why` if it was stopped."""
        runs = [r.model_copy(update={"status": "waiting", "stage": ""}) if r.status == "running" else r
                for r in self.state.runs]
        self.state = self.state.model_copy(update={"status": status, "why": why, "runs": runs, "left_s": -1.0,
                                                   "updated": time.time()})
        self._write()

    def _change(self, run: str, values: Mapping[str, Any]) -> None:
        runs = [r.model_copy(update=dict(values)) if r.run == run and r.status != "done" else r
                for r in self.state.runs]
        self.state = self.state.model_copy(update={"runs": runs})

    def _show(self) -> None:
        now = time.monotonic()
        if self._live:
            self._live.update(table_of(self.state))
        elif now - self._said >= self._every:
            self._said = now
            say(f"{self.state.sweep}: {self.state.line}")
        if now - self._wrote >= (2.0 if self._store.is_local else 5.0):
            self._write()

    def _write(self) -> None:
        self._wrote = time.monotonic()
        if self._save:
            with suppress(FssError):  # a failure to write the state does not end the sweep
                self._store.write_json(STATE, self.state.model_dump())
