"""What compiling a round takes, by phase: a case of ``benchmarks.run``, in seconds of all cores.

    python -m benchmarks.compile_time small middle --rounds 3

One lane with the custom convolutions on two devices, as on a CPU. Nothing is read from a cache.
Cores' time hardly depends on what else the machine does. Prints a line of JSON per case: seconds to
trace and to lower (both Python, on one core), to compile, and of every round; and a sum over the
trained weights, which tells whether two versions compute the same bits.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import jax
import numpy as np

from benchmarks import cases, ours
from benchmarks.batches import KEY
from benchmarks.problem import Case, federation
from fedfr_jax import engine
from fedfr_jax.algorithm.plain import compile_round
from fedfr_jax.algorithm.state import Heads, ServerState
from fedfr_jax.runtime import simulation
from fedfr_jax.settings import EngineConfig

# The network of configs/quickstart.py.
QUICKSTART = Case(
    depth=10, widths=(16, 32, 64, 64), size=48, batch=32, clients=4, images=64, public=16
)
CASES = {
    "small": cases.SMALL,
    "middle": cases.MIDDLE,
    "paper": cases.PAPER,
    "quickstart": QUICKSTART,
}


def _state(case: Case, variables: Any) -> tuple[ServerState, Heads]:
    """Random heads, and a previous backbone that is near the global one."""
    rng, clients = np.random.default_rng(0), case.clients

    def draw(*shape: int) -> np.ndarray:
        return 0.1 * rng.standard_normal(shape, np.float32)

    k, d = case.identities, case.embedding
    heads = Heads(
        class_embeddings=draw(clients, k, d),
        transform={"weight": draw(clients, d, d), "bias": draw(clients, d)},
        binary_weight=draw(clients, k, d),
        binary_bias=draw(clients, k),
        previous=jax.tree.map(lambda x: np.stack([0.99 * x] * clients), variables),
        has_trained=np.ones(clients, bool),
    )
    return ServerState(np.int32(0), variables, draw(k if case.public else 0, d)), heads


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Seconds of all cores per phase of compiling a case's round, and of some rounds."""
    config = ours.config_of(case, "float32", EngineConfig(lanes=1, conv="custom"))
    layout, spec = simulation.make_layout(config), simulation.make_spec(config)
    variables = jax.device_get(spec.backbone.init(jax.random.key(0)))
    public, cohort = ours.data_of(case, federation(case), layout.mesh.size)
    server, heads = _state(case, variables)
    heads = jax.tree.map(lambda x: x[np.maximum(cohort.clients, 0)], heads)  # of the slots
    state = [engine.replicate(server, layout.mesh), engine.spread(heads, layout.mesh)]
    public = engine.replicate(public, layout.mesh)
    cohort = ours.place(cohort, layout)
    key = engine.replicate(jax.random.key(KEY), layout.mesh)
    clock = [time.process_time()]
    traced = compile_round(spec, layout).trace(*state, public, cohort, key)
    clock.append(time.process_time())
    lowered = traced.lower()
    clock.append(time.process_time())
    compiled = lowered.compile()
    clock.append(time.process_time())
    for _ in range(rounds):
        state = list(jax.block_until_ready(compiled(*state, public, cohort, key)[:2]))
        clock.append(time.process_time())
    taken = np.diff(clock).round(2).tolist()
    weights = jax.device_get(jax.tree.leaves(state[0].backbone))
    return dict(zip(("trace", "lower", "compile"), taken, strict=False)) | {
        "rounds": taken[3:],
        "sum of weights": sum(float(np.abs(w.astype(np.float64)).sum()) for w in weights),
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="+", choices=list(CASES))
    parser.add_argument("--rounds", type=int, default=0, help="rounds to run, for their time")
    given = parser.parse_args()
    engine.use_cpu_devices(2)
    jax.config.update("jax_enable_compilation_cache", False)
    for name in given.cases:
        print(json.dumps({"case": name} | measure(CASES[name], given.rounds)), flush=True)


if __name__ == "__main__":
    main()
