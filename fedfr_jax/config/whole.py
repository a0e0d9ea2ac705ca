"""All settings of a run: the groups, and those of the chosen method."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from ml_collections import ConfigDict

from fedfr_jax.methods import METHODS, Recipe
from fedfr_jax.settings import (
    CheckpointConfig,
    DataConfig,
    EngineConfig,
    EvalConfig,
    FedConfig,
    HostileConfig,
    LossConfig,
    ModelConfig,
    PopulationConfig,
    PretrainConfig,
    PrivacyConfig,
    SimulatedTimeConfig,
)

_FEW_CLIENTS = 64  # up to so many are evaluated between rounds unless eval.every says otherwise


def method_config() -> Any:
    """The method to simulate, and a group of settings for each method that has its own.

    ``method.fedprox.weight`` is used if ``method.name`` is "fedprox". A method that is registered
    later has its group from then on.
    """
    return _method_config_type(
        tuple(
            (name, recipe.options)
            for name, recipe in METHODS.items()
            if dataclasses.fields(recipe.options)
        )
    )()


@functools.cache  # the same groups give the same type
def _method_config_type(groups: tuple[tuple[str, type], ...]) -> type:
    return dataclasses.make_dataclass(
        "MethodConfig",
        [("name", str, "fedfr"), *((name, options, options()) for name, options in groups)],
        frozen=True,
    )


@dataclasses.dataclass(frozen=True)
class Config:
    """All settings of a run."""

    seed: int = 0  # pretraining, initialization, batches
    method: Any = dataclasses.field(default_factory=method_config)  # see method_config()
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    pretrain: PretrainConfig = dataclasses.field(default_factory=PretrainConfig)
    fed: FedConfig = dataclasses.field(default_factory=FedConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    population: PopulationConfig = dataclasses.field(default_factory=PopulationConfig)
    simulated_time: SimulatedTimeConfig = dataclasses.field(default_factory=SimulatedTimeConfig)
    privacy: PrivacyConfig = dataclasses.field(default_factory=PrivacyConfig)
    hostile: HostileConfig = dataclasses.field(default_factory=HostileConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)

    @property
    def recipe(self) -> Recipe:
        """What the method does differently from the others."""
        return METHODS[self.method.name]

    @property
    def rounds(self) -> int:
        """Rounds of the run: ``fed.rounds`` and those that the method adds."""
        return self.fed.rounds + self.recipe.extra_rounds

    @property
    def evaluate_every(self) -> int:
        """Rounds between evaluations; 0: only at the end."""
        if self.eval.every >= 0:
            return self.eval.every
        return -(-self.rounds // 5) if self.fed.num_clients <= _FEW_CLIENTS else 0

    @property
    def options(self) -> Any:
        """The method's own settings; None where it has none."""
        return getattr(self.method, self.method.name, None)


def default_config() -> ConfigDict:
    """All settings at their defaults, as a ``ConfigDict`` that refuses unknown names."""
    return ConfigDict(dataclasses.asdict(Config())).lock()
