"""What leaves a client, and what the server makes of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from hypothesis import given, settings
from hypothesis import strategies as st

from fedfr_jax.algorithm import aggregate, local_state, messages, pool, secure
from fedfr_jax.algorithm import round as one_round
from fedfr_jax.algorithm.features import Shared
from fedfr_jax.algorithm.hostile import collude, hostile_clients, labels_of
from fedfr_jax.algorithm.pool import Client
from fedfr_jax.algorithm.spec import MessageSpec
from fedfr_jax.algorithm.state import Heads, ServerState
from fedfr_jax.methods import METHODS
from fedfr_jax.population.cohort_data import CohortData
from fedfr_jax.settings import AGGREGATORS, STACKED_AGGREGATORS, HostileConfig, PrivacyConfig

CLIENTS = 4
DATA = small.federation(sizes=(9, 5, 12, 8), identities=(3, 2, 3, 2))
PLAIN = dataclasses.replace(
    small.method(public_data="off", aggregation="uniform", local_epochs=(1,)),
    recipe=METHODS["fedavg"],
    options=METHODS["fedavg"].options(),
)


def spec_with(base=PLAIN, fed=None, hostile=None, clients=(), late=0.0, cohort=CLIENTS, **privacy):
    """The method with steps for its messages."""
    message = MessageSpec(PrivacyConfig(**privacy), HostileConfig(**hostile or {}), clients, late)
    return dataclasses.replace(
        base,
        fed=dataclasses.replace(base.fed, **fed or {}),
        message=dataclasses.replace(message, cohort=cohort),
    )


@functools.cache
def after(spec, absent=-1, lanes=1, devices=1):
    """(server before, server, heads, metrics, numbers of the clients) after a whole round.

    Args:
      absent: a client whose slot is empty: the same program runs without it.
    """
    layout, cohort = small.layout(lanes, devices), DATA.cohort(devices)
    gone = cohort.clients == absent
    cohort = cohort.replace(
        clients=jnp.where(gone, -1, cohort.clients), sizes=jnp.where(gone, 0, cohort.sizes)
    )
    before, heads = small.start(spec, layout, DATA.public, cohort)
    before = jax.device_get(before)
    result = small.rounds(spec, layout, before, heads, DATA.public, cohort)
    return before, *result, np.asarray(cohort.clients)


VARIABLES = small.variables(PLAIN.backbone)
SIZE = messages.message_size(PLAIN, 4)
HEAD = Heads(*[jnp.zeros((2, 3))] * 4, None, jnp.array(False))


def start_of(spec):
    memory = messages.initial_memory(spec, SIZE, jnp.float32)
    return ServerState(jnp.int32(0), VARIABLES, jnp.zeros((4, 8)), None, memory)


def updates(count=CLIENTS, seed=0):
    """(count, P) made-up differences of unequal lengths, all there is of a round's training."""
    rng = np.random.RandomState(seed)
    return (rng.normal(size=(count, SIZE)) * np.linspace(0.01, 0.04, count)[:, None]).astype("f4")


