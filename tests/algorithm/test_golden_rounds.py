"""Two whole rounds of three clients against the authors' PyTorch modules, in double precision."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from small import GOLDEN, ROOT, golden_inputs, in_double

import fedfr_jax
from fedfr_jax.algorithm.features import features, personal_features
from fedfr_jax.algorithm.local_state import LOSS_TERMS
from fedfr_jax.models.weights import from_torch, to_torch

TOLERANCE = 1e-9  # of the largest entry
# The authors add 1e-8 inside the logarithms of the binary loss. Gradients of biases are sums that
# nearly cancel, so that more of it is seen there.
TOLERANCE_OF_BIASES = 2e-9
PATHS = [
    f for f in sorted((GOLDEN / "float64").glob("*.npz")) if "round0/losses/0" in np.load(f).files
]


def assert_close(actual, expected, name, tolerance=TOLERANCE):
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == np.float64 and actual.shape == expected.shape, name
    error = np.max(np.abs(actual - expected), initial=0)
    assert error <= tolerance * np.max(np.abs(expected)), (name, error)


def rounds_of(case, threshold):
    clients = list(zip(case["images"], case["labels"], strict=True))
    return fedfr_jax.plain_rounds(
        clients,
        (case["public_images"], case["public_labels"]),
        model={"dtype": "float64"},
        engine={"lanes": 1, "conv": "custom"},
        fed={
            "batch_size": case["batch"],
            "local_epochs": case["epochs"],
            "lr": case["lr"],
            "lr_decay_epochs": case["decay_epochs"],
            "hard_threshold": threshold,
            "mirror": False,
        },
    )


def check_client(golden, at, rounds, head, client, probes):
    for name in ("class_embeddings", "binary_weight", "binary_bias"):
        expected = golden[f"{at}/{name}/{client}"]
        assert_close(
            getattr(head, name)[: len(expected)],
            expected,
            (at, name, client),
            TOLERANCE_OF_BIASES if name == "binary_bias" else TOLERANCE,
        )
    transform = head.transform
    for name, value in (
        ("bias", transform["bias"]),
        ("weight_diagonal", np.diagonal(transform["weight"])),
        ("weight_norm", np.linalg.norm(transform["weight"])),
    ):
        assert_close(
            value,
            golden[f"{at}/transform_{name}/{client}"],
            (at, name, client),
            TOLERANCE_OF_BIASES if name == "bias" else TOLERANCE,
        )
    assert_close(
        personal_features(rounds.spec, head.previous, transform, probes),
        golden[f"{at}/personal_features/{client}"],
        (at, "personal", client),
    )


def check_server(golden, at, rounds, server, probes):
    assert_close(server.public_embeddings, golden[f"{at}/public_embeddings"], at)
    assert_close(
        features(rounds.spec.backbone, server.backbone, probes), golden[f"{at}/global_features"], at
    )
    tensors = to_torch(server.backbone, rounds.spec.backbone)
    prefix = f"{at}/server/sum/"
    assert {k.removeprefix(prefix) for k in golden.files if k.startswith(prefix)} == set(tensors)
    for name, value in tensors.items():
        assert_close([value.sum(), np.linalg.norm(value)], golden[prefix + name], name)
        assert_close(value.ravel()[:16], golden[f"{at}/server/head/{name}"], name)


def check(path):
    """Both rounds, in this process."""
    golden = np.load(path)
    with in_double():
        case = golden_inputs().rounds_case(int(golden["seed"]))
        rounds = rounds_of(case, float(golden["threshold"]))
        key = jax.random.key(0)
        server, heads = rounds.start(from_torch(case["weights"], rounds.spec.backbone), key)
        at = rounds.slots()
        started = jax.device_get((server, heads))
        assert_close(started[0].public_embeddings, golden["public_embeddings_start"], "public")
        for client, slot in enumerate(at):
            expected = golden[f"class_embeddings_start/{client}"]
            assert_close(started[1].class_embeddings[slot, : len(expected)], expected, client)
        for r in range(2):
            server, heads, metrics = rounds.step(server, heads, key)
            # XLA:CPU may wait forever in single operations on arrays of several devices.
            global_, own, metrics = jax.device_get((server, heads, metrics))
            for client, slot in enumerate(at):
                expected = golden[f"round{r}/losses/{client}"].mean(0)
                assert_close(
                    np.array([metrics[term][slot] for term in LOSS_TERMS]),
                    expected,
                    ("losses", r, client),
                )
                assert metrics["hard_negatives"][slot] == golden[f"round{r}/kept/{client}"].sum()
                head = jax.tree.map(lambda x, s=slot: x[s], own)
                check_client(golden, f"round{r}", rounds, head, client, case["probes"])
            check_server(golden, f"round{r}", rounds, global_, case["probes"])


RUN = """
import pathlib, sys
sys.path[:0] = ["tests", "tests/algorithm"]
import test_golden_rounds
test_golden_rounds.check(pathlib.Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    PATHS
    or [pytest.param(None, marks=pytest.mark.skip(reason=f"no reference rounds in {GOLDEN}"))],
)
def test_two_rounds_of_three_clients_are_those_of_the_authors_modules(path):
    # A process of its own: with the settings of the other tests the programs, compiled quickly,
    # would run for many minutes.
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(path)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
