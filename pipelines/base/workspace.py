"""Where things are below the output URL. Every stage finds the others' results through this page alone."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.base.storage import Store, join


@dataclass(frozen=True)
class Workspace:
    """The output folder (a local path or `s3://`) of one recipe."""

    url: str

    @property
    def store(self) -> Store:
        """The files below it."""
        return Store(self.url)

    def shards(self, dataset: str) -> str:
        """Shards of a dataset: manifest.json, images/, blocks/, failures.parquet, episodes/."""
        return join(self.store.url, "shards", dataset)

    @property
    def runs(self) -> str:
        """One folder a run: Ray Train's checkpoints, bundle/, episodes.parquet, result.json."""
        return join(self.store.url, "runs")

    def run(self, name: str) -> str:
        """One run's folder."""
        return join(self.runs, name)

    @property
    def leaderboard(self) -> str:
        """The table and the winner, as JSON."""
        return join(self.store.url, "leaderboard.json")

    @property
    def champion(self) -> str:
        """The promoted bundle."""
        return join(self.store.url, "champion")

    @property
    def supports(self) -> str:
        """Support sets given to the service: images and prompts, one folder an id."""
        return join(self.store.url, "supports")

    @property
    def service(self) -> str:
        """serve.json of the running service: address and process id."""
        return join(self.store.url, "serve.json")

    @property
    def report(self) -> str:
        """The HTML report."""
        return join(self.store.url, "report.html")