def deliver(spec, found, server=None, key=7, empty=(), held=None):
    """What becomes of made-up differences: (moved (P,), server, metrics, heads of the clients).

    Not compiled as one program, so that all tests share their operations.

    Args:
      found: (n, P) of the clients 0 to n - 1; ``empty``: those that are not there.
      held: (n, P), what the clients had held back.
    """
    server = start_of(spec) if server is None else server
    shared = Shared(server, None, None, jax.random.key(key))
    total, weights, metrics, heads = None, 0, [], []
    received = {"backbone": VARIABLES, "public_embeddings": server.public_embeddings}
    like = [x for x in jax.tree.leaves(VARIABLES)]
    for client, update in enumerate(found):
        there = client not in empty
        sent = messages.with_difference(
            spec, server, received, messages.unflatten(jnp.asarray(update), like)
        )
        head = HEAD.replace(unsent=None if held is None else jnp.asarray(held[client]))
        sent, weight, kept, measured = messages.protect(
            spec,
            shared,
            Client(jnp.int32(client), *[None] * 5),
            head,
            sent,
            jnp.int32(1),
            head.replace(has_trained=jnp.array(True)),
            {"loss": jnp.zeros(())},
        )
        weight = float(weight) * there
        weighted = jax.tree.map(lambda x, w=weight: w * x, sent)
        total = weighted if total is None else jax.tree.map(jnp.add, total, weighted)
        weights += weight
        metrics.append(jax.tree.map(lambda x, t=there: np.asarray(x) * t, measured))
        heads.append(kept)
    average = jax.tree.map(lambda x: x / max(weights, 1), total)
    stacked = {k: jnp.asarray(np.stack([m[k] for m in metrics])) for k in metrics[0]}
    numbers = [-1 if c in empty else c for c in range(len(found))]
    cohort = CohortData(*[None] * 7, clients=jnp.asarray(numbers))
    server, average, weight, stacked = aggregate.combine(
        spec, shared, cohort, average, jnp.float32(weights), stacked
    )
    new = one_round.server_average(spec, server, average, weight)
    return moved(spec, start_of(spec), new), new, jax.device_get(stacked), heads


def moved(spec, before, server):
    """(P,) what a round changed of all that is shared."""
    sent = {"backbone": server.backbone, "public_embeddings": server.public_embeddings}
    return np.asarray(messages.flatten(messages.difference(spec, before, sent)))


def by_client(metric, clients):
    return {int(c): metric[i] for i, c in enumerate(clients) if c >= 0}


def same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_without_settings_the_program_is_as_if_there_were_no_steps(monkeypatch):
    layout, cohort = small.layout(2), DATA.cohort()
    server, heads = small.start(PLAIN, layout, DATA.public, cohort)

    def program():
        run = functools.partial(one_round.run_round, PLAIN, layout)
        return jax.jit(run).lower(server, heads, DATA.public, cohort, jax.random.key(7)).as_text()

    as_it_is = program()
    monkeypatch.setattr(one_round, "protect", lambda spec, shared, client, head, *rest: rest)
    monkeypatch.setattr(
        one_round, "combine", lambda spec, shared, cohort, *rest: (shared.server, *rest)
    )
    monkeypatch.setattr(pool, "labels_of", lambda spec, cohort: cohort.labels)
    assert program() == as_it_is
    monkeypatch.setattr(
        one_round, "protect", lambda spec, shared, client, head, s, w, *rest: (s, 2 * w, *rest)
    )
    assert program() != as_it_is  # what is replaced is traced anew


def test_quarantine_alone_changes_no_result():
    _, plain, heads, metrics, _ = after(PLAIN)
    _, server, kept, measured, _ = after(spec_with(fed={"on_bad_update": "quarantine"}))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(server), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)  # the received values added again
    for a, b in zip(jax.tree.leaves(heads), jax.tree.leaves(kept), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)  # another program
    np.testing.assert_allclose(metrics["loss"], measured["loss"], rtol=1e-5)
    assert not measured["quarantined"].any() and (measured["update_norm"] > 0).all()


def trained_client(spec):
    """(shared, client, head, its state as if it had trained) of client 1."""
    layout, cohort = small.layout(), DATA.cohort(clients=(1,))
    server, heads = jax.device_get(small.start(spec, layout, DATA.public, cohort))
    head = jax.tree.map(lambda x: jnp.asarray(x[0]), heads)
    shared = Shared(server, DATA.public, None, jax.random.key(7))
    rng = np.random.RandomState(1)
    state = jax.tree.map(
        lambda x: x + rng.normal(size=x.shape).astype(x.dtype),
        local_state.initial_state(spec, server, head),
    )
    client = Client(
        jnp.int32(1), cohort.rows, cohort.labels, cohort.sizes, cohort.identities, jnp.zeros(0)
    )
    return shared, client, head, state


