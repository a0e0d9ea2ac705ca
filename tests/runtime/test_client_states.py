"""Whoever asks, and whenever: the newest state of a client, or an error."""

import itertools
import types

import jax
import numpy as np
import pytest

from fedfr_jax import engine
from fedfr_jax.population.store import RowStore
from fedfr_jax.runtime.client_states import ClientStates

CLIENTS = 5


@pytest.fixture
def states():
    mesh = engine.make_mesh(jax.devices()[:1])
    sim = types.SimpleNamespace(layout=types.SimpleNamespace(mesh=mesh), public=None)
    store = RowStore({"w": np.zeros(2, np.float32)}, CLIENTS, None)
    return ClientStates(sim, store, 0, lambda rows, *_: rows, None, None)


def ids(*clients):
    return np.array(clients)


def of(clients, round_index):
    return {"w": np.repeat(100.0 * round_index + clients[:, None], 2, 1).astype(np.float32)}


@pytest.mark.parametrize(
    "order", list(itertools.permutations(["read_ahead", "take_back", "write"]))
)
@pytest.mark.parametrize("again", [False, True])
def test_writing_and_reading_ahead_in_any_order(order, again, states):
    first, second = ids(0, 1), ids(1, 2)
    steps = {
        "read_ahead": lambda: states.read_ahead(second),
        "write": states.write,
        "take_back": lambda: states.take_back(first, of(first, 1), 1, to_host=True),
    }
    states.hand_out(first, None)
    for step in order:
        steps[step]()
    if again:  # an evaluation between the rounds
        states.write()
    found = np.asarray(states.hand_out(second, None)["w"])
    np.testing.assert_array_equal(found[:, 0], [101, 0])


def test_what_is_with_a_round_is_not_mistaken_for_its_result(states):
    clients = ids(0, 1)
    states.hand_out(clients, None)
    states.take_back(clients, of(clients, 1), 1, to_host=False)
    states.hand_out(clients, None)  # given away before the host had it
    with pytest.raises(RuntimeError, match="after round 0, not those after 1"):
        states.commit(1)
    states.take_back(clients, of(clients, 2), 2, to_host=False)
    for wrong in (1, 3):
        with pytest.raises(RuntimeError, match=f"after round 2, not those after {wrong}"):
            states.models(wrong, None)
    states.commit(2)
    states.pass_over(3)
    states.commit(3)
    other = ids(1, 4)
    np.testing.assert_array_equal(np.asarray(states.hand_out(other, None)["w"])[:, 0], [201, 0])
