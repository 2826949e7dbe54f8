"""A recipe: everything that a chain of commands needs. Unknown keys are errors; defaults are in the sections."""

from __future__ import annotations

from pydantic import model_validator

from pipelines.config.base_learner import BaseLearnerConfig
from pipelines.config.choose import CalibrateConfig, ChooseConfig, PromoteConfig
from pipelines.config.data import DataConfig, MixtureConfig
from pipelines.config.evaluate import EvalConfig
from pipelines.config.label import LabelConfig, ServeConfig
from pipelines.config.method import MethodConfig
from pipelines.config.section import Section
from pipelines.config.sweep import SearchConfig, SweepConfig
from pipelines.config.train import FeaturesConfig, TrainConfig


class Recipe(Section):
    """Everything that a chain of commands needs; it can be printed and run again."""

    name: str = "demo"  # shown in tables and progress
    out: str = "out"  # URL of the workspace
    project: str = ""  # name of the MLflow experiment and of the model `fss-<project>`; empty: the dataset's
    tracking: str = ""  # MLflow URI; empty: MLFLOW_TRACKING_URI, else a SQLite file
    data: DataConfig = DataConfig()
    mixture: list[MixtureConfig] = []  # further datasets to train on
    methods: list[MethodConfig] = [MethodConfig(name="prior")]
    base_learner: BaseLearnerConfig = BaseLearnerConfig()
    train: TrainConfig = TrainConfig()
    features: FeaturesConfig = FeaturesConfig()
    eval: EvalConfig = EvalConfig()
    sweep: SweepConfig = SweepConfig()
    search: SearchConfig = SearchConfig()
    choose: ChooseConfig = ChooseConfig()
    promote: PromoteConfig = PromoteConfig()
    calibrate: CalibrateConfig = CalibrateConfig()
    serve: ServeConfig = ServeConfig()
    label: LabelConfig = LabelConfig()

    @model_validator(mode="after")
    def _mixture_leaves_room(self) -> Recipe:
        if sum(m.weight for m in self.mixture) >= 1:
            raise ValueError("mixture: the weights must leave a share for the recipe's own data")
        names = [self.data.name, *(m.data.name for m in self.mixture)]
        if len(set(names)) < len(names):
            raise ValueError(f"mixture: datasets need different names, not {names}")
        return self

    @property
    def project_name(self) -> str:
        """Name of the project, by default that of the dataset."""
        return self.project or self.data.name
