"""Suite peers: our side is a plain loop, and so are the peers where they are installed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks import cases, run
from benchmarks.peers import child, environments, ours, process, suite, work
from benchmarks.problem import relative_difference

TINY = work.Work(
    "tiny",
    users=7,
    cohort=3,
    sizes=(5, 8),
    size=12,
    channels=2,
    classes=4,
    batch=3,
    lr=0.1,
    epochs=2,
    filters=(4, 6),
    hidden=8,
)
ADAM = dataclasses.replace(TINY, server="adam", server_lr=0.01, weighted=True)
ROUNDS = 2


def logits(weights, images):
    """In PyTorch's layout, with JAX's own operations."""
    x = jnp.transpose(images, (0, 3, 1, 2))
    for layer in ("conv1", "conv2"):
        x = lax.conv(x, weights[f"{layer}.weight"], (1, 1), "VALID")
        x = jax.nn.relu(x + weights[f"{layer}.bias"][:, None, None])
    x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    x = jax.nn.relu(x.reshape(len(x), -1) @ weights["fc1.weight"].T + weights["fc1.bias"])
    return x @ weights["fc2.weight"].T + weights["fc2.bias"]


@jax.jit
def gradient(weights, images, labels):
    def loss(weights):
        chosen = jax.nn.log_softmax(logits(weights, images))
        return -jnp.mean(jnp.take_along_axis(chosen, labels[:, None], 1))

    return jax.grad(loss)(weights)


def plain_loop(given, problem, rounds):
    """Clients, epochs and steps in Python; the server in NumPy."""
    model = work.weights_of(problem)
    first = {k: np.zeros_like(v) for k, v in model.items()}
    second = dict(first)
    for r in range(rounds):
        ends, shares = [], []
        for user in problem["cohorts"][r]:
            images, labels = work.user_images(problem, user)
            local = model
            for _ in range(given.epochs):
                for at in range(0, len(labels), given.batch):
                    part = slice(at, at + given.batch)
                    slope = gradient(local, images[part], labels[part])
                    local = {k: v - given.lr * np.asarray(slope[k]) for k, v in local.items()}
            ends.append(local)
            shares.append(len(labels) if given.weighted else 1)
        for k, v in model.items():
            change = v - sum(s * e[k] for s, e in zip(shares, ends, strict=True)) / sum(shares)
            if given.server == "adam":
                first[k] = 0.9 * first[k] + 0.1 * change
                second[k] = 0.999 * second[k] + 0.001 * change**2
                mean, size = first[k] / (1 - 0.9 ** (r + 1)), second[k] / (1 - 0.999 ** (r + 1))
                change = mean / (np.sqrt(size) + 1e-4)
            model = model | {k: (v - given.server_lr * change).astype(np.float32)}
    return model


@pytest.mark.parametrize("given", [TINY, ADAM], ids=["sgd", "adam"])
def test_our_side_is_a_plain_loop(given):
    problem = work.make_problem(given, ROUNDS)
    job = child.Job(given, problem, ROUNDS, dropout=False, options={})
    found, _ = ours.run(job)
    assert len(job.marks) == ROUNDS
    start, expected = work.weights_of(problem), plain_loop(given, problem, ROUNDS)
    assert relative_difference(found, expected, start) < 1e-4
    assert min(np.abs(expected[k] - start[k]).max() for k in start) > 1e-4


def test_weights_go_to_channels_last_and_back():
    weights = work.initial_weights(TINY, np.random.default_rng(0))
    there = work.to_channels_last(TINY, weights)
    assert there["conv2.weight"].shape == (3, 3, 4, 6)
    back = work.from_channels_last(TINY, there)
    assert all(np.array_equal(back[k], weights[k]) for k in work.WEIGHTS)


def test_users_who_take_no_part_have_no_images():
    problem = work.make_problem(TINY, 1)
    sizes = np.diff(problem["first"])
    chosen = problem["cohorts"][0]
    assert (sizes[chosen] >= 5).all() and sizes.sum() == sizes[chosen].sum() == len(
        problem["labels"]
    )
    assert work.images_per_round(TINY, problem) == 2 * sizes.sum()


def test_a_peer_without_an_environment_is_in_the_table(monkeypatch, tmp_path):
    monkeypatch.setenv("FEDFR_PEER_ENVS", str(tmp_path))
    rows = suite.compare(TINY, [suite.LOOP], rounds=2)
    assert "python -m benchmarks.peers.environments pytorch" in rows[0]["not_run"]
    assert "| PyTorch loop | not run: no environment" in suite.table(TINY, rows, 2)


def test_a_peer_that_fails_gives_its_reason(tmp_path):
    with pytest.raises(process.NotRun, match=r"No module named benchmarks\.peers\.nothing"):
        process.run(process.Peer("broken", "", "nothing"), TINY, "problem.npz", 2, False)


@pytest.mark.slow
def test_the_suite_prints_ours(monkeypatch, capsys):
    monkeypatch.setitem(work.WORKS, "cifar10", TINY)
    monkeypatch.setitem(suite.PEERS, "cifar10", [suite.OURS])
    monkeypatch.setattr(run.machine, "peaks", lambda: {"float32": 1e12, "bfloat16": 2e12})
    assert run.main(["--suite", "peers", "--only", "cifar10", "--repeats", "2"]) == 0
    [row] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ours")]
    assert "| 1.00 |" in row and "| 0e+00 |" in row


@pytest.mark.slow
@pytest.mark.parametrize("peer", {p.name: p for ps in suite.PEERS.values() for p in ps}.values(),
                         ids=lambda p: p.name)  # fmt: skip
def test_peers_give_the_same_weights(peer):
    if peer is suite.FEDJAX_TWO:
        pytest.skip("FedJAX's pmap backend does not run with today's JAX; the table says so")
    if peer.environment and not environments.python_of(peer.environment):
        pytest.skip(f"python -m benchmarks.peers.environments {peer.environment}")
    # BlazeFL takes all users; pfl-research's processes take the same number of them.
    everybody = dataclasses.replace(TINY, users=4, cohort=4, sizes=(6, 6))
    rows = suite.compare(everybody, [suite.OURS, peer], rounds=2)
    assert all("not_run" not in row for row in rows), rows
    assert rows[1]["difference"] < 1e-4 and rows[1]["memory"] > 5e7


def test_cases_are_registered():
    assert set(cases.SUITES["peers"]) == {*work.WORKS, "fedfr"} == {*suite.PEERS, "fedfr"}