def wire(spec, shared, client, head, state):
    """What leaves the client, as a list of arrays."""
    copy = state if spec.recipe.copy_penalty is not None else None
    handed = local_state.hand_back(spec, shared.server, client, head, state, copy, jnp.int32(4), 2)
    sent, weight, _, _ = messages.protect(spec, shared, client, head, *handed)
    return [np.asarray(x) for x in [*jax.tree.leaves(sent), weight]]


@pytest.mark.parametrize("public", ["off", "all"])
@pytest.mark.parametrize("name", [n for n, r in METHODS.items() if r.trains and not r.union])
def test_no_private_state_leaves_a_client(name, public):
    """The message is the same bit for bit whatever the client keeps to itself.

    FedFace's class embeddings go to the server on another way, ``embeddings_at_server``.
    """
    recipe = METHODS[name]
    public = "off" if recipe.isolated else public
    base = small.method(public_data=public, model=small.TINY_NORM)
    spec = dataclasses.replace(base, recipe=recipe, options=recipe.options())
    spec = spec_with(spec, clip_norm=1.0, local_noise=0.1, quantize_bits=8, top_k=0.5)
    shared, client, head, state = trained_client(spec)
    before = wire(spec, shared, client, head, state)

    def other(x):
        return x + 1 if jnp.issubdtype(x.dtype, jnp.inexact) else x

    trained, private = dict(state.trained), spec.private(shared.server.backbone)
    for part in trained.keys() - {"backbone", "public_embeddings"}:
        trained[part] = jax.tree.map(other, trained[part])
    trained["backbone"] = jax.tree.map(
        lambda p, x: other(x) if p else x, private["params"], trained["backbone"]
    )
    stats = jax.tree.map(
        lambda p, x: other(x) if p else x, private["batch_stats"], state.batch_stats
    )
    changed = state.replace(trained=trained, batch_stats=stats)
    kept = jax.tree.map(other, head).replace(unsent=head.unsent)
    renamed = client.replace(labels=client.labels[:, ::-1], identities=client.identities + 1)
    for a, b in zip(before, wire(spec, shared, renamed, kept, changed), strict=True):
        np.testing.assert_array_equal(a, b)
    sent = messages.message_size(spec, shared.public.identities)
    own = sum(
        p * x.size
        for p, x in zip(*map(jax.tree.leaves, (private, shared.server.backbone)), strict=True)
    )
    everything = sum(x.size for x in jax.tree.leaves(shared.server.backbone))
    rows = shared.server.public_embeddings.size if public == "all" else 0
    assert sent == everything - own + rows
    if sent:  # and what is shared does leave
        moved_too = state.replace(
            trained=dict(trained, backbone=jax.tree.map(other, state.trained["backbone"]))
        )
        found = wire(spec, shared, client, head, moved_too)
        assert any((a != b).any() for a, b in zip(before, found, strict=True))


def clipped(found, bound):
    return found * np.minimum(1, bound / np.linalg.norm(found, axis=1))[:, None]


def test_clipping_and_the_denominator_agree_with_the_closed_form():
    found = updates()
    norms = np.linalg.norm(found, axis=1)
    bound = float(norms[1:3].mean())
    change, _, metrics, _ = deliver(spec_with(clip_norm=bound), found)
    expected = clipped(found, bound).mean(0)
    np.testing.assert_allclose(change, expected, atol=1e-6)
    np.testing.assert_allclose(metrics["update_norm"], norms, rtol=1e-4)
    np.testing.assert_array_equal(metrics["clipped"], norms > bound)
    np.testing.assert_allclose(metrics["clip_norm"], bound, rtol=1e-6)
    # With noise the sum is divided by the expected number, not by those who came.
    tiny = spec_with(clip_norm=bound, noise_multiplier=1e-9, cohort=10)
    np.testing.assert_allclose(deliver(tiny, found)[0], expected * CLIENTS / 10, atol=1e-6)


