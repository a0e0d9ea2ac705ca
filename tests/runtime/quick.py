"""Whole runs in a second: few small images, no pretraining, and programs compiled once."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
import small  # noqa: F401 - registers the tiny network

from fedfr_jax import experiment
from fedfr_jax.algorithm.initialize import server_shapes
from fedfr_jax.experiment import Experiment, settings_of
from fedfr_jax.runtime import rounds
from fedfr_jax.runtime.checkpoints import RoundCheckpoints
from fedfr_jax.runtime.client_states import open_stores
from fedfr_jax.runtime.resuming import state_to_evaluate
from fedfr_jax.runtime.simulation import build_simulation

SETTINGS = {
    "method": {"name": "fedavg"},
    "data": {
        "image_size": 16,
        "generated": {"identities": 20, "images_per_identity": (6, 6)},
        "split": {
            "client_fraction": 0.8,
            "identities_per_client": (2, 2),
            "verification_images": 2,
        },
    },
    "model": {"name": "tiny", "embedding": 8},  # of small.py
    "pretrain": {"epochs": 0},
    "fed": {"num_clients": 5, "rounds": 4, "batch_size": 4, "local_epochs": (1,), "lr": 0.05},
    "population": {"cohort": 3},
    "eval": {"fars": (0.1,), "batch_size": 32, "examples": 0, "every": 0},
    "engine": {"lanes": 1, "conv": "grouped"},
}
_programs: dict = {}
_simulation = functools.lru_cache(build_simulation)


@pytest.fixture
def compiled_once(monkeypatch):
    """Runs that differ in no program share it; those of equal settings share their data."""
    real = rounds.compile_programs
    monkeypatch.setattr(experiment, "build_simulation", lambda config, *unused: _simulation(config))

    def compile_programs(sim, seeds=1):
        # Shapes follow from the settings, but for the images' and the schedule's.
        config = sim.config
        key = (
            str(
                dataclasses.replace(
                    config,
                    eval=None,
                    checkpoint=None,
                    seed=0,
                    data=None,
                    fed=dataclasses.replace(
                        config.fed, rounds=config.fed.rounds if config.recipe.extra_rounds else 0
                    ),
                    population=dataclasses.replace(config.population, schedule="", availability=""),
                )
            ),
            seeds,
        )
        if key not in _programs:
            _programs[key] = real(sim, seeds)
        return _programs[key]

    monkeypatch.setattr(experiment, "compile_programs", compile_programs)


def quick(**changes):
    """Settings of a quick run."""
    return settings_of(SETTINGS, **changes)


def rounds_only(folder, resume=False, config=None, **changes):
    """Runs the rounds that are left and returns the state, without the closing evaluation."""
    config = config or quick(**changes)
    with Experiment(config, folder, resume=resume) as run:
        run.run()
    return state(folder, config)


def state(folder, config):
    """(server, clients that have a state, their state) as an evaluation would find it."""
    sim = _simulation(config)
    checkpoints, [store] = RoundCheckpoints(folder), open_stores(sim, folder)
    with checkpoints, store:
        server = jax.device_get(state_to_evaluate(sim, checkpoints, [store]))
        assert server_shapes(sim.spec, sim.public.identities).round.dtype == server.round.dtype
        return server, store.touched(), store.read(store.touched())


def cohort(config, round_index):
    """Who takes part in a round."""
    clients = _simulation(config).schedule.cohorts[round_index]
    return clients[clients >= 0]


def same(a, b):
    """Whether two states are identical, bit for bit."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
