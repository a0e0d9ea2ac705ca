"""Which messages come in time, and what becomes of the others."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small

from fedfr_jax.algorithm.arrivals import arrivals
from fedfr_jax.algorithm.features import Shared
from fedfr_jax.algorithm.messages import is_lost
from fedfr_jax.algorithm.spec import MessageSpec
from fedfr_jax.methods import METHODS
from fedfr_jax.population.cohort_data import Pace

DATA = small.federation(sizes=(9, 5, 12, 8), identities=(3, 2, 3, 2))
PLAIN = dataclasses.replace(
    small.method(public_data="off", aggregation="uniform", local_epochs=(1, 3)),
    recipe=METHODS["fedavg"],
    options=METHODS["fedavg"].options(),
)
KEY = jax.random.key(3)


@dataclasses.dataclass(frozen=True)
class State:
    """All that durations need of the server."""

    round: object


@dataclasses.dataclass(frozen=True)
class Cohort:
    """All that durations need of the clients."""

    clients: object
    sizes: object
    pace: object


def with_message(base=PLAIN, fed=None, **message):
    fed = dataclasses.replace(base.fed, **fed or {})
    return dataclasses.replace(base, fed=fed, message=MessageSpec(**message))


def random_cohort(rng, slots=9):
    clients = np.where(rng.random(slots) < 0.25, -1, rng.permutation(slots))
    sizes = np.where(clients >= 0, rng.integers(4, 40, slots), 0)
    # Whole numbers: sums are exact, and many clients arrive at the same moment.
    image, upload = rng.integers(1, 4, slots), rng.integers(0, 3, slots)
    public = (rng.random((slots, 6)) < 0.5) & (clients >= 0)[:, None]
    pace = Pace(image.astype(np.float32), upload.astype(np.float32))
    return Cohort(clients, sizes, pace), public


def by_hand(spec, round_index, cohort, public):
    """Client by client, with plain loops: (in time, seconds, seconds of the round)."""
    message, fed = spec.message, spec.fed
    epochs = fed.local_epochs[min(round_index, len(fed.local_epochs) - 1)]
    seconds, found = np.zeros(len(cohort.clients)), []
    for i, client in enumerate(cohort.clients):
        if client < 0:
            continue
        images = int(cohort.sizes[i] + public[i].sum())
        if not fed.partial_batch:
            images = images // fed.batch_size * fed.batch_size
        seconds[i] = images * epochs * cohort.pace.image[i] + cohort.pace.upload[i]
        lost = message.late_dropout and bool(is_lost(spec, KEY, round_index, int(client)))
        if not lost and (not message.deadline or seconds[i] <= message.deadline):
            found.append((seconds[i], client, i))
    until = seconds.max()
    if message.deadline:
        until = min(until, message.deadline)
    found.sort()
    if message.first and len(found) >= message.first:
        found = found[: message.first]
        until = found[-1][0]
    return [i in {at for _, _, at in found} for i in range(len(seconds))], seconds, until


def computed(spec, round_index, cohort, public):
    shared = Shared(State(jnp.int32(round_index)), None, None, KEY)
    cohort = jax.tree.map(jnp.asarray, dataclasses.asdict(cohort) | {"pace": cohort.pace})
    steps = spec.steps(cohort["sizes"] + public.sum(1))
    return arrivals(spec, shared, Cohort(**cohort), jnp.asarray(public), steps)


@pytest.mark.parametrize(
    "message",
    [
        {"deadline": 90.0},
        {"first": 3},
        {"first": 3, "late_dropout": 0.4},
        {"deadline": 60.0, "first": 2, "late_dropout": 0.3},
        {"deadline": 0.5},  # nobody
        {"first": 50},  # more than there are
    ],
)
def test_who_comes_in_time_is_as_by_hand(message):
    rng = np.random.default_rng(len(str(message)))
    for trial in range(8):
        spec = with_message(fed={"partial_batch": bool(trial % 2)}, **message)
        cohort, public = random_cohort(rng)
        expected = by_hand(spec, trial % 3, cohort, public)
        in_time, times = computed(spec, trial % 3, cohort, public)
        np.testing.assert_array_equal(in_time, expected[0])
        np.testing.assert_array_equal(times["simulated_seconds"], expected[1])
        np.testing.assert_array_equal(times["round_seconds"], np.full(9, expected[2]))
        order = rng.permutation(9)  # other slots, or devices
        moved = Cohort(*(x[order] for x in (cohort.clients, cohort.sizes)), None)
        pace = jax.tree.map(lambda x, order=order: x[order], cohort.pace)
        again, _ = computed(spec, trial % 3, dataclasses.replace(moved, pace=pace), public[order])
        np.testing.assert_array_equal(again, np.asarray(in_time)[order])


def test_without_a_deadline_everybody_is_waited_for():
    cohort, public = random_cohort(np.random.default_rng(0))
    in_time, times = computed(PLAIN, 0, cohort, public)
    assert in_time is None
    assert float(times["round_seconds"][0]) == by_hand(PLAIN, 0, cohort, public)[2]
    assert arrivals(PLAIN, None, Cohort(None, None, None), None, None) == (None, {})


def test_a_personal_copy_takes_as_long_again_and_nothing_is_sent_where_nothing_is_averaged():
    cohort, public = random_cohort(np.random.default_rng(1))
    ditto = dataclasses.replace(PLAIN, recipe=METHODS["ditto"])
    once, twice = (computed(s, 0, cohort, public)[1]["simulated_seconds"] for s in (PLAIN, ditto))
    upload = np.where(cohort.clients >= 0, cohort.pace.upload, 0)
    np.testing.assert_array_equal(twice - upload, 2 * (once - upload))
    tuned = METHODS["finetune"]
    alone = dataclasses.replace(PLAIN, recipe=tuned, options=tuned.options())
    free = dataclasses.replace(cohort, pace=cohort.pace.replace(upload=0 * cohort.pace.upload))
    for round_index, differs in ((0, True), (alone.rounds - 1, False)):
        with_upload, without = (
            computed(alone, round_index, c, public)[1]["simulated_seconds"] for c in (cohort, free)
        )
        assert np.asarray(with_upload != without).any() == differs


SLOW = 2  # of the clients


def after_a_round(message, absent=-1, lanes=1, devices=1, **privacy):
    """(server, heads, metrics, clients) after a round in which client ``SLOW`` is slow."""
    spec = with_message(**message)
    if privacy:
        spec = dataclasses.replace(
            spec,
            message=dataclasses.replace(
                spec.message, privacy=dataclasses.replace(spec.message.privacy, **privacy)
            ),
        )
    layout, cohort = small.layout(lanes, devices), DATA.cohort(devices)
    slow = jnp.where(cohort.clients == SLOW, 10.0, 0.125)
    gone = cohort.clients == absent
    cohort = cohort.replace(
        clients=jnp.where(gone, -1, cohort.clients),
        sizes=jnp.where(gone, 0, cohort.sizes),
        pace=Pace(slow, jnp.zeros_like(slow)),
    )
    server, heads = small.start(spec, layout, DATA.public, cohort.replace(pace=None))
    result = small.rounds(spec, layout, jax.device_get(server), heads, DATA.public, cohort)
    return *jax.device_get(result), np.asarray(cohort.clients)


def test_a_late_message_changes_nothing_but_its_sender_has_learned():
    server, heads, metrics, clients = after_a_round({"deadline": 5.0})
    missed = {int(c): bool(m) for c, m in zip(clients, metrics["missed"], strict=True)}
    assert missed == {0: False, 1: False, SLOW: True, 3: False}
    without, _, _, _ = after_a_round({"deadline": 5.0}, absent=SLOW)
    for a, b in zip(jax.tree.leaves(server), jax.tree.leaves(without), strict=True):
        np.testing.assert_array_equal(a, b)
    # With all the time in the world the same client learns the same.
    _, others, late, _ = after_a_round({"deadline": 1e9})
    assert not late["missed"].any()
    for a, b in zip(jax.tree.leaves(heads), jax.tree.leaves(others), strict=True):
        np.testing.assert_array_equal(a, b)


def test_lanes_and_devices_do_not_decide_who_is_late():
    alone = after_a_round({"first": 2})
    together = after_a_round({"first": 2}, lanes=2, devices=2)

    def of(found, name):
        return {int(c): v for c, v in zip(found[3], found[2][name], strict=True) if c >= 0}

    assert of(alone, "missed") == of(together, "missed")
    assert sum(of(alone, "missed").values()) == 2
    assert of(alone, "round_seconds") == of(together, "round_seconds")
    for a, b in zip(jax.tree.leaves(alone[0]), jax.tree.leaves(together[0]), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_a_round_that_nobody_finishes_leaves_the_model():
    spec, layout, cohort = with_message(deadline=1e-3), small.layout(), DATA.cohort()
    start, _ = small.start(spec, layout, DATA.public, cohort)
    start = jax.device_get(start)
    server, heads, metrics, _ = after_a_round({"deadline": 1e-3})
    assert metrics["missed"].all() and heads.has_trained.all()
    for a, b in zip(jax.tree.leaves(start.backbone), jax.tree.leaves(server.backbone), strict=True):
        np.testing.assert_array_equal(a, b)
    assert int(server.round) == 1
    np.testing.assert_allclose(metrics["round_seconds"], 1e-3)


def test_what_did_not_arrive_is_held_back_and_masks_are_taken_out():
    _, heads, _, clients = after_a_round({"deadline": 5.0}, top_k=0.5)
    held = {int(c): np.abs(h).sum() for c, h in zip(clients, heads.unsent, strict=True)}
    assert held[SLOW] > 1.5 * max(h for c, h in held.items() if c != SLOW) / 2
    secure = {"secure_aggregation": True, "clip_norm": 100.0}
    server, _, metrics, _ = after_a_round({"deadline": 5.0}, **secure)
    plain, _, _, _ = after_a_round({"deadline": 5.0})
    assert metrics["missed"].sum() == 1
    for a, b in zip(jax.tree.leaves(plain.backbone), jax.tree.leaves(server.backbone), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