def test_a_client_changes_a_private_sum_by_at_most_the_bound():
    """Whatever is on, but for the noise: the sensitivity that the accounting takes for granted."""
    found = updates()
    found[0] *= 1e4
    held = 100 * updates(seed=1)
    spec = spec_with(clip_norm=0.5, noise_multiplier=1e-9, top_k=0.5, quantize_bits=4)
    for changes in ({}, {"quarantine_norm": 1.0, "on_bad_update": "quarantine"}):
        spec = dataclasses.replace(spec, fed=dataclasses.replace(spec.fed, **changes))
        all_of_them, *_ = deliver(spec, found, held=held)
        for absent in range(CLIENTS):
            others, *_ = deliver(spec, found, held=held, empty=(absent,))
            assert np.linalg.norm(all_of_them - others) <= 0.5 / CLIENTS + 1e-5


@pytest.mark.parametrize("cohort, changes", [(4, {}), (50, {"production_cohort": 50})])
def test_the_noise_has_the_std_that_is_accounted_for(cohort, changes):
    found = updates()
    quiet, *_ = deliver(spec_with(clip_norm=0.5, noise_multiplier=1e-9), found)
    spec = spec_with(clip_norm=0.5, noise_multiplier=3.0, **changes)
    drawn = np.stack([deliver(spec, found, key=k)[0] - quiet for k in (7, 8, 9)])
    std = 3.0 * 0.5 / cohort
    assert abs(drawn.std() / std - 1) < 4 / np.sqrt(2 * drawn.size)
    assert abs(drawn.mean()) < 4 * std / np.sqrt(drawn.size)
    assert abs(np.corrcoef(drawn)[0, 1]) < 4 / np.sqrt(SIZE)
    server = start_of(spec).replace(round=jnp.int32(1))
    later = deliver(spec, found, server)[0] - quiet
    assert abs(np.corrcoef(drawn[0], later)[0, 1]) < 4 / np.sqrt(SIZE)  # each round has its own


def test_local_noise_is_each_clients_own():
    found = updates()
    quiet, *_ = deliver(spec_with(clip_norm=0.5), found)
    drawn = np.stack(
        [deliver(spec_with(clip_norm=0.5, local_noise=2.0), found, key=k)[0] for k in (7, 8, 9)]
    )
    std = 2.0 * 0.5 / np.sqrt(CLIENTS)  # of a mean of independent draws
    assert abs((drawn - quiet).std() / std - 1) < 4 / np.sqrt(2 * drawn.size)


def test_the_adaptive_bound_follows_the_quantile():
    found = updates()
    norms = np.linalg.norm(found, axis=1)
    half = spec_with(clip_norm=float(norms[1] * 1.01), clip_quantile=0.5, clip_lr=0.2)
    _, server, metrics, _ = deliver(half, found)
    assert metrics["clipped"].sum() == 2  # half are within, as asked: the bound stays
    np.testing.assert_allclose(server.message["clip_norm"], norms[1] * 1.01, rtol=1e-6)
    low = spec_with(clip_norm=float(norms[0] / 2), clip_quantile=0.5, clip_lr=0.2)
    server, bound = None, norms[0] / 2
    for _ in range(3):
        change, server, *_ = deliver(low, found, server)
        bound *= np.exp(0.2 * 0.5)
        np.testing.assert_allclose(server.message["clip_norm"], bound, rtol=1e-5)
    assert np.linalg.norm(change) > 0
    message = dataclasses.replace(
        half.message, privacy=PrivacyConfig(1.0, 0.5, noise_multiplier=0.3)
    )
    split, count = aggregate.noise_on_sum(message), aggregate.count_noise(message)
    np.testing.assert_allclose(split**-2 + (2 * count) ** -2, 0.3**-2)  # the same in all
    assert split > 0.3


