"""Paths below the output URL of a recipe. Every stage finds the results of the others through this file alone."""

from __future__ import annotations

from dataclasses import dataclass

from pipelines.base.storage import Store, join


@dataclass(frozen=True)
class Workspace:
    """The output folder (a local path or `s3://`) of one recipe."""

    url: str

    @property
    def store(self) -> Store:
        """`Store` of the workspace."""
        return Store(self.url)

    def shards(self, dataset: str) -> str:
        """URL of a dataset's shards: manifest.json, images/, blocks/, failures.parquet, episodes/."""
        return join(self.store.url, "shards", dataset)

    @property
    def runs(self) -> str:
        """URL of the runs, one folder each: Ray Train's checkpoints, bundle/, episodes.parquet, result.json."""
        return join(self.store.url, "runs")

    def run(self, name: str) -> str:
        """URL of the folder of the run `name`."""
        return join(self.runs, name)

    @property
    def leaderboard(self) -> str:
        """URL of leaderboard.json: the scores of all methods, and the winner."""
        return join(self.store.url, "leaderboard.json")

    @property
    def champion(self) -> str:
        """URL of the promoted bundle."""
        return join(self.store.url, "champion")

    @property
    def supports(self) -> str:
        """URL of the service's support sets: images and prompts, one folder for each id."""
        return join(self.store.url, "supports")

    @property
    def label_features(self) -> str:
        """URL of the features that labelling jobs keep of their photos."""
        return join(self.store.url, "label_features")

    @property
    def service(self) -> str:
        """URL of serve.json: address and process id of the running service."""
        return join(self.store.url, "serve.json")

    @property
    def report(self) -> str:
        """URL of the HTML report."""
        return join(self.store.url, "report.html")
