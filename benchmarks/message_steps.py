"""What clipping, noise and quarantine cost, and rules of aggregation, as a share of a round.

    python -m benchmarks.message_steps --rules=median,multi_krum

One warm round of FedAvg with a SphereNet-10 of random weights, with and without the steps, in turn;
the median of the repeats. Only the ratio means something on a shared machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time

import jax
import numpy as np

from fedfr_jax import engine
from fedfr_jax.algorithm.plain import PlainRounds
from fedfr_jax.algorithm.spec import MessageSpec, RoundSpec
from fedfr_jax.engine.layout import Layout
from fedfr_jax.methods import METHODS
from fedfr_jax.models import build
from fedfr_jax.population.cohort_data import PublicData
from fedfr_jax.population.packing import pack_clients
from fedfr_jax.settings import FedConfig, LossConfig, ModelConfig, PrivacyConfig


def problem(clients: int, images: int, size: int):
    """(public data, cohort) of random images."""
    rng = np.random.default_rng(0)
    own = [
        (rng.integers(0, 256, (images, size, size, 3)).astype(np.uint8), np.arange(images) % 4)
        for _ in range(clients)
    ]
    nobody = np.zeros((0, size, size, 3), np.uint8)
    return PublicData(nobody, np.zeros(0, np.int32), 0), pack_clients(own, 1)


def with_steps(plain: RoundSpec) -> RoundSpec:
    """The same round with clipping, central noise and quarantine."""
    privacy = PrivacyConfig(clip_norm=1.0, noise_multiplier=1.0)
    return dataclasses.replace(
        plain,
        fed=dataclasses.replace(plain.fed, on_bad_update="quarantine"),
        message=MessageSpec(privacy, cohort=plain.fed.num_clients),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rules", default="", help="of aggregation, comma-separated")
    arguments = parser.parse_args()
    fed = FedConfig(
        num_clients=arguments.clients,
        batch_size=16,
        local_epochs=(1,),
        lr_decay_epochs=(),
        public_data="off",
        aggregation="uniform",
    )
    backbone = build(ModelConfig(depth=10, widths=(16, 32, 64, 128)), arguments.size, "custom")
    recipe = METHODS["fedavg"]
    plain = RoundSpec(backbone, fed, LossConfig(), recipe, recipe.options())
    cases = {"without": plain, "clipping, noise, quarantine": with_steps(plain)}
    for rule in arguments.rules.split(",") if arguments.rules else ():
        cases[rule] = dataclasses.replace(plain, fed=dataclasses.replace(fed, aggregator=rule))
    layout = Layout(engine.make_mesh(jax.devices()[:1]), 1, 32)
    public, cohort = problem(arguments.clients, arguments.images, arguments.size)
    variables = jax.device_get(backbone.init(jax.random.key(0)))
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    runs = {}
    for name, spec in cases.items():
        rounds = PlainRounds(spec, layout, public, cohort)
        server, heads = rounds.start(variables, jax.random.key(1))
        runs[name] = rounds, *rounds.step(server, heads, jax.random.key(2))[:2]
    for _ in range(arguments.repeats):
        for name, (rounds, *state) in runs.items():
            jax.block_until_ready(state)
            started = time.process_time()
            result = jax.block_until_ready(rounds.step(*state, jax.random.key(2)))
            seconds[name].append(time.process_time() - started)
            runs[name] = rounds, *result[:2]
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    numbers = sum(x.size for x in jax.tree.leaves(variables))
    print(
        f"{numbers:,} parameters, {arguments.clients} clients of {arguments.images} images: CPU "
        f"time of a round, {medians['without']:.2f} s without steps"
    )
    for name in list(cases)[1:]:
        print(f"  {name}: x {medians[name] / medians['without']:.3f} (repeats {seconds[name]})")


if __name__ == "__main__":
    main()