def test_quantizing_is_unbiased_and_on_few_levels():
    parts = [jnp.asarray(np.random.RandomState(0).normal(size=(20, 5)), jnp.float32), jnp.zeros(3)]
    keys = jax.random.split(jax.random.key(0), 400)
    found = jax.jit(jax.vmap(lambda key: messages.quantize(parts, 4, key)))(keys)
    step = float(jnp.abs(parts[0]).max()) / 7
    levels = np.asarray(found[0]) / step
    np.testing.assert_allclose(levels, np.round(levels), atol=1e-5)
    assert np.abs(levels).max() <= 7.001 and not np.asarray(found[1]).any()
    np.testing.assert_allclose(found[0].mean(0), parts[0], atol=5 * step / 2 / np.sqrt(400))


def test_what_top_k_holds_back_is_sent_later():
    found, held = updates(), 0.01 * updates(seed=1)
    change, _, _, heads = deliver(spec_with(top_k=0.1), found, held=held)
    whole = found + held
    left = np.stack([h.unsent for h in heads])
    np.testing.assert_allclose(change, (whole - left).mean(0), atol=1e-6)
    for client in range(CLIENTS):
        largest = np.argsort(-np.abs(whole[client]))[: round(0.1 * SIZE)]
        np.testing.assert_allclose(left[client][largest], 0, atol=1e-6)
        rest = np.setdiff1d(np.arange(SIZE), largest)
        np.testing.assert_allclose(left[client][rest], whole[client][rest], atol=1e-6)
    lost = deliver(spec_with(top_k=0.1, late=1 - 1e-9), found, held=held)[3]
    np.testing.assert_allclose(np.stack([h.unsent for h in lost]), whole, atol=1e-6)
    bad = spec_with(
        top_k=0.1, fed={"on_bad_update": "quarantine"}, hostile={"attack": "nan"}, clients=(0, 1, 2)
    )
    _, _, _, heads = deliver(bad, found, held=held)
    np.testing.assert_array_equal(heads[0].unsent, held[0])


@pytest.mark.parametrize("rule", AGGREGATORS + STACKED_AGGREGATORS)
def test_a_bad_client_is_as_if_it_had_not_been_there(rule):
    fed = {"on_bad_update": "quarantine", "aggregator": rule, "clip_radius": 0.5}
    for attack, strength in (("nan", 1.0), ("scale", 1e9)):
        spec = spec_with(
            fed=fed | {"quarantine_norm": 1e3},
            hostile={"attack": attack, "strength": strength},
            clients=(2,),
        )
        found = updates(6)
        change, server, metrics, heads = deliver(spec, found)
        without, other, *_ = deliver(spec, found, empty=(2,))
        np.testing.assert_array_equal(change, without)
        same(server, other)
        assert np.abs(change).max() > 0 and np.isfinite(change).all()
        np.testing.assert_array_equal(metrics["quarantined"], np.arange(6) == 2)
        assert [bool(h.has_trained) for h in heads] == [c != 2 for c in range(6)]


