"""Rounds in parts (``engine.part``) have the results of whole rounds."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from quick import quick, rounds_only

from fedfr_jax.algorithm.features import Device, Shared
from fedfr_jax.algorithm.pool import Client, make_pool
from fedfr_jax.algorithm.state import ServerState
from fedfr_jax.errors import ConfigError, InputError
from fedfr_jax.experiment import Experiment
from fedfr_jax.population.cohort_data import PublicData
from fedfr_jax.population.images import StoredImages
from fedfr_jax.population.parts import capacity_for, parts_of
from fedfr_jax.runtime import memory, parts
from fedfr_jax.runtime.workdir import read_metrics

pytestmark = pytest.mark.usefixtures("blank_figures")
LOSSES = ("loss", "identification", "contrastive", "binary", "images", "hard_negatives_mean")


def in_both_ways(tmp_path, part=1, lanes=1, **changes):
    """(states, metrics) of a run with whole rounds and of one in parts, of the same settings."""
    found = []
    for size in (0, part):
        # jax 0.7 cannot batch the gradient of a strided convolution over lanes.
        conv = "grouped" if lanes == 1 else "patches"
        config = quick(engine={"lanes": lanes, "part": size, "conv": conv}, **changes)
        state = rounds_only(tmp_path / str(size), config=config)
        rows = [row for row in read_metrics(tmp_path / str(size)) if row["kind"] == "round"]
        found.append((state, rows))
    return found


def assert_same(found):
    (whole, rows), (parts, in_parts) = found
    assert np.array_equal(whole[1], parts[1])
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        np.testing.assert_allclose(np.float64(a), np.float64(b), rtol=1e-5, atol=1e-5)
    assert len(rows) == len(in_parts)
    for a, b in zip(rows, in_parts, strict=True):
        assert a.keys() == b.keys()
        for name in LOSSES:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-5, atol=1e-6)


FEDFR = {"method": {"name": "fedfr"}, "fed": {"hard_threshold": 0.9, "rounds": 2, "lr": 0.01}}


def test_fedfr_with_pretraining_and_evaluation(tmp_path):
    found = []
    for part in (0, 1):
        config = quick(
            **FEDFR,
            pretrain={"epochs": 1, "batch_size": 8},
            eval={"examples": 2},
            engine={"part": part},
        )
        with Experiment(config, tmp_path / str(part)) as run:
            assert isinstance(run.sim.public_inputs, StoredImages) == (
                run.sim.public.images is None
            )
            rows = run.run()
            heads = [run.head(client) for client in run._store.touched().tolist()]
            server, touched = jax.device_get(run.server), run._store.touched()
            summary = run.evaluate()
            with np.load(tmp_path / str(part) / "evaluation.npz") as file:
                shown = {name: file[name] for name in file.files if "hard_negatives" in name}
        found.append(((server, touched, heads), rows, summary["models"], shown))
    assert_same([run[:2] for run in found])
    kept = [row["hard_negatives_mean"] for row in found[0][1]]
    assert 0 < min(kept) < found[0][1][0]["public_images"]  # some, not all
    assert found[0][2].keys() == found[1][2].keys()
    ranks = [run[2]["personalized"]["personalized"]["rank1"]["mean"] for run in found]
    assert ranks[0] == pytest.approx(ranks[1], abs=0.05)
    assert found[0][3] and found[0][3].keys() == found[1][3].keys()
    assert all(np.array_equal(found[0][3][k], found[1][3][k]) for k in found[0][3] if "image" in k)


def test_fedavg_with_a_server_optimizer_and_clipped_noisy_messages(tmp_path):
    fed = {"rounds": 2, "server_optimizer": "momentum", "aggregation": "uniform", "lr": 0.01}
    privacy = {"clip_norm": 0.05, "noise_multiplier": 0.1, "clip_quantile": 0.5}
    everybody = {"cohort": 0}  # 3 and 2 clients on two devices, of which 2 have places at a time
    assert_same(in_both_ways(tmp_path, 2, 2, fed=fed, privacy=privacy, population=everybody))


@pytest.mark.slow
def test_a_method_with_private_tensors_and_simulated_time(tmp_path):
    fed = {"rounds": 2, "local_epochs": (2,), "lr": 0.01, "partial_batch": True}
    time = {"speed": 100.0, "deadline": 0.2}
    found = in_both_ways(tmp_path, method={"name": "fedper"}, fed=fed, simulated_time=time)
    assert_same(found)
    rows, in_parts = found[0][1], found[1][1]
    assert any(row["missed"] for row in rows)
    for name in ("round_seconds", "missed", "slowest_seconds"):
        assert [row[name] for row in rows] == [row[name] for row in in_parts]


@pytest.mark.slow
def test_activations_in_place_of_images(tmp_path):
    model = {"name": "tiny_norm"}
    found = in_both_ways(
        tmp_path, model=model, method=FEDFR["method"], fed=FEDFR["fed"] | {"trainable": "norm"}
    )
    assert_same(found)


def test_a_round_that_was_interrupted_is_done_again(tmp_path, monkeypatch):
    config = quick(**FEDFR, engine={"part": 1})
    whole = rounds_only(tmp_path / "whole", config=config)
    real, left = parts._kept_images, [1]

    def interrupted(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return real(*arguments)

    with Experiment(config, tmp_path / "stopped") as run:
        run.run(1)
        monkeypatch.setattr(parts, "_kept_images", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run.run()  # in the second part of the second round
        assert run.round == 1 and run._store.newest == 1
        run._store.write(run._store.touched(), run._store.read(run._store.touched()), 2)
        for again in (run.run, lambda: run.model(0)):
            with pytest.raises(InputError, match="open the experiment again"):
                again()
    monkeypatch.setattr(parts, "_kept_images", real)
    # It goes on with all clients at once: parts of any size have the same results.
    again = rounds_only(tmp_path / "stopped", resume=True, config=quick(**FEDFR))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(np.float64(a), np.float64(b), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("balanced", [False, True])
def test_a_pool_draws_the_same_with_the_kept_images_alone(balanced):
    method = small.method(loss=small.LossConfig(balanced=balanced))
    rng = np.random.default_rng(0)
    own, public, keeps = 6, 40, np.zeros(40, bool)
    keeps[[3, 4, 11, 30, 39]] = True
    images = rng.integers(0, 256, (public, 4, 4, 3), np.uint8)
    labels = np.arange(public, dtype=np.int32) % 7
    variables = small.variables(method.backbone)
    server = ServerState(jnp.int32(2), variables, jnp.zeros((7, 8)))
    device = Device(rng.integers(0, 256, (own, 4, 4, 3), np.uint8), None)

    def pool(public, kept):
        shared = Shared(server, public, None, jax.random.key(5))
        rows, mine = np.arange(own, dtype=np.int32), np.arange(own, dtype=np.int32) % 2
        client = Client(jnp.int32(9), rows, mine, jnp.int32(5), jnp.int32(2), kept)
        return make_pool(method, shared, device, client, 2)

    whole = pool(PublicData(jnp.asarray(images), jnp.asarray(labels), 7), jnp.asarray(keeps))
    at = np.r_[np.flatnonzero(keeps), 0, 0]  # with room for two more
    some = PublicData(jnp.asarray(images[at]), jnp.asarray(labels[at]), 7, jnp.asarray(at), public)
    few = pool(some, jnp.arange(len(at)) < keeps.sum())
    assert int(whole.size) == int(few.size) == 10
    for epoch in range(3):
        orders = [np.asarray(p.order(epoch))[:10] for p in (whole, few)]
        seen = [
            p.views(jnp.asarray(o), p.flips(epoch)[o])
            for p, o in zip((whole, few), orders, strict=True)
        ]
        assert np.array_equal(*seen)
        assert np.array_equal(whole.labels[orders[0]], few.labels[orders[1]])
        if balanced:
            np.testing.assert_allclose(whole.weights[orders[0]], few.weights[orders[1]], rtol=1e-6)


def test_every_client_is_in_one_part_and_those_with_most_images_come_first():
    sizes = np.array([5, 9, 7, 1, 8, 3, 2])
    assigned = np.array([0, 1, 6, -1, 4, 2, 3, -1])
    found = parts_of(assigned, sizes, 2, 2)
    assert [part.clients.tolist() for part in found] == [[1, 0, 4, 2], [6, -1, 3, -1]]
    for part in found:
        there = part.slots >= 0
        assert np.array_equal(assigned[part.slots[there]], part.clients[there])
    assert parts_of(np.array([-1, -1]), sizes, 1, 1) == []
    assert [len(part.clients) for part in parts_of(assigned, sizes, 2, 3)] == [6]


def test_room_for_kept_images_is_a_power_of_two_and_never_shrinks():
    assert capacity_for(0, 10_000) == 256 and capacity_for(257, 10_000) == 512
    assert capacity_for(3, 10_000, before=512) == 512
    assert capacity_for(6000, 7000) == 7000 and capacity_for(0, 20) == 20


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"fed": {"aggregator": "median", "aggregation": "uniform"}}, "fed.aggregator='median'"),
        ({"fed": {"bucketing": 2, "aggregation": "uniform"}}, "fed.bucketing=2"),
        ({"method": {"name": "fedface"}}, "method.name='fedface'"),
        ({"method": {"name": "fedfr"}, "fed": {"public_data": "all"}}, "fed.public_data='all'"),
        ({"simulated_time": {"speed": 1.0, "first": 2}}, "simulated_time.first=2"),
        (
            {
                "privacy": {"secure_aggregation": True, "clip_norm": 1.0},
                "fed": {"aggregation": "uniform"},
            },
            "privacy.secure_aggregation",
        ),
        (
            {
                "hostile": {"clients": (1,), "attack": "alie"},
                "fed": {"aggregation": "uniform"},
            },
            "hostile.attack='alie'",
        ),
    ],
)
def test_what_needs_all_clients_at_once_is_refused(changes, named):
    quick(**changes)
    with pytest.raises(ConfigError, match=r"^engine\.part is 2.*set engine\.part=0") as found:
        quick(**changes, engine={"part": 2})
    assert named in str(found.value)


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="only one process"):
        memory.check_plan(quick(engine={"part": 1}))


def test_more_kept_images_than_memory_are_refused(monkeypatch):
    mesh = small.layout(devices=2).mesh
    sim = SimpleNamespace(
        layout=SimpleNamespace(mesh=mesh),
        public_inputs=np.zeros((10, 16, 16, 3), np.uint8),
        config=quick(**FEDFR),
    )
    monkeypatch.setattr(memory, "available", lambda: 3 * 768.0 * 512)  # the devices are the host's
    parts._check_room(sim, 300, 512)
    with pytest.raises(ConfigError, match=r"^fed\.hard_threshold is 0\.9.* 600 public.*Raise it"):
        parts._check_room(sim, 600, 1024)