@pytest.mark.parametrize("lanes, devices, rule", [(1, 1, "mean"), (2, 2, "median")])
def test_a_bad_client_in_a_whole_round(lanes, devices, rule):
    fed = {"on_bad_update": "quarantine", "aggregator": rule}
    spec = spec_with(fed=fed, hostile={"attack": "nan"}, clients=(2,))
    before, server, heads, metrics, clients = after(spec, -1, lanes, devices)
    _, without, kept, _, others = after(spec, 2, lanes, devices)
    same(server, without)
    if devices > 1:  # where clients are does not matter
        alone = after(spec, -1, 1, 1)[1]
        for a, b in zip(jax.tree.leaves(server), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
    assert by_client(metrics["quarantined"], clients) == {0: 0, 1: 0, 2: 1, 3: 0}
    assert np.abs(moved(spec, before, server)).max() > 1e-3
    where = {int(c): i for i, c in enumerate(clients) if c >= 0}
    assert not heads.has_trained[where[2]] and heads.has_trained[where[0]]
    for client in (0, 1, 3):
        np.testing.assert_allclose(
            heads.class_embeddings[where[client]],
            kept.class_embeddings[list(others).index(client)],
            atol=1e-6,
        )


def test_a_round_in_which_nobody_arrives_changes_nothing():
    for changes in (
        {},
        {"clip_norm": 1.0, "noise_multiplier": 1.0},
        {"clip_norm": 1.0, "secure_aggregation": True},
        {"fed": {"aggregator": "centered_clip", "clip_radius": 1.0}},
    ):
        spec = spec_with(late=1 - 1e-9, **changes)
        change, server, metrics, heads = deliver(spec, updates())
        assert not change.any() and server.round == 1
        assert metrics["late"].all() and all(h.has_trained for h in heads)


def test_late_clients_are_left_out_and_drawn_anew_in_every_round():
    spec, found, lost, server = spec_with(late=0.5), updates(8), [], None
    for _ in range(4):
        before = start_of(spec) if server is None else server
        _, server, metrics, _ = deliver(spec, found, before)
        lost.append(tuple(metrics["late"]))
        there = ~metrics["late"]
        expected = found[there].mean(0) if there.any() else 0
        at_start = start_of(spec).replace(round=before.round)
        np.testing.assert_allclose(deliver(spec, found, at_start)[0], expected, atol=1e-6)
    assert len(set(lost)) > 1 and 8 < np.sum(lost) < 24


@pytest.mark.parametrize("attack, strength", [("sign_flip", 2.0), ("scale", 5.0), ("random", 3.0)])
def test_attacks_on_a_message(attack, strength):
    found = updates()
    spec = spec_with(hostile={"attack": attack, "strength": strength}, clients=(1,))
    change, _, metrics, _ = deliver(spec, found)
    bad = change * CLIENTS - (found.sum(0) - found[1])
    length = np.linalg.norm(found[1])
    if attack == "random":
        np.testing.assert_allclose(np.linalg.norm(bad), strength * length, rtol=1e-3)
        assert abs(bad @ found[1]) < 0.2 * np.linalg.norm(bad) * length
    else:
        factor = -strength if attack == "sign_flip" else strength
        np.testing.assert_allclose(bad, factor * found[1], atol=1e-6)
    np.testing.assert_allclose(metrics["update_norm"][1], strength * length, rtol=1e-3)


@pytest.mark.parametrize("attack", ["alie", "inner_product"])
def test_attacks_that_look_at_all(attack):
    found = updates(5)
    hostile = {"attack": attack, "strength": 1.5}
    honest = found[[0, 2, 3]]
    bad = honest.mean(0) * -1.5
    if attack == "alie":
        bad = honest.mean(0) - 1.5 * honest.std(0)
    spec = spec_with(hostile=hostile, clients=(1, 4))
    np.testing.assert_allclose(deliver(spec, found)[0], (honest.sum(0) + 2 * bad) / 5, atol=1e-6)
    bound = 0.3 * float(np.linalg.norm(bad))  # the server clips what they made
    spec = spec_with(hostile=hostile, clients=(1, 4), clip_norm=bound)
    honest = clipped(honest, bound)
    bad = (
        honest.mean(0) * -1.5 if attack == "inner_product" else honest.mean(0) - 1.5 * honest.std(0)
    )
    expected = (honest.sum(0) + 2 * clipped(bad[None], bound)[0]) / 5
    np.testing.assert_allclose(deliver(spec, found)[0], expected, atol=1e-6)
    alone = collude(spec.message.hostile, jnp.ones((2, 3)), jnp.ones(2, bool), jnp.zeros(2, bool))
    np.testing.assert_array_equal(alone, 1)  # nobody is honest: there is nothing to look at


def test_centered_clipping_is_around_the_last_aggregate():
    spec = spec_with(fed={"aggregator": "centered_clip", "clip_radius": 0.2})
    found, center = updates(), np.zeros(SIZE)
    server = deliver(spec, found)[1]
    for server_before in (None, server.replace(backbone=VARIABLES)):
        change, new, *_ = deliver(spec, found, server_before)
        center = center + clipped(found - center, 0.2).mean(0)
        np.testing.assert_allclose(change, center, atol=1e-6)
        np.testing.assert_allclose(new.message["center"], center, atol=1e-6)
    buckets = dataclasses.replace(spec, fed=dataclasses.replace(spec.fed, bucketing=2))
    assert buckets.stacks_messages and not spec.stacks_messages
    assert np.linalg.norm(deliver(buckets, found)[0]) > 0


def test_flipped_labels_are_those_of_the_hostile():
    cohort = DATA.cohort()
    flip = spec_with(hostile={"attack": "label_flip"}, clients=(0, 3))
    found = np.asarray(labels_of(flip, cohort))
    for i, client in enumerate(np.asarray(cohort.clients)):
        old = np.asarray(cohort.labels[i])[: cohort.sizes[i]]
        expected = DATA.identities[client] - 1 - old if client in (0, 3) else old
        np.testing.assert_array_equal(found[i][: cohort.sizes[i]], expected)
    assert labels_of(PLAIN, cohort) is cohort.labels


def test_who_is_hostile_depends_on_its_own_seed():
    drawn = hostile_clients(HostileConfig(fraction=0.2), 50)
    assert len(drawn) == 10 == len(set(drawn)) and drawn == tuple(sorted(drawn))
    assert drawn == hostile_clients(HostileConfig(fraction=0.2), 50)
    assert drawn != hostile_clients(HostileConfig(fraction=0.2, seed=1), 50)
    assert hostile_clients(HostileConfig(clients=(4, 2)), 50) == (2, 4)
    assert not hostile_clients(HostileConfig(), 50)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.data())
def test_masks_cancel_exactly(n, data):
    invited = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    arrived = invited & np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    rng = np.random.RandomState(data.draw(st.integers(0, 99)))
    whole = rng.randint(-(2**27), 2**27, (n, 7)).astype(np.int32)
    key = jax.random.key(3)
    sent = secure.masked(jnp.asarray(whole.view(np.uint32)), jnp.asarray(invited), key)
    total = secure.unmask(sent, jnp.asarray(invited), jnp.asarray(arrived), key)
    np.testing.assert_array_equal(np.asarray(total).view(np.int32), whole[arrived].sum(0))
    if invited.sum() > 1:
        assert (np.asarray(sent)[invited] != whole[invited].view(np.uint32)).all()


def test_a_masked_message_alone_is_uniform():
    sent = secure.masked(jnp.zeros((3, 20_000), jnp.uint32), jnp.ones(3, bool), jax.random.key(0))
    counts = np.bincount(np.asarray(sent[0] >> 28), minlength=16)
    assert ((counts - 1250) ** 2 / 1250).sum() < 40  # chi-square, 15 degrees of freedom


def test_secure_aggregation_is_the_mean_of_clipped_messages():
    found = updates()
    plain, _, metrics, _ = deliver(spec_with(clip_norm=0.3, late=0.5), found)
    masked, *_ = deliver(spec_with(clip_norm=0.3, late=0.5, secure_aggregation=True), found)
    assert 0 < metrics["late"].sum() < CLIENTS
    np.testing.assert_allclose(masked, plain, atol=2e-7)


def test_variances_stay_variances():
    spec = dataclasses.replace(small.method(public_data="off", model=small.TINY_NORM))
    variables = small.variables(spec.backbone)
    noisy = jax.tree.map(lambda x: x - 5, variables)
    found = aggregate._valid({"backbone": noisy})["backbone"]
    assert not np.asarray(found["batch_stats"]["norm"]["var"]).any()
    np.testing.assert_array_equal(
        found["batch_stats"]["norm"]["mean"], noisy["batch_stats"]["norm"]["mean"]
    )
